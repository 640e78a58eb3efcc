/* kernels/module.cu - the CUDA backend as a loadable module: open, memory, streams, and the one
 * symbol that the host program looks up.
 *
 * The module links nothing of the program that loads it: log lines and failed checks go out through
 * kern_module_host, which is given at open. */
#include "kernels/linear.cuh"
#include "kernels/module.h"

#include <cstdarg>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <pthread.h>
#include <unistd.h>

extern "C" {
#define X(op) status cuda_##op(kern_stream *stream, const kern_##op##_args *args);
KERN_ALL_OPS(X)
#undef X
status cuda_weight_pack(kern_backend *backend, const kern_matrix *parts, uint32_t part_count,
                        uint32_t k, kern_weight **out_weight);
void cuda_weight_free(kern_weight *weight);
status cuda_probe(kern_backend *backend, const char *what, double *out_value);
status cuda_tell(kern_stream *stream, int32_t *flag);
}

namespace
{

kern_module_host host;

/* Bumped whenever a kernel's bits change. */
constexpr int KERNELS_VERSION = 3;

/* The driver's own library is not linked: it is the host's. */
void find_wait_value(cuda_device *d)
{
    void *found = nullptr;
    cudaDriverEntryPointQueryResult result = cudaDriverEntryPointSymbolNotFound;
    (void)cudaGetDriverEntryPointByVersion("cuStreamWaitValue32", &found, 12000, cudaEnableDefault,
                                           &result);
    if (result != cudaDriverEntryPointSuccess) found = nullptr;
    d->wait_value = reinterpret_cast<decltype(d->wait_value)>(found);
}

__global__ void timer_kernel(uint64_t *out)
{
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(*out));
}

/* The device's timer against the host's monotonic clock: the tightest of a few round trips. */
status measure_timer(cuda_device *d)
{
    uint64_t *seen = nullptr;
    TRY_CUDA(cudaHostAlloc((void **)&seen, sizeof *seen, cudaHostAllocMapped));
    uint64_t best = UINT64_MAX;
    for (int i = 0; i < 8; i++) {
        const uint64_t before = clock_now(&clock_monotonic);
        timer_kernel<<<1, 1, 0, cudaStreamPerThread>>>(seen);
        if (cudaStreamSynchronize(cudaStreamPerThread) != cudaSuccess) break;
        const uint64_t after = clock_now(&clock_monotonic);
        if (after - before >= best) continue;
        best = after - before;
        d->timer_offset_ns = (int64_t)(*seen - (before + (after - before) / 2));
    }
    (void)cudaFreeHost(seen);
    if (best == UINT64_MAX)
        return FAIL(GPU, "the first kernel failed: %s", cudaGetErrorString(cudaGetLastError()));
    return STATUS_OK;
}

/* cudaMemset returns before it has run, on a stream that ours (non-blocking) do not wait for: what
 * the caller next copies or fills here could be cleared after the fact. So it is waited for. */
status device_alloc(kern_backend *backend, uint64_t bytes, void **out_memory)
{
    (void)backend;
    void *memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes ? bytes : 64);
    if (error == cudaErrorMemoryAllocation)
        return FAIL(NO_MEMORY, "no %llu bytes of device memory", (unsigned long long)bytes);
    if (error != cudaSuccess) return FAIL(GPU, "cudaMalloc: %s", cudaGetErrorString(error));
    cudaError_t cleared = cudaMemset(memory, 0, bytes ? bytes : 64);
    if (cleared == cudaSuccess) cleared = cudaStreamSynchronize(cudaStreamLegacy);
    if (cleared != cudaSuccess) {
        (void)cudaFree(memory);
        return FAIL(GPU, "cudaMemset: %s", cudaGetErrorString(cleared));
    }
    *out_memory = memory;
    return STATUS_OK;
}

void device_free(kern_backend *backend, void *memory)
{
    (void)backend;
    (void)cudaFree(memory);
}

struct clear_job {
    uint8_t *memory;
    uint64_t bytes;
};

void *clear(void *argument)
{
    const clear_job *job = (const clear_job *)argument;
    memset(job->memory, 0, job->bytes);
    return nullptr;
}

