/* kernels/locate.cu - pool slots of blocks, by the block table or by a prompt's list of homes.
 * Bound: launch; one thread an entry of the selection. */
#include "kernels/rows.cuh"

namespace
{

__global__ void __launch_bounds__(128) locate_kernel(const __grid_constant__ kern_locate_args a)
{
    cuda_begin_short();
    const uint32_t list = blockIdx.x, heads = a.table.kv_heads;
    const uint32_t row = list / heads, head = list % heads;
    const uint32_t count = a.block ? (uint32_t)a.count[list] : 1;
    for (uint32_t i = threadIdx.x; i < count; i += 128) {
        const uint64_t at = (uint64_t)list * a.max_select + i;
        const int32_t block = a.block ? a.block[at] : a.row_pos[row] / KERN_BLOCK;
        a.slot[at] = slot_of(a, row, head, block);
    }
}

} // namespace

extern "C" status cuda_locate(kern_stream *stream, const kern_locate_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    cuda_launch(cuda_stream_of(stream), {args->rows * args->table.kv_heads, 128}, locate_kernel,
                *args);
    return cuda_launched("locate");
}
