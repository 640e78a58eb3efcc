/* kernels/linear.cu - matrix products through cublasLt with one algorithm a weight.
 *
 * Activations are rounded to bf16 first (the stated difference from the CPU backends, whose
 * products take float32), unless who made them has done so; sums and results are float32; residual
 * and scale ride in the epilogue.
 *
 * Bits: the algorithm is chosen once, at pack, from the library's own ranking for 64 rows, among
 * those that neither split K nor reduce in another order; it then serves every number of rows. An
 * output is one accumulation along K in one tile, so neither the batch nor a row's place in it
 * shows. The table of algorithms belongs to the numerics id. Rows to round that do not fit the
 * workspace go in waves. */
#include "kernels/cuda.cuh"

#include <cstdlib>

extern "C" status cuda_linear(kern_stream *stream, const kern_linear_args *args);

namespace
{

constexpr uint64_t BLAS_WORKSPACE_BYTES = 32ull << 20;
constexpr uint32_t ALGO_ROWS = 64;
constexpr uintptr_t ALIGNMENT = 256; /* of rows, as cublasLt supposes where it is not told */

#define TRY_BLAS(call)                                                                             \
    do {                                                                                           \
        cublasStatus_t try_blas_ = (call);                                                         \
        if (try_blas_ != CUBLAS_STATUS_SUCCESS)                                                    \
            return FAIL(GPU, "%s: %s", #call, cublasLtGetStatusString(try_blas_));                 \
    } while (0)

__global__ void __launch_bounds__(256)
    round_kernel(const float *x, uint64_t stride, uint32_t k, uint16_t *to)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.y;
    for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < k; i += gridDim.x * 256)
        to[row * k + i] = float_bf16(x[row * stride + i]);
}

/* Eight values a thread, where all rows are aligned. */
__global__ void __launch_bounds__(128)
    round8_kernel(const float *x, uint64_t stride, uint32_t k, uint16_t *to)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.y;
    const uint32_t i = 8 * (blockIdx.x * 128 + threadIdx.x);
    if (i >= k) return;
    const float4 a = *(const float4 *)(x + row * stride + i);
    const float4 b = *(const float4 *)(x + row * stride + i + 4);
    const uint2 low = bf16_pack4(a), high = bf16_pack4(b);
    *(uint4 *)(to + row * k + i) = make_uint4(low.x, low.y, high.x, high.y);
}

/* float32 rows to dense bf16 ones; `to` is 16-byte aligned. */
void round_rows(cuda_stream *stream, const float *x, uint64_t stride, uint32_t k, uint32_t rows,
                uint16_t *to)
{
    if ((uintptr_t)x % 16 == 0 && stride % 4 == 0 && k % 8 == 0)
        cuda_launch(stream, {dim3(cuda_blocks(k, 1024), rows), 128}, round8_kernel, x, stride, k,
                    to);
    else
        cuda_launch(stream, {dim3(cuda_blocks(k, 256), rows), 256}, round_kernel, x, stride, k, to);
}

/* Column-major views: out^T [n, rows] = weight^T [k, n] transposed times x^T [k, rows]. */
struct layouts {
    cublasLtMatrixLayout_t weight = nullptr, x = nullptr, out = nullptr;
    ~layouts()
    {
        if (weight) cublasLtMatrixLayoutDestroy(weight);
        if (x) cublasLtMatrixLayoutDestroy(x);
        if (out) cublasLtMatrixLayoutDestroy(out);
    }
    status create(uint32_t n, uint32_t k, uint64_t rows, uint64_t out_stride)
    {
        TRY_BLAS(cublasLtMatrixLayoutCreate(&weight, CUDA_R_16BF, k, n, k));
        TRY_BLAS(cublasLtMatrixLayoutCreate(&x, CUDA_R_16BF, k, rows, k));
        TRY_BLAS(cublasLtMatrixLayoutCreate(&out, CUDA_R_32F, n, rows, (int64_t)out_stride));
        return STATUS_OK;
    }
};

