/* kernels/gate.cu - output gate: x = add + x / (1 + e^-gate), one gate a query head. Bound: memory;
 * a block of threads takes one row's 256 values at a time. */
#include "kernels/cuda.cuh"

namespace
{

__global__ void __launch_bounds__(256) gate_kernel(const __grid_constant__ kern_gate_args a)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.y, width = (uint64_t)a.heads * a.head_dim;
    for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < width; i += gridDim.x * 256) {
        const float g = a.gate[row * a.gate_stride + i / a.head_dim];
        const float gate = 1.0f / (1.0f + fast_exp2(-g * CUDA_LOG2E));
        const uint64_t at = row * width + i;
        const float x = a.add == nullptr ? a.x[at] * gate : fmaf(a.x[at], gate, a.add[at]);
        if (a.out_bf16)
            a.out_bf16[at] = float_bf16(x);
        else
            a.x[at] = x;
    }
}

} // namespace

extern "C" status cuda_gate(kern_stream *stream, const kern_gate_args *args)
{
    const uint32_t width = args->heads * args->head_dim;
    for (uint32_t row = 0; row < args->rows; row += 32768) { /* a grid's y is 16 bits wide */
        kern_gate_args part = *args;
        part.x += (uint64_t)row * width;
        if (part.add != nullptr) part.add += (uint64_t)row * width;
        if (part.out_bf16 != nullptr) part.out_bf16 += (uint64_t)row * width;
        part.gate += row * args->gate_stride;
        part.rows = args->rows - row < 32768 ? args->rows - row : 32768;
        const dim3 grid(cuda_blocks(width, 256), part.rows);
        cuda_launch(cuda_stream_of(stream), {grid, 256}, gate_kernel, part);
    }
    return cuda_launched("gate");
}
