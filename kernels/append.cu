/* kernels/append.cu - a row's K and V, rounded to bf16, into row_pos % 64 of its slot.
 * Bound: launch; one CTA a (row, KV head). */
#include "kernels/cuda.cuh"

namespace
{

__global__ void __launch_bounds__(128) append_kernel(const __grid_constant__ kern_append_args a)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.x;
    const uint32_t head = blockIdx.y, d = a.head_dim;
    const int32_t slot = a.slot[row * a.kv_heads + head];
    if (slot < 0) return;
    uint16_t *to = (uint16_t *)a.pool + (uint64_t)slot * 2 * KERN_BLOCK * d +
                   (uint64_t)(a.row_pos[row] % KERN_BLOCK) * d;
    const float *k = a.k + row * a.row_stride + (uint64_t)head * d;
    const float *v = a.v + row * a.row_stride + (uint64_t)head * d;
    for (uint32_t i = threadIdx.x; i < d; i += 128) {
        to[i] = float_bf16(k[i]);
        to[(uint64_t)KERN_BLOCK * d + i] = float_bf16(v[i]);
    }
}

} // namespace

extern "C" status cuda_append(kern_stream *stream, const kern_append_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const dim3 grid(args->rows, args->kv_heads);
    cuda_launch(cuda_stream_of(stream), {grid, 128}, append_kernel, *args);
    return cuda_launched("append");
}
