/* kernels/rope.cu - half-split rotation in place. Bound: launch; one thread a pair. */
#include "kernels/rows.cuh"

namespace
{

__global__ void __launch_bounds__(256) rope_kernel(const __grid_constant__ kern_rope_args a)
{
    cuda_begin_short();
    const uint32_t i = blockIdx.y * 256 + threadIdx.x;
    if (i < a.heads * (a.head_dim / 2)) (void)rope_pair(a, blockIdx.x, i);
}

} // namespace

extern "C" status cuda_rope(kern_stream *stream, const kern_rope_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const dim3 grid(args->rows, cuda_blocks((uint64_t)args->heads * (args->head_dim / 2), 256));
    cuda_launch(cuda_stream_of(stream), {grid, 256}, rope_kernel, *args);
    return cuda_launched("rope");
}