/* Split-K or a reduction across tiles would order sums by what else is in flight. */
bool whole_k(const cublasLtMatmulAlgo_t *algo)
{
    int32_t split = 0;
    uint32_t scheme = 0;
    size_t written = 0;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_SPLITK_NUM, &split,
                                             sizeof split, &written) != CUBLAS_STATUS_SUCCESS)
        return false;
    if (cublasLtMatmulAlgoConfigGetAttribute(algo, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme,
                                             sizeof scheme, &written) != CUBLAS_STATUS_SUCCESS)
        return false;
    return split <= 1 && scheme == CUBLASLT_REDUCTION_SCHEME_NONE;
}

status choose_algo(cublasLtHandle_t blas, cuda_weight *w)
{
    layouts l;
    TRY(l.create(w->base.n, w->base.k, ALGO_ROWS, w->base.n));
    cublasLtMatmulPreference_t preference;
    TRY_BLAS(cublasLtMatmulPreferenceCreate(&preference));
    const uint64_t bytes = BLAS_WORKSPACE_BYTES;
    const uint32_t scheme = CUBLASLT_REDUCTION_SCHEME_NONE;
    (void)cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                               &bytes, sizeof bytes);
    (void)cublasLtMatmulPreferenceSetAttribute(
        preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &scheme, sizeof scheme);
    cublasLtMatmulHeuristicResult_t found[16];
    int count = 0;
    const cublasStatus_t asked = cublasLtMatmulAlgoGetHeuristic(
        blas, w->matmul, l.weight, l.x, l.out, l.out, preference, 16, found, &count);
    cublasLtMatmulPreferenceDestroy(preference);
    if (asked != CUBLAS_STATUS_SUCCESS)
        return FAIL(GPU, "cublasLt ranks no algorithm for a weight of %u x %u: %s", w->base.n,
                    w->base.k, cublasLtGetStatusString(asked));
    for (int i = 0; i < count; i++) {
        if (found[i].state != CUBLAS_STATUS_SUCCESS || !whole_k(&found[i].algo)) continue;
        w->algo = found[i].algo;
        w->workspace_bytes = found[i].workspaceSize;
        return STATUS_OK;
    }
    return FAIL(GPU, "cublasLt has no algorithm without split K for a weight of %u x %u", w->base.n,
                w->base.k);
}

/* Rows [row, row + rows) of the product, with x in bf16. */
status multiply(kern_stream *stream, const kern_linear_args *args, const uint16_t *x, uint64_t row,
                uint32_t rows)
{
    cuda_stream *s = cuda_stream_of(stream);
    const cuda_weight *w = reinterpret_cast<const cuda_weight *>(args->weight);
    layouts l;
    TRY(l.create(kern_linear_columns(args), w->base.k, rows, args->out_stride));
    float *out = args->out + row * args->out_stride;
    const float *add = args->residual ? args->residual + row * args->out_stride : out;
    const float alpha = args->scale, beta = args->residual ? 1.0f : 0.0f;
    TRY_BLAS(cublasLtMatmul(cuda_device_of(stream->backend)->blas, w->matmul, &alpha, w->base.data,
                            l.weight, x, l.x, &beta, add, l.out, out, l.out, &w->algo, s->workspace,
                            w->workspace_bytes, s->handle));
    return STATUS_OK;
}

/* Products now, with and without a sum, of few and of many rows: cublasLt loads a kernel at its
 * first use, which must not be in a step (see module.cu). */
status load_algo(kern_backend *backend, const cuda_weight *w)
{
    kern_stream *stream = nullptr;
    float *x = nullptr;
    TRY(backend->device->stream_create(backend, &stream));
    const uint32_t most = 256;
    const uint64_t bytes = ((uint64_t)w->base.k + w->base.n) * most * sizeof(float);
    status done = cudaMalloc((void **)&x, bytes) == cudaSuccess
                      ? STATUS_OK
                      : FAIL(NO_MEMORY, "no device memory to try a weight");
    if (done == STATUS_OK && cudaMemset(x, 0, bytes) != cudaSuccess)
        done = FAIL(GPU, "cudaMemset failed");
    kern_linear_args args = {};
    args.weight = &w->base;
    args.x = x;
    args.out = x + (uint64_t)w->base.k * most;
    args.x_stride = w->base.k;
    args.out_stride = w->base.n;
    args.scale = 1.0f;
    for (int i = 0; i < 4 && done == STATUS_OK; i++) {
        args.rows = i & 1 ? most : 1;
        args.residual = i & 2 ? args.out : nullptr;
        done = cuda_linear(stream, &args);
    }
    if (done == STATUS_OK) done = backend->device->stream_sync(stream);
    (void)cudaFree(x);
    backend->device->stream_destroy(stream);
    return done;
}

} // namespace

