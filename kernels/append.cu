/* kernels/append.cu - a row's K and V, rounded to bf16, into row_pos % 64 of its slot.
 * Bound: launch; one CTA a (row, KV head). */
#include "kernels/rows.cuh"

namespace
{

__global__ void __launch_bounds__(128) append_kernel(const __grid_constant__ kern_append_args a)
{
    cuda_begin_short();
    const uint32_t row = blockIdx.x, head = blockIdx.y;
    append_row(a, row, head, a.slot[(uint64_t)row * a.kv_heads + head], 128);
}

} // namespace

extern "C" status cuda_append(kern_stream *stream, const kern_append_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const dim3 grid(args->rows, args->kv_heads);
    cuda_launch(cuda_stream_of(stream), {grid, 128}, append_kernel, *args);
    return cuda_launched("append");
}
