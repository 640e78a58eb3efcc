/* kernels/cuda.cuh - what the .cu files share: the C contract seen from C++, the device's and the
 * stream's own state, error handling, and a few device functions.
 *
 * Threads: as kernels.h: a backend and its streams belong to one thread.
 * Memory:  a stream owns one workspace, taken at stream_create; an op that needs more than it holds
 *          works through its rows in waves, so no op allocates.
 * Bits:    every reduction below has a shape that depends on the operation's own geometry only,
 *          never on the number of rows or on how work was spread over the device. */
#ifndef KERNELS_CUDA_CUH
#define KERNELS_CUDA_CUH

#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_runtime.h>

/* The contract is C17. These words mean the same to C++ with the same layout; atomics are reached
 * through pointers with explicit orderings only. */
#define _Atomic
#define _Noreturn [[noreturn]]
#define _Static_assert static_assert
extern "C" {
#include "kernels/backend.h"
}
#undef _Atomic
#undef _Noreturn
#undef _Static_assert

enum {
    CUDA_WORKSPACE_BYTES =
        96 << 20,            /* attend's partials, linear's rounded rows and cublasLt's own */
    CUDA_BESIDE_CTAS = 16,   /* of gather, which attention leaves room for */
    CUDA_COUNTERS = 1 << 16, /* arrival counters, zero between launches */
    CUDA_SCALARS = 64,
    CUDA_MARKS = 8192, /* a step has about 900 ops, two marks each */
};

/* Whose bits matrix products have (linear.cu). */
enum cuda_products {
    PRODUCTS_LIBRARY, /* one algorithm of cublasLt's a weight */
    PRODUCTS_FUSED,   /* the definition's; scale and residual in one fused operation */
    PRODUCTS_APART,   /* the definition's; scaled, rounded, then added */
};

struct cuda_shape;

struct cuda_device {
    int ordinal, sms, major, minor;
    uint64_t l2_bytes; /* of the second-level cache */
    /* cuStreamWaitValue32 of the driver, or NULL: until (int)(*at - value) >= 0 with flags 0 */
    int (*wait_value)(cudaStream_t stream, uint64_t at, uint32_t value, unsigned flags);
    bool early; /* kernels may begin before the one ahead of them has ended: cuda_launch */
    int64_t timer_offset_ns; /* device's global timer minus the host's monotonic clock */
    cublasLtHandle_t blas;
    cublasLtMatmulDescOpaque_t matmul; /* of every product */
    cuda_products products;
    cuda_shape *shapes; /* of weights packed so far */
    bool slow_told;     /* that a product goes by the kernel that defines its bits */
    cudaEvent_t zero;   /* what marks count from, at zero_ns of the host's clock */
    uint64_t zero_ns;
    uint32_t marked; /* streams that have marks */
    char numerics_id[64];
};

/* Events around the ops of a watched stream, from one sync to the next. */
struct cuda_marks {
    cudaEvent_t event[CUDA_MARKS];
    uint32_t op[CUDA_MARKS]; /* of what follows the event; KERN_OP_COUNT: nothing that is an op */
    uint32_t made, used, left_out;
};

struct cuda_stream {
    kern_stream base; /* first: a kern_stream * is a cuda_stream * */
    cudaStream_t handle;
    uint8_t *workspace;                    /* CUDA_WORKSPACE_BYTES */
    uint32_t *counters;                    /* CUDA_COUNTERS */
    uint32_t *scalars;                     /* CUDA_SCALARS: totals one launch leaves for the next */
    cudaEvent_t place[KERN_STREAM_PLACES]; /* what another stream waits for */
    cuda_marks marks;
};

/* A kern_weight's `data` is device memory [n, k] row-major bf16. */
struct cuda_weight {
    kern_weight base;
    const cuda_shape *shape;
};

static inline cuda_stream *cuda_stream_of(kern_stream *stream)
{
    return reinterpret_cast<cuda_stream *>(stream);
}

static inline cuda_device *cuda_device_of(const kern_backend *backend)
{
    return static_cast<cuda_device *>(backend->own);
}

