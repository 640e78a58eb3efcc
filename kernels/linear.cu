/* kernels/linear.cu - matrix products through cublasLt, with bits of our own definition.
 *
 * Activations are rounded to bf16 first (the stated difference from the CPU backends, whose
 * products take float32), unless who made them has done so; sums and results are float32; residual
 * and scale ride in the epilogue.
 *
 * Bits: a product is one chain over ascending K of tensor-core steps of 16 (mma.m16n8k16, float32
 * sum, the last step filled with zeros), then scale and residual. own_kernel is that definition.
 * Every algorithm of cublasLt that leaves K whole was seen to have the same bits (H200, cublasLt
 * 13.1, 2026-11-30), so which of them runs is a matter of speed alone: linear_algo.cu measures them
 * by classes of rows when a shape of weights is first packed, and takes none that does not match
 * own_kernel bit by bit; where none does, own_kernel itself runs. So neither the batch, nor a row's
 * place in it, nor what was measured, shows, and the numerics id names the definition. On a device
 * or library where none matches at open, a weight keeps the library's first choice for 64 rows at
 * every number of rows, and the id names the library. Rows to round that do not fit the workspace,
 * and more rows than a shape was tried with, go in waves. */
#include "kernels/linear.cuh"

extern "C" status cuda_linear(kern_stream *stream, const kern_linear_args *args);

namespace
{

constexpr uintptr_t ALIGNMENT = 256; /* of rows, as cublasLt supposes where it is not told */

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

/* Elements i and i + 1 of a row, zeros beyond the matrix. */
__device__ __forceinline__ uint32_t pair_at(const uint16_t *m, uint32_t rows, uint32_t k,
                                            uint32_t row, uint32_t i)
{
    if (row >= rows || i >= k) return 0;
    const uint16_t *p = m + (uint64_t)row * k + i;
    return p[0] | (i + 1 < k ? (uint32_t)p[1] << 16 : 0u);
}

constexpr uint32_t OWN_WARPS = 4;

/* The definition: 16 rows x 8 columns a warp, straight from memory. */
__global__ void __launch_bounds__(32 * OWN_WARPS)
    own_kernel(cuda_product p, cuda_products form, uint32_t row_tiles)
{
    cuda_begin();
    const uint32_t g = threadIdx.x % 32 / 4, t = 2 * (threadIdx.x % 4);
    const uint32_t row = blockIdx.x % row_tiles * 16;
    const uint32_t column = (blockIdx.x / row_tiles * OWN_WARPS + threadIdx.x / 32) * 8;
    float c[4] = {};
    for (uint32_t i = 0; i < p.k; i += 16) {
        const uint32_t a[4] = {pair_at(p.x, p.rows, p.k, row + g, i + t),
                               pair_at(p.x, p.rows, p.k, row + 8 + g, i + t),
                               pair_at(p.x, p.rows, p.k, row + g, i + 8 + t),
                               pair_at(p.x, p.rows, p.k, row + 8 + g, i + 8 + t)};
        mma_16x8x16(c, a, pair_at(p.weight, p.n, p.k, column + g, i + t),
                    pair_at(p.weight, p.n, p.k, column + g, i + 8 + t));
    }
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t r = row + g + (i & 2 ? 8 : 0), n = column + t + (i & 1);
        if (r >= p.rows || n >= p.n) continue;
        const uint64_t at = r * p.stride + n;
        p.out[at] = cuda_product_end(form, p.scale, c[i], p.residual ? p.residual + at : nullptr);
    }
}

status run_product(cuda_stream *stream, const cuda_product &p, const cuda_algo &algo)
{
    if (algo.own) {
        cuda_product_own(stream, p);
        return cuda_launched("linear");
    }
    const cublasStatus_t done = cuda_product_library(stream, p, &algo.algo);
    if (done == CUBLAS_STATUS_SUCCESS) return STATUS_OK;
    cuda_device *d = cuda_device_of(stream->base.backend);
    const bool refused = done == CUBLAS_STATUS_NOT_SUPPORTED || done == CUBLAS_STATUS_INVALID_VALUE;
    if (refused &&
        d->products != PRODUCTS_LIBRARY) { /* columns or a stride it was not tried with */
        cuda_product_slow(d, p.n, p.k);
        cuda_product_own(stream, p);
        return cuda_launched("linear");
    }
    return FAIL(GPU, "a product of %u rows with a weight of %u x %u: %s", p.rows, p.n, p.k,
                cublasLtGetStatusString(done));
}

} // namespace

