/* kernels/probe.cu - what this card and its link give: the ceilings that everything else is
 * compared with, and the state of the card as NVML tells it.
 *
 * Read: a sum over 2 GiB. Copy: the same twice, by a kernel. Gather: blocks of 32 KiB in random
 * order, one warp a stretch of 4 KiB. Host gather: the same blocks out of mapped pinned memory by
 * 16 CTAs, which is what the link gives a kernel. One large cudaMemcpyAsync each way. Best of a few
 * passes.
 *
 * NVML is part of the driver and is looked for at run time; without it its values are
 * UNSUPPORTED. */
#include "kernels/cuda.cuh"

#include <cstring>
#include <dlfcn.h>

namespace
{

constexpr uint64_t DEVICE_BYTES = 1ull << 30;
constexpr uint64_t HOST_BYTES = 512ull << 20;
constexpr uint32_t BLOCK = 32u << 10;
constexpr int PASSES = 5;

/* ---- kernels --------------------------------------------------------------------------------- */

__global__ void __launch_bounds__(512) read_kernel(const uint4 *from, uint64_t count, uint32_t *out)
{
    uint32_t sum = 0;
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    for (; i + 3 * step < count; i += 4 * step) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const uint4 v = __ldcs(from + i + (uint64_t)k * step);
            sum += v.x ^ v.y ^ v.z ^ v.w;
        }
    }
    for (; i < count; i += step)
        sum += __ldcs(from + i).x;
    if (sum == 0xdeadbeef) *out = sum; /* keeps the loads */
}

/* Block b of `to` from block (b * stride) % blocks of `from`: any odd stride visits all of a power
 * of two. */
__global__ void __launch_bounds__(512)
    gather_blocks_kernel(const uint4 *from, uint4 *to, uint32_t blocks, uint32_t stride)
{
    constexpr uint32_t WORDS = BLOCK / sizeof(uint4);
    for (uint32_t b = blockIdx.x; b < blocks; b += gridDim.x) {
        const uint4 *source = from + (uint64_t)((uint64_t)b * stride % blocks) * WORDS;
        uint4 *target = to + (uint64_t)b * WORDS;
        uint4 v[WORDS / 512];
#pragma unroll
        for (uint32_t k = 0; k < WORDS / 512; k++)
            v[k] = __ldcs(source + threadIdx.x + k * 512);
#pragma unroll
        for (uint32_t k = 0; k < WORDS / 512; k++)
            target[threadIdx.x + k * 512] = v[k];
    }
}

/* ---- measuring ------------------------------------------------------------------------------- */

struct probe_buffers {
    uint8_t *device, *other, *host;
    cudaStream_t stream;
    cudaEvent_t from, to;
};

void give(probe_buffers *p)
{
    (void)cudaFree(p->device);
    (void)cudaFree(p->other);
    if (p->host) (void)cudaFreeHost(p->host);
    if (p->from) (void)cudaEventDestroy(p->from);
    if (p->to) (void)cudaEventDestroy(p->to);
    if (p->stream) (void)cudaStreamDestroy(p->stream);
}

status take(probe_buffers *p, bool host)
{
    if (cudaMalloc((void **)&p->device, DEVICE_BYTES) != cudaSuccess ||
        cudaMalloc((void **)&p->other, DEVICE_BYTES) != cudaSuccess)
        return FAIL(NO_MEMORY, "two times 1 GiB of device memory to measure with are not free");
    TRY_CUDA(cudaMemset(p->device, 1, DEVICE_BYTES));
    TRY_CUDA(cudaMemset(p->other, 1, DEVICE_BYTES));
    if (host && cudaHostAlloc((void **)&p->host, HOST_BYTES, cudaHostAllocMapped) != cudaSuccess)
        return FAIL(NO_MEMORY, "512 MiB of host memory cannot be pinned");
    if (host) memset(p->host, 1, HOST_BYTES);
    TRY_CUDA(cudaStreamCreateWithFlags(&p->stream, cudaStreamNonBlocking));
    TRY_CUDA(cudaEventCreate(&p->from));
    TRY_CUDA(cudaEventCreate(&p->to));
    return STATUS_OK;
}

