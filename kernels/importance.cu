/* kernels/importance.cu - u, the query-agnostic score of a token: A softplus(delta . v), per KV
 * head, over the values of all heads of the token (NOSA, arXiv 2510.13602). One warp a (row, KV
 * head).
 *
 * Bits: lane l sums values l, l + 32, ...; then a butterfly. softplus in double, x itself
 * beyond 20. */
#include "kernels/cuda.cuh"

namespace
{

__global__ void __launch_bounds__(128)
    importance_kernel(const __grid_constant__ kern_importance_args a)
{
    cuda_begin_short();
    const uint64_t item = (uint64_t)blockIdx.x * 4 + threadIdx.x / 32;
    if (item >= (uint64_t)a.rows * a.kv_heads) return;
    const uint64_t row = item / a.kv_heads;
    const uint32_t head = (uint32_t)(item % a.kv_heads), width = a.kv_heads * a.head_dim;
    if (!a.a) {
        if (threadIdx.x % 32 == 0) a.out[item] = 0;
        return;
    }
    const float *v = a.v + row * a.row_stride;
    const uint16_t *delta = a.delta + (uint64_t)head * width;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x % 32; i < width; i += 32)
        sum = fmaf(bf16_float(float_bf16(v[i])), bf16_float(delta[i]), sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 != 0) return;
    const double x = sum;
    const double soft = x > 20.0 ? x : fmax(x, 0.0) + log1p(exp(-fabs(x)));
    a.out[item] = float_bf16(bf16_float(a.a[head]) * (float)soft);
}

} // namespace

extern "C" status cuda_importance(kern_stream *stream, const kern_importance_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const uint32_t blocks = cuda_blocks((uint64_t)args->rows * args->kv_heads, 4);
    cuda_launch(cuda_stream_of(stream), {blocks, 128}, importance_kernel, *args);
    return cuda_launched("importance");
}