extern "C" void cuda_weight_free(kern_weight *weight)
{
    cuda_weight *w = reinterpret_cast<cuda_weight *>(weight);
    if (w->matmul) cublasLtMatmulDescDestroy(w->matmul);
    (void)cudaFree(w->base.data);
    delete w;
}

extern "C" status cuda_weight_pack(kern_backend *backend, const kern_matrix *parts,
                                   uint32_t part_count, uint32_t k, kern_weight **out_weight)
{
    cuda_weight *w = new cuda_weight();
    w->base.backend = backend;
    w->base.k = k;
    for (uint32_t i = 0; i < part_count; i++)
        w->base.n += parts[i].n;
    w->base.bytes = (uint64_t)w->base.n * k * 2;
    status done = STATUS_OK;
    if (cudaMalloc((void **)&w->base.data, w->base.bytes) != cudaSuccess) {
        w->base.data = nullptr;
        done = FAIL(NO_MEMORY, "no %llu bytes of device memory for a weight of %u x %u",
                    (unsigned long long)w->base.bytes, w->base.n, k);
    }
    uint64_t at = 0;
    for (uint32_t i = 0; i < part_count && done == STATUS_OK; i++) {
        const uint64_t count = (uint64_t)parts[i].n * k;
        const cudaError_t copied =
            cudaMemcpy(w->base.data + at, parts[i].data, count * 2, cudaMemcpyDefault);
        if (copied != cudaSuccess)
            done = FAIL(GPU, "copy of a weight: %s", cudaGetErrorString(copied));
        at += count;
    }
    if (done == STATUS_OK && cudaStreamSynchronize(cudaStreamLegacy) != cudaSuccess)
        done = FAIL(GPU, "the copy of a weight failed"); /* our streams do not wait for that one */
    const cublasOperation_t transposed = CUBLAS_OP_T;
    if (done == STATUS_OK &&
        (cublasLtMatmulDescCreate(&w->matmul, CUBLAS_COMPUTE_32F, CUDA_R_32F) !=
             CUBLAS_STATUS_SUCCESS ||
         cublasLtMatmulDescSetAttribute(w->matmul, CUBLASLT_MATMUL_DESC_TRANSA, &transposed,
                                        sizeof transposed) != CUBLAS_STATUS_SUCCESS))
        done = FAIL(GPU, "cublasLt describes no product for a weight of %u x %u", w->base.n, k);
    if (done == STATUS_OK) done = choose_algo(cuda_device_of(backend)->blas, w);
    if (done == STATUS_OK) done = load_algo(backend, w);
    if (done != STATUS_OK) {
        cuda_weight_free(&w->base);
        return done;
    }
    *out_weight = &w->base;
    return STATUS_OK;
}

extern "C" status cuda_linear(kern_stream *stream, const kern_linear_args *args)
{
    cuda_stream *s = cuda_stream_of(stream);
    const uint32_t k = args->weight->k;
    if (args->x_bf16) {
        if ((uintptr_t)args->x_bf16 % ALIGNMENT != 0)
            return FAIL(INVALID, "linear on CUDA: rows in bf16 that do not begin at %u bytes",
                        (uint32_t)ALIGNMENT);
        return args->rows == 0 ? STATUS_OK : multiply(stream, args, args->x_bf16, 0, args->rows);
    }
    uint16_t *x = (uint16_t *)(s->workspace + BLAS_WORKSPACE_BYTES);
    uint64_t wave = (CUDA_WORKSPACE_BYTES - BLAS_WORKSPACE_BYTES) / ((uint64_t)k * 2);
    if (wave > 32768) wave = 32768;
    if (wave == 0) return FAIL(UNSUPPORTED, "linear on CUDA: rows of %u do not fit", k);
    for (uint64_t row = 0; row < args->rows; row += wave) {
        const uint32_t rows = (uint32_t)(args->rows - row < wave ? args->rows - row : wave);
        round_rows(s, args->x + row * args->x_stride, args->x_stride, k, rows, x);
        TRY(cuda_launched("linear"));
        TRY(multiply(stream, args, x, row, rows));
    }
    return STATUS_OK;
}