/* One pass of `what`; *out_bytes: what it counts for. */
status one_pass(const cuda_device *d, const probe_buffers *p, const char *what, double *out_bytes)
{
    const uint32_t device_blocks = (uint32_t)(DEVICE_BYTES / BLOCK);
    const uint32_t host_blocks = (uint32_t)(HOST_BYTES / BLOCK), sms = (uint32_t)d->sms;
    if (strcmp(what, "read") == 0) {
        read_kernel<<<sms * 4, 512, 0, p->stream>>>(
            (const uint4 *)p->device, DEVICE_BYTES / sizeof(uint4), (uint32_t *)p->other);
        *out_bytes = (double)DEVICE_BYTES;
    } else if (strcmp(what, "copy") == 0) {
        TRY_CUDA(cudaMemcpyAsync(p->other, p->device, DEVICE_BYTES, cudaMemcpyDeviceToDevice,
                                 p->stream));
        *out_bytes = 2.0 * (double)DEVICE_BYTES;
    } else if (strcmp(what, "gather") == 0) {
        gather_blocks_kernel<<<sms * 4, 512, 0, p->stream>>>(
            (const uint4 *)p->device, (uint4 *)p->other, device_blocks, 7919);
        *out_bytes = 2.0 * (double)DEVICE_BYTES;
    } else if (strcmp(what, "host_gather") == 0) {
        gather_blocks_kernel<<<16, 512, 0, p->stream>>>((const uint4 *)p->host, (uint4 *)p->device,
                                                        host_blocks, 7919);
        *out_bytes = (double)HOST_BYTES;
    } else if (strcmp(what, "h2d") == 0) {
        TRY_CUDA(
            cudaMemcpyAsync(p->device, p->host, HOST_BYTES, cudaMemcpyHostToDevice, p->stream));
        *out_bytes = (double)HOST_BYTES;
    } else {
        TRY_CUDA(
            cudaMemcpyAsync(p->host, p->device, HOST_BYTES, cudaMemcpyDeviceToHost, p->stream));
        *out_bytes = (double)HOST_BYTES;
    }
    return cuda_launched(what);
}

status measure(const cuda_device *d, probe_buffers *p, const char *what, bool host, double *out_gbs)
{
    TRY(take(p, host));
    double best = 0.0;
    for (int i = 0; i <= PASSES; i++) { /* the first warms up */
        double bytes = 0.0;
        float ms = 0.0f;
        TRY_CUDA(cudaEventRecord(p->from, p->stream));
        TRY(one_pass(d, p, what, &bytes));
        TRY_CUDA(cudaEventRecord(p->to, p->stream));
        TRY_CUDA(cudaEventSynchronize(p->to));
        TRY_CUDA(cudaEventElapsedTime(&ms, p->from, p->to));
        const double gbs = bytes * 1e-6 / (double)ms;
        if (i > 0 && gbs > best) best = gbs;
    }
    *out_gbs = best;
    return STATUS_OK;
}

/* ---- NVML ------------------------------------------------------------------------------------ */

typedef int (*nvml_plain)(void);
typedef int (*nvml_handle)(const char *bus, void **out_device);
typedef int (*nvml_uint)(void *device, unsigned *out);
typedef int (*nvml_clock)(void *device, int kind, unsigned *out);
typedef int (*nvml_pair)(void *device, unsigned *out_now, unsigned *out_pending);
typedef int (*nvml_long)(void *device, unsigned long long *out);

enum { NVML_CLOCK_SM = 1, NVML_CLOCK_MEM = 2 };