/* A host tier is tens of GiB: seconds for one thread. */
void clear_by_many(void *memory, uint64_t bytes)
{
    constexpr uint64_t LEAST = 64 << 20; /* a thread */
    constexpr uint64_t MOST = 16;        /* threads */
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    uint64_t count = bytes / LEAST < MOST ? bytes / LEAST : MOST;
    if (cores > 0 && count > (uint64_t)cores) count = (uint64_t)cores;
    if (count == 0) count = 1;
    clear_job job[MOST];
    pthread_t thread[MOST];
    bool started[MOST];
    for (uint64_t i = 0; i < count; i++) {
        const uint64_t from = bytes / count * i,
                       to = i + 1 < count ? bytes / count * (i + 1) : bytes;
        job[i] = {(uint8_t *)memory + from, to - from};
        started[i] = i + 1 < count && pthread_create(&thread[i], nullptr, clear, &job[i]) == 0;
        if (!started[i]) (void)clear(&job[i]);
    }
    for (uint64_t i = 0; i < count; i++) {
        if (started[i]) (void)pthread_join(thread[i], nullptr);
    }
}

status device_alloc_shared(kern_backend *backend, uint64_t bytes, void **out_memory)
{
    (void)backend;
    void *memory = nullptr;
    const cudaError_t error = cudaHostAlloc(&memory, bytes ? bytes : 64, cudaHostAllocMapped);
    if (error != cudaSuccess)
        return FAIL(NO_MEMORY,
                    "no %llu bytes of pinned host memory (%s): ask for less of it, or raise the "
                    "host's memory or its limit of locked memory (ulimit -l)",
                    (unsigned long long)bytes, cudaGetErrorString(error));
    clear_by_many(memory, bytes);
    *out_memory = memory;
    return STATUS_OK;
}

void device_free_shared(kern_backend *backend, void *memory)
{
    (void)backend;
    (void)cudaFreeHost(memory);
}

/* Host memory that is not pinned: the driver may stage it, or read it in place after the call. */
bool is_pageable(const void *memory)
{
    cudaPointerAttributes about = {};
    if (cudaPointerGetAttributes(&about, memory) == cudaSuccess)
        return about.type == cudaMemoryTypeUnregistered;
    (void)cudaGetLastError();
    return true;
}

/* The caller may reuse pageable memory when this returns, so such a copy is waited for: between
 * steps and before a step's first plan, never behind kern_wait. */
status stream_copy(kern_stream *stream, void *to, const void *from, uint64_t bytes)
{
    const cudaStream_t handle = cuda_stream_of(stream)->handle;
    TRY_CUDA(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDefault, handle));
    if (is_pageable(from)) TRY_CUDA(cudaStreamSynchronize(handle));
    return STATUS_OK;
}

status stream_fill(kern_stream *stream, void *to, int byte, uint64_t bytes)
{
    TRY_CUDA(cudaMemsetAsync(to, byte, bytes, cuda_stream_of(stream)->handle));
    return STATUS_OK;
}

void stream_destroy(kern_stream *stream)
{
    cuda_stream *s = cuda_stream_of(stream);
    if (s->handle) (void)cudaStreamDestroy(s->handle);
    for (cudaEvent_t place : s->place)
        if (place) (void)cudaEventDestroy(place);
    for (uint32_t i = 0; i < s->marks.made; i++)
        (void)cudaEventDestroy(s->marks.event[i]);
    cuda_device_of(s->base.backend)->marked -= s->marks.used > 0;
    (void)cudaFree(s->workspace);
    (void)cudaFree(s->counters);
    delete s;
}

bool create_places(cuda_stream *s)
{
    for (cudaEvent_t &place : s->place)
        if (cudaEventCreateWithFlags(&place, cudaEventDisableTiming) != cudaSuccess) return false;
    return true;
}

status stream_create(kern_backend *backend, kern_stream **out_stream)
{
    cuda_stream *s = new cuda_stream();
    s->base.backend = backend;
    if (cudaStreamCreateWithFlags(&s->handle, cudaStreamNonBlocking) != cudaSuccess ||
        !create_places(s) ||
        cudaMalloc((void **)&s->workspace, CUDA_WORKSPACE_BYTES) != cudaSuccess ||
        cudaMalloc((void **)&s->counters, CUDA_COUNTERS * sizeof(uint32_t)) != cudaSuccess ||
        cudaMemset(s->counters, 0, CUDA_COUNTERS * sizeof(uint32_t)) != cudaSuccess ||
        cudaDeviceSynchronize() != cudaSuccess) {
        stream_destroy(&s->base);
        return FAIL(NO_MEMORY, "a stream needs %d MiB of device memory for its workspace",
                    CUDA_WORKSPACE_BYTES >> 20);
    }
    *out_stream = &s->base;
    return STATUS_OK;
}

/* The first mark of all: the stream is at rest, so that the device is where the host is. */
bool mark_zero(cuda_stream *s)
{
    cuda_device *d = cuda_device_of(s->base.backend);
    if (!d->zero && cudaEventCreate(&d->zero) != cudaSuccess) return false;
    d->zero_ns = clock_now(&clock_monotonic);
    return cudaEventRecord(d->zero, s->handle) == cudaSuccess;
}

