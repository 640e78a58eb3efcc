/* kernels/swiglu.cu - silu(gate) * up. Bound: memory; grid-stride over all elements. */
#include "kernels/cuda.cuh"

namespace
{

__global__ void __launch_bounds__(256) swiglu_kernel(const __grid_constant__ kern_swiglu_args a)
{
    const uint64_t row = blockIdx.y;
    for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < a.ffn; i += gridDim.x * 256) {
        const float g = a.gate[row * a.in_stride + i], u = a.up[row * a.in_stride + i];
        a.out[row * a.ffn + i] = g / (1.0f + fast_exp2(-g * CUDA_LOG2E)) * u;
    }
}

} // namespace

extern "C" status cuda_swiglu(kern_stream *stream, const kern_swiglu_args *args)
{
    for (uint32_t row = 0; row < args->rows; row += 32768) { /* a grid's y is 16 bits wide */
        kern_swiglu_args part = *args;
        part.gate += row * args->in_stride;
        part.up += row * args->in_stride;
        part.out += (uint64_t)row * args->ffn;
        part.rows = args->rows - row < 32768 ? args->rows - row : 32768;
        const dim3 grid(cuda_blocks(args->ffn, 256), part.rows);
        swiglu_kernel<<<grid, 256, 0, cuda_stream_of(stream)->handle>>>(part);
    }
    return cuda_launched("swiglu");
}
