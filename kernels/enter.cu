/* kernels/enter.cu - locate of rows' own blocks and append to them in one launch. Bound: launch;
 * one CTA a (row, KV head). */
#include "kernels/rows.cuh"

namespace
{

__global__ void __launch_bounds__(128) enter_kernel(const __grid_constant__ kern_enter_args a)
{
    cuda_begin_short();
    const uint32_t row = blockIdx.x, head = blockIdx.y;
    const int32_t slot = slot_of(a.locate, row, head, a.locate.row_pos[row] / KERN_BLOCK);
    if (threadIdx.x == 0) a.locate.slot[(uint64_t)row * a.append.kv_heads + head] = slot;
    append_row(a.append, row, head, slot, 128);
}

} // namespace

extern "C" status cuda_enter(kern_stream *stream, const kern_enter_args *args)
{
    if (args->append.rows == 0) return STATUS_OK;
    const dim3 grid(args->append.rows, args->append.kv_heads);
    cuda_launch(cuda_stream_of(stream), {grid, 128}, enter_kernel, *args);
    return cuda_launched("enter");
}