void stream_mark(kern_stream *stream, uint32_t op)
{
    cuda_stream *s = cuda_stream_of(stream);
    cuda_device *d = cuda_device_of(stream->backend);
    cuda_marks &m = s->marks;
    const bool made =
        m.used < m.made ||
        (m.made < CUDA_MARKS && cudaEventCreate(&m.event[m.made]) == cudaSuccess && ++m.made > 0);
    if (!made || (d->marked == 0 && !mark_zero(s)) ||
        cudaEventRecord(m.event[m.used], s->handle) != cudaSuccess) {
        m.left_out += op != KERN_OP_COUNT;
        return;
    }
    d->marked += m.used == 0;
    m.op[m.used++] = op;
}

/* What the marks since the last sync have seen, to whoever watches. */
void tell_marks(cuda_stream *s)
{
    cuda_marks &m = s->marks;
    cuda_device *d = cuda_device_of(s->base.backend);
    const kern_watch *watch = s->base.watch;
    if (watch && watch->ran) watch->ran(watch->self, KERN_OP_COUNT, 0, m.left_out);
    for (uint32_t i = 0; i + 1 < m.used && watch && watch->ran; i++) {
        float begin = 0.0f, end = 0.0f; /* milliseconds */
        if (m.op[i] == KERN_OP_COUNT) continue;
        if (cudaEventElapsedTime(&begin, d->zero, m.event[i]) != cudaSuccess ||
            cudaEventElapsedTime(&end, d->zero, m.event[i + 1]) != cudaSuccess)
            break;
        watch->ran(watch->self, m.op[i], d->zero_ns + (uint64_t)(begin * 1e6),
                   d->zero_ns + (uint64_t)(end * 1e6));
    }
    d->marked -= m.used > 0;
    m.used = m.left_out = 0;
}

status stream_sync(kern_stream *stream)
{
    cuda_stream *s = cuda_stream_of(stream);
    TRY_CUDA(cudaStreamSynchronize(s->handle));
    if (s->marks.used > 0 || s->marks.left_out > 0) tell_marks(s);
    return STATUS_OK;
}

status stream_poll(kern_stream *stream)
{
    const cudaError_t error = cudaStreamQuery(cuda_stream_of(stream)->handle);
    if (error == cudaErrorNotReady) return STATUS_PENDING;
    if (error != cudaSuccess)
        return FAIL(GPU, "an operation failed on the device: %s", cudaGetErrorString(error));
    return STATUS_OK;
}

status stream_place(kern_stream *stream, uint32_t place)
{
    cuda_stream *s = cuda_stream_of(stream);
    TRY_CUDA(cudaEventRecord(s->place[place], s->handle));
    return STATUS_OK;
}

status stream_after(kern_stream *stream, kern_stream *of, uint32_t place)
{
    const cudaEvent_t first = cuda_stream_of(of)->place[place];
    TRY_CUDA(cudaStreamWaitEvent(cuda_stream_of(stream)->handle, first, 0));
    return STATUS_OK;
}

void backend_close(kern_backend *backend)
{
    cuda_device *d = cuda_device_of(backend);
    cuda_linear_forget(backend);
    if (d->blas) (void)cublasLtDestroy(d->blas);
    if (d->zero) (void)cudaEventDestroy(d->zero);
    delete d;
    delete backend;
}

const kern_ops ops = {
#define X(op) cuda_##op,
    KERN_ALL_OPS(X)
#undef X
};

/* In the order of kern_device_ops. */
const kern_device_ops device_ops = {
    device_alloc,  device_free,   device_alloc_shared, device_free_shared, stream_copy,
    stream_fill,   stream_create, stream_destroy,      stream_sync,        stream_poll,
    stream_place,  stream_after,  cuda_tell,           cuda_weight_pack,   cuda_weight_free,
    backend_close, cuda_probe,    stream_mark,
};

/* "cuda" is device 0, "cuda:N" device N. */
status device_number(const char *name, int count, int *out_ordinal)
{
    const char *colon = strchr(name, ':');
    char *end = nullptr;
    const long n = colon ? strtol(colon + 1, &end, 10) : 0;
    if (colon && (end == colon + 1 || *end != '\0' || n < 0))
        return FAIL(INVALID, "'%s': a device is cuda or cuda:N with a number N", name);
    if (n >= count)
        return FAIL(UNSUPPORTED, "'%s': this host has %d GPU%s, numbered from 0", name, count,
                    count == 1 ? "" : "s");
    *out_ordinal = (int)n;
    return STATUS_OK;
}