/* The call's own error becomes GPU, logged with what was tried. */
#define TRY_CUDA(call)                                                                             \
    do {                                                                                           \
        cudaError_t try_cuda_ = (call);                                                            \
        if (try_cuda_ != cudaSuccess)                                                              \
            return FAIL(GPU, "%s: %s", #call, cudaGetErrorString(try_cuda_));                      \
    } while (0)

static inline status cuda_launched(const char *op)
{
    cudaError_t error = cudaGetLastError();
    if (error != cudaSuccess) return FAIL(GPU, "launch of %s: %s", op, cudaGetErrorString(error));
    return STATUS_OK;
}

/* A wait's deadline on the device's timer; UINT64_MAX: the host promises to answer. */
static inline uint64_t cuda_deadline(const kern_stream *stream, const kern_wait_args *wait)
{
    const int64_t left = (int64_t)(wait->deadline_ns - clock_now(&wait->host->clock));
    const int64_t now = (int64_t)clock_now(&clock_monotonic);
    if (wait->deadline_ns == UINT64_MAX) return UINT64_MAX;
    return (uint64_t)(now + cuda_device_of(stream->backend)->timer_offset_ns + left);
}

static inline uint32_t cuda_blocks(uint64_t items, uint32_t each)
{
    return (uint32_t)((items + each - 1) / each);
}

/* ---- device functions ------------------------------------------------------------------------ */

#ifdef __CUDACC__

/* First statement of every kernel that cuda_launch starts: all that the launches before it wrote
 * is there from here on, and nothing of global memory may be touched ahead of it, also by threads
 * that only leave. Every kernel waits here for the one before it to end, which waited in turn, so
 * what is older has ended too. */
__device__ __forceinline__ void cuda_begin()
{
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/* cuda_begin of a kernel of a few microseconds that waits for nobody else: the one after it may
 * take what room is left as soon as every CTA of this one has its own, and waits there. */
__device__ __forceinline__ void cuda_begin_short()
{
    cuda_begin();
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* cuda_begin, unless all that is read up to a cuda_begin further on was there when the launch ahead
 * of this one began. Read it past the first-level cache (__ldcg), which may be older. */
__device__ __forceinline__ void cuda_begin_unless(bool there)
{
    if (!there) cuda_begin();
}

/* Begins to copy into the second-level cache; from and bytes are multiples of 16. */
__device__ __forceinline__ void cuda_bring_nearer(const void *from, uint32_t bytes)
{
#if __CUDA_ARCH__ >= 900
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;"
                 :
                 : "l"(__cvta_generic_to_global(from)), "r"(bytes)
                 : "memory");
#else
    (void)from, (void)bytes;
#endif
}

constexpr float CUDA_LOG2E = 1.4426950408889634f;

__device__ __forceinline__ float bf16_float(uint16_t b)
{
    return __uint_as_float((uint32_t)b << 16);
}

/* Nearest, ties to even, as kern_f32_to_bf16. */
__device__ __forceinline__ uint16_t float_bf16(float f)
{
    return __bfloat16_as_ushort(__float2bfloat16_rn(f));
}

__device__ __forceinline__ uint32_t bf16_pack2(float low, float high)
{
    return float_bf16(low) | (uint32_t)float_bf16(high) << 16;
}

__device__ __forceinline__ uint2 bf16_pack4(float4 v)
{
    return make_uint2(bf16_pack2(v.x, v.y), bf16_pack2(v.z, v.w));
}

__device__ __forceinline__ float fast_exp2(float x)
{
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

/* Sum over the warp by a fixed butterfly: every lane ends with the same bits. */
__device__ __forceinline__ float warp_sum(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1)
        x += __shfl_xor_sync(~0u, x, i);
    return x;
}

__device__ __forceinline__ float warp_max(float x)
{
#pragma unroll
    for (int i = 16; i > 0; i >>= 1)
        x = fmaxf(x, __shfl_xor_sync(~0u, x, i));
    return x;
}

__device__ __forceinline__ uint32_t shared_address(const void *p)
{
    return (uint32_t)__cvta_generic_to_shared(p);
}

/* ---- words of memory that host and device share ---- */

/* A word that the host wrote last of what it stands for. By one thread of a CTA, which then passes
 * it on: acquiring loads of one SM stand in line, half a microsecond each over PCIe. */
__device__ __forceinline__ int32_t load_acquire(const int32_t *from)
{
    int32_t v;
    asm volatile("ld.acquire.sys.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

/* A word that another kernel wrote last of what it stands for. */
__device__ __forceinline__ uint32_t load_acquire_device(const uint32_t *from)
{
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

__device__ __forceinline__ uint64_t load_acquire_device64(const uint64_t *from)
{
    uint64_t v;
    asm volatile("ld.acquire.gpu.global.u64 %0, [%1];" : "=l"(v) : "l"(from) : "memory");
    return v;
}

/* After all that the thread, and those behind a barrier before it, have written. */
__device__ __forceinline__ void store_release_device(uint32_t *to, uint32_t v)
{
    asm volatile("st.release.gpu.global.u32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}

/* Without an order: for looking again and again, by many threads at once. */
__device__ __forceinline__ int32_t load_relaxed(const int32_t *from)
{
    int32_t v;
    asm volatile("ld.relaxed.sys.global.s32 %0, [%1];" : "=r"(v) : "l"(from) : "memory");
    return v;
}

/* load_acquire by the whole CTA: every thread gets the word, and sees what it stands for. */
__device__ __forceinline__ int32_t cta_load_acquire(const int32_t *from)
{
    __shared__ int32_t v;
    if (threadIdx.x == 0) v = load_acquire(from);
    __syncthreads();
    return v;
}

/* Nanoseconds of the device's timer. */
__device__ __forceinline__ uint64_t device_now()
{
    uint64_t t;
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
    return t;
}

/* The state of an arrival when it has come, or at the deadline; what it stands for is there after
 * a __threadfence_system. */
__device__ __forceinline__ int32_t await_state(const int32_t *from, uint64_t deadline_ns)
{
    int32_t state;
    while ((state = load_relaxed(from)) == STATUS_PENDING && device_now() < deadline_ns)
        __nanosleep(500);
    return state;
}

/* 16 bytes from global to shared memory without passing through registers. */
__device__ __forceinline__ void copy_async16(uint32_t to, const void *from)
{
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16;" ::"r"(to), "l"(from));
}

/* The same, or 16 zeros when bytes is 0. */
__device__ __forceinline__ void copy_async16_or_zero(uint32_t to, const void *from, uint32_t bytes)
{
    asm volatile("cp.async.cg.shared.global.L2::256B [%0], [%1], 16, %2;" ::"r"(to), "l"(from),
                 "r"(bytes));
}

__device__ __forceinline__ void copy_async_commit()
{
    asm volatile("cp.async.commit_group;");
}

template <int PENDING> __device__ __forceinline__ void copy_async_wait()
{
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ void load_matrix4(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void load_matrix4_transposed(uint32_t (&r)[4], uint32_t address)
{
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

/* c[16 x 8] += a[16 x 16] b[16 x 8], bf16 in, float32 out. */
__device__ __forceinline__ void mma_16x8x16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0,
                                            uint32_t b1)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

/* x = high + low + an error below 2^-17 |x|: two bf16 products then carry what one float32 would.
 */
__device__ __forceinline__ void split_bf16(float x, float y, uint32_t &high, uint32_t &low)
{
    __nv_bfloat162 h = __floats2bfloat162_rn(x, y);
    __nv_bfloat162 l = __floats2bfloat162_rn(x - __low2float(h), y - __high2float(h));
    high = *reinterpret_cast<uint32_t *>(&h);
    low = *reinterpret_cast<uint32_t *>(&l);
}

/* ---- launching ------------------------------------------------------------------------------- */

struct cuda_grid {
    dim3 grid, block;
    size_t shared = 0;    /* bytes of dynamic shared memory */
    uint32_t cluster = 0; /* CTAs of a cluster along x; 0: no clusters */
};

/* Launch a kernel that starts with cuda_begin; cuda_launched then tells whether it could be. Where
 * the device knows how, it is set up while the kernel before it ends (CUDA Programming Guide,
 * programmatic dependent launch). Behind anything else, a copy or an event, and ahead of launches
 * without the attribute, as cublasLt's, the order is the usual one.
 *
 * All take the largest share of an SM's memory as shared memory, whatever they use of it: the share
 * can only change while nothing runs on the SM, so attention would not come in beside a gather. */
template <typename... P, typename... A>
void cuda_launch(const cuda_stream *stream, const cuda_grid &g, void (*kernel)(P...),
                 const A &...args)
{
    cudaLaunchAttribute attributes[3] = {};
    cudaLaunchConfig_t config = {};
    config.gridDim = g.grid;
    config.blockDim = g.block;
    config.dynamicSmemBytes = g.shared;
    config.stream = stream->handle;
    config.attrs = attributes;
    cudaLaunchAttribute &shared = attributes[config.numAttrs++];
    shared.id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    shared.val.sharedMemCarveout = cudaSharedmemCarveoutMaxShared;
    if (cuda_device_of(stream->base.backend)->early) {
        cudaLaunchAttribute &early = attributes[config.numAttrs++];
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
    }
    if (g.cluster != 0) {
        cudaLaunchAttribute &cluster = attributes[config.numAttrs++];
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim.x = g.cluster;
        cluster.val.clusterDim.y = cluster.val.clusterDim.z = 1;
    }
    (void)cudaLaunchKernelEx(&config, kernel, args...);
}

#endif
#endif
