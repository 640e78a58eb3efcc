/* kernels/rope.cu - half-split rotation in place. Bound: launch; one thread a pair.
 *
 * (a, b) -> (a cos - b sin, b cos + a sin): one rounding for the product and one for the fma, as
 * the CPU backends, so the bits are theirs. Source: RoFormer, arXiv 2104.09864, in its half-split
 * form. */
#include "kernels/cuda.cuh"

namespace
{

__global__ void __launch_bounds__(256) rope_kernel(const __grid_constant__ kern_rope_args a)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.x;
    const uint32_t half = a.head_dim / 2, pairs = a.heads * half;
    const uint64_t table = (uint64_t)a.row_pos[row] * half;
    const uint32_t i = blockIdx.y * 256 + threadIdx.x, d = i % half;
    if (i >= pairs) return;
    float *x = a.x + row * a.row_stride + (uint64_t)(i / half) * a.head_dim + d;
    const float c = a.cos[table + d], s = a.sin[table + d], low = x[0], high = x[half];
    x[0] = fmaf(-high, s, low * c);
    x[half] = fmaf(low, s, high * c);
}

} // namespace

extern "C" status cuda_rope(kern_stream *stream, const kern_rope_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const dim3 grid(args->rows, cuda_blocks((uint64_t)args->heads * (args->head_dim / 2), 256));
    cuda_launch(cuda_stream_of(stream), {grid, 256}, rope_kernel, *args);
    return cuda_launched("rope");
}