status describe_device(const char *name, kern_backend *b, cuda_device *d)
{
    int count = 0, driver = 0;
    const cudaError_t found = cudaGetDeviceCount(&count);
    (void)cudaDriverGetVersion(&driver);
    if (driver == 0)
        return FAIL(UNSUPPORTED,
                    "no GPU driver is loaded on this host: the CUDA backend needs one "
                    "that knows CUDA %d.%d (nvidia-smi shows what there is)",
                    CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    if (found == cudaErrorInsufficientDriver)
        return FAIL(UNSUPPORTED, "the GPU driver knows CUDA %d.%d, this backend needs %d.%d",
                    driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000,
                    CUDART_VERSION % 1000 / 10);
    if (found != cudaSuccess || count == 0)
        return FAIL(UNSUPPORTED, "no GPU here: %s", cudaGetErrorString(found));
    TRY(device_number(name, count, &d->ordinal));
    TRY_CUDA(cudaSetDevice(d->ordinal));
    cudaDeviceProp prop;
    TRY_CUDA(cudaGetDeviceProperties(&prop, d->ordinal));
    d->sms = prop.multiProcessorCount;
    d->major = prop.major;
    d->minor = prop.minor;
    d->l2_bytes = (uint64_t)prop.l2CacheSize;
    find_wait_value(d);
    d->early = prop.major >= 9; /* below, cuda_begin waits for nothing */
    if (prop.major < 8)
        return FAIL(UNSUPPORTED, "%s has architecture %d.%d, the CUDA backend needs 8.0 or newer",
                    prop.name, prop.major, prop.minor);
    TRY_CUDA(cudaFree(nullptr)); /* the context, now rather than in the first step */
    (void)snprintf(b->describe, sizeof b->describe, "cuda %.31s %d SMs", prop.name, d->sms);
    b->numerics_id = d->numerics_id;
    return STATUS_OK;
}

/* Products have bits of our definition, or those of this library on this device. */
void name_numerics(cuda_device *d)
{
    char products[32];
    if (d->products == PRODUCTS_LIBRARY)
        (void)snprintf(products, sizeof products, "lt%zu/%d", cublasLtGetVersion(), d->sms);
    else
        (void)snprintf(products, sizeof products, "%s",
                       d->products == PRODUCTS_FUSED ? "chain" : "chain-add");
    (void)snprintf(d->numerics_id, sizeof d->numerics_id, "cuda/%d/sm_%d%d/%s", KERNELS_VERSION,
                   d->major, d->minor, products);
}

status backend_open(const kern_config *config, kern_backend **out_backend)
{
    /* Loading a kernel at its first launch waits for the device, and the device may be in
     * wait_kernel for a fetch that the launching thread has yet to ask for. */
    (void)setenv("CUDA_MODULE_LOADING", "EAGER", 0);
    kern_backend *b = new kern_backend();
    cuda_device *d = new cuda_device();
    b->own = d;
    b->ops = &ops;
    b->device = &device_ops;
    b->host_memory = false;
    b->rounds_operands = b->attends_beside = true;
    status done = describe_device(config->backend ? config->backend : "cuda", b, d);
    if (done == STATUS_OK && cublasLtCreate(&d->blas) != CUBLAS_STATUS_SUCCESS) {
        d->blas = nullptr;
        done = FAIL(GPU, "cublasLt does not start on %s", b->describe);
    }
    if (done == STATUS_OK) done = measure_timer(d);
    if (done == STATUS_OK) done = cuda_linear_probe(b);
    if (done != STATUS_OK) {
        backend_close(b);
        return done;
    }
    name_numerics(d);
    *out_backend = b;
    return STATUS_OK;
}

uint64_t monotonic_now(void *self)
{
    (void)self;
    timespec t;
    (void)clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

} // namespace

/* ---- what the .cu files call, in this module's own copy -------------------------------------- */

extern "C" const clock_ops clock_monotonic = {monotonic_now, nullptr};

extern "C" void log_write(log_level level, const char *file, int line, const char *format, ...)
{
    char text[512];
    va_list list;
    va_start(list, format);
    (void)vsnprintf(text, sizeof text, format, list);
    va_end(list);
    if (host.log) host.log(level, file, line, text);
}

/* ---- the symbol ------------------------------------------------------------------------------ */

extern "C" __attribute__((visibility("default"))) status
kern_module_open(const kern_module_host *module_host, const kern_config *config,
                 kern_backend **out_backend)
{
    host = *module_host;
    if (host.layout != kern_module_layout())
        return FAIL(UNSUPPORTED, "kernels_cuda.so and this program were built from different "
                                 "sources: build both again");
    return backend_open(config, out_backend);
}
