/* kernels/importance.cu - u, the query-agnostic score of a token: A softplus(delta . v), per KV
 * head, over the values of all heads of the token (NOSA, arXiv 2510.13602). One warp a (row, KV
 * head). */
#include "kernels/rows.cuh"

namespace
{

__global__ void __launch_bounds__(128)
    importance_kernel(const __grid_constant__ kern_importance_args a)
{
    cuda_begin_short();
    const uint64_t item = (uint64_t)blockIdx.x * 4 + threadIdx.x / 32;
    if (item >= (uint64_t)a.rows * a.kv_heads) return;
    (void)importance_of(a, item / a.kv_heads, (uint32_t)(item % a.kv_heads));
}

} // namespace

extern "C" status cuda_importance(kern_stream *stream, const kern_importance_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const uint32_t blocks = cuda_blocks((uint64_t)args->rows * args->kv_heads, 4);
    cuda_launch(cuda_stream_of(stream), {blocks, 128}, importance_kernel, *args);
    return cuda_launched("importance");
}