/* STATUS_UNSUPPORTED: the driver's library does not tell. */
status nvml_read(void *library, void *device, const char *what, double *out_value)
{
    static const struct {
        const char *what, *symbol;
        int clock; /* -1: takes none */
    } plain[] = {
        {"clock", "nvmlDeviceGetClockInfo", NVML_CLOCK_SM},
        {"clock_max", "nvmlDeviceGetMaxClockInfo", NVML_CLOCK_SM},
        {"memory_clock", "nvmlDeviceGetClockInfo", NVML_CLOCK_MEM},
        {"memory_clock_max", "nvmlDeviceGetMaxClockInfo", NVML_CLOCK_MEM},
        {"pcie_gen", "nvmlDeviceGetCurrPcieLinkGeneration", -1},
        {"pcie_gen_max", "nvmlDeviceGetMaxPcieLinkGeneration", -1},
        {"pcie_width", "nvmlDeviceGetCurrPcieLinkWidth", -1},
        {"pcie_width_max", "nvmlDeviceGetMaxPcieLinkWidth", -1},
    };
    unsigned value = 0;
    int failed = 1;
    for (const auto &row : plain) {
        if (strcmp(row.what, what) != 0) continue;
        void *symbol = dlsym(library, row.symbol);
        if (!symbol) return STATUS_UNSUPPORTED;
        failed = row.clock < 0 ? ((nvml_uint)symbol)(device, &value)
                               : ((nvml_clock)symbol)(device, row.clock, &value);
    }
    if (strcmp(what, "throttle") == 0) {
        unsigned long long reasons = 0;
        void *symbol = dlsym(library, "nvmlDeviceGetCurrentClocksThrottleReasons");
        if (!symbol) return STATUS_UNSUPPORTED;
        failed = ((nvml_long)symbol)(device, &reasons);
        value = (unsigned)reasons;
    }
    if (failed != 0) return STATUS_UNSUPPORTED;
    *out_value = value;
    return STATUS_OK;
}

status nvml_probe(const cuda_device *d, const char *what, double *out_value)
{
    void *library = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!library) return STATUS_UNSUPPORTED;
    void *start = dlsym(library, "nvmlInit_v2"), *stop = dlsym(library, "nvmlShutdown");
    void *find = dlsym(library, "nvmlDeviceGetHandleByPciBusId_v2"), *device = nullptr;
    char bus[32] = "";
    status done = STATUS_UNSUPPORTED;
    if (start && stop && find &&
        cudaDeviceGetPCIBusId(bus, sizeof bus, d->ordinal) == cudaSuccess &&
        ((nvml_plain)start)() == 0) {
        if (((nvml_handle)find)(bus, &device) == 0)
            done = nvml_read(library, device, what, out_value);
        (void)((nvml_plain)stop)();
    }
    (void)dlclose(library);
    return done;
}

bool is_one_of(const char *what, const char *const *names)
{
    for (; *names; names++)
        if (strcmp(*names, what) == 0) return true;
    return false;
}

} // namespace

extern "C" status cuda_probe(kern_backend *backend, const char *what, double *out_value)
{
    static const char *const on_device[] = {"read", "copy", "gather", nullptr};
    static const char *const on_link[] = {"host_gather", "h2d", "d2h", nullptr};
    const cuda_device *d = cuda_device_of(backend);
    if (is_one_of(what, on_device) || is_one_of(what, on_link)) {
        probe_buffers p = {};
        const status done = measure(d, &p, what, is_one_of(what, on_link), out_value);
        give(&p);
        return done;
    }
    size_t free_bytes = 0, all_bytes = 0;
    if (strcmp(what, "memory") == 0 || strcmp(what, "memory_free") == 0) {
        TRY_CUDA(cudaMemGetInfo(&free_bytes, &all_bytes));
        *out_value = (double)(strcmp(what, "memory") == 0 ? all_bytes : free_bytes);
        return STATUS_OK;
    }
    if (strcmp(what, "stream_bytes") == 0) {
        *out_value = (double)CUDA_WORKSPACE_BYTES + CUDA_COUNTERS * sizeof(uint32_t);
        return STATUS_OK;
    }
    if (strcmp(what, "ecc") == 0) {
        int on = 0;
        TRY_CUDA(cudaDeviceGetAttribute(&on, cudaDevAttrEccEnabled, d->ordinal));
        *out_value = on;
        return STATUS_OK;
    }
    return nvml_probe(d, what, out_value);
}