cublasStatus_t cuda_product_library(cuda_stream *stream, const cuda_product &p,
                                    const cublasLtMatmulAlgo_t *algo)
{
    cuda_device *d = cuda_device_of(stream->base.backend);
    cuda_layouts l;
    const cublasStatus_t laid = l.init(p.n, p.k, p.rows, p.stride);
    if (laid != CUBLAS_STATUS_SUCCESS) return laid;
    const float beta = p.residual ? 1.0f : 0.0f;
    return cublasLtMatmul(d->blas, &d->matmul, &p.scale, p.weight, &l.weight, p.x, &l.x, &beta,
                          p.residual ? p.residual : p.out, &l.out, p.out, &l.out, algo,
                          stream->workspace, LINEAR_WORKSPACE_BYTES, stream->handle);
}

void cuda_product_own(cuda_stream *stream, const cuda_product &p)
{
    const uint32_t row_tiles = cuda_blocks(p.rows, 16);
    cuda_launch(stream, {dim3(cuda_blocks(p.n, 8 * OWN_WARPS) * row_tiles), 32 * OWN_WARPS},
                own_kernel, p, cuda_device_of(stream->base.backend)->products, row_tiles);
}

void cuda_product_slow(cuda_device *d, uint32_t n, uint32_t k)
{
    if (d->slow_told) return;
    d->slow_told = true;
    LOG(WARN,
        "cublasLt %zu has no algorithm with the bits of numerics %s for a weight of %u x %u at "
        "some numbers of rows: such products go by a slow kernel",
        cublasLtGetVersion(), d->numerics_id, n, k);
}

extern "C" void cuda_weight_free(kern_weight *weight)
{
    cuda_weight *w = reinterpret_cast<cuda_weight *>(weight);
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
    if (done == STATUS_OK) done = cuda_linear_shape(backend, w->base.n, k, w->base.data, &w->shape);
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
    const cuda_weight *w = reinterpret_cast<const cuda_weight *>(args->weight);
    const uint32_t k = w->base.k;
    const bool rounded = args->x_bf16 != nullptr;
    uint16_t *room = (uint16_t *)(s->workspace + LINEAR_WORKSPACE_BYTES);
    uint64_t wave = (CUDA_WORKSPACE_BYTES - LINEAR_WORKSPACE_BYTES) / ((uint64_t)k * 2);
    if (rounded || wave > w->shape->rows_most) wave = w->shape->rows_most;
    if (wave == 0) return FAIL(UNSUPPORTED, "linear on CUDA: rows of %u do not fit", k);
    if ((uintptr_t)args->x_bf16 % ALIGNMENT != 0)
        return FAIL(INVALID, "linear on CUDA: rows in bf16 that do not begin at %u bytes",
                    (uint32_t)ALIGNMENT);
    for (uint64_t row = 0; row < args->rows; row += wave) {
        const uint32_t rows = (uint32_t)(args->rows - row < wave ? args->rows - row : wave);
        if (!rounded) {
            round_rows(s, args->x + row * args->x_stride, args->x_stride, k, rows, room);
            TRY(cuda_launched("linear"));
        }
        cuda_product p = {};
        p.weight = w->base.data, p.x = rounded ? args->x_bf16 + row * k : room;
        p.residual = args->residual ? args->residual + row * args->out_stride : nullptr;
        p.out = args->out + row * args->out_stride, p.stride = args->out_stride;
        p.n = kern_linear_columns(args), p.k = k, p.rows = rows, p.scale = args->scale;
        cuda_algo in_place = {}; /* no algorithm was tried with that */
        in_place.own = true;
        const bool tried =
            p.residual != p.out || cuda_device_of(stream->backend)->products == PRODUCTS_LIBRARY;
        TRY(run_product(s, p, tried ? w->shape->algo[linear_class(rows)] : in_place));
    }
    return STATUS_OK;
}
