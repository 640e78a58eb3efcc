/* kernels/pool.cu - windows to selection blocks, then forcing. Bound: launch; one thread a block.
 */
#include "kernels/pool.cuh"

namespace
{

__global__ void __launch_bounds__(128)
    pool_kernel(const __grid_constant__ kern_pool_args a, uint32_t first_row)
{
    cuda_begin_short();
    const uint32_t row = first_row + blockIdx.z, b = blockIdx.x * 128 + threadIdx.x;
    const kern_selector selector = a.selectors[a.row_selector[row]];
    if (b <= selector_current(&selector, a.row_pos[row]) && b < a.max_select_blocks)
        pool_block(a, selector, row, blockIdx.y, b);
}

} // namespace

extern "C" status cuda_pool(kern_stream *stream, const kern_pool_args *args)
{
    for (uint32_t row = 0; row < args->rows; row += 32768) { /* a grid's z is 16 bits wide */
        const uint32_t rows = args->rows - row < 32768 ? args->rows - row : 32768;
        const dim3 grid(cuda_blocks(args->max_select_blocks, 128), args->summary.kv_heads, rows);
        cuda_launch(cuda_stream_of(stream), {grid, 128}, pool_kernel, *args, row);
    }
    return cuda_launched("pool");
}
