/* kernels/embed.cu - rows of the embedding table, scaled. Bound: memory; one CTA a row. */
#include "kernels/cuda.cuh"

namespace
{

__global__ void __launch_bounds__(256) embed_kernel(const __grid_constant__ kern_embed_args a)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.x;
    const uint16_t *from = a.table + (uint64_t)a.ids[row] * a.hidden;
    float *to = a.out + row * a.hidden;
    for (uint32_t i = threadIdx.x; i < a.hidden; i += blockDim.x)
        to[i] = a.scale * bf16_float(from[i]);
}

} // namespace

extern "C" status cuda_embed(kern_stream *stream, const kern_embed_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    cuda_launch(cuda_stream_of(stream), {args->rows, 256}, embed_kernel, *args);
    return cuda_launched("embed");
}
