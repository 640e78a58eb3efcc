/* kernels/swiglu.cu - silu(gate) * up. Bound: memory; four elements a thread where aligned. */
#include "kernels/cuda.cuh"

namespace
{

__device__ __forceinline__ float swiglu(float g, float u)
{
    return g / (1.0f + fast_exp2(-g * CUDA_LOG2E)) * u;
}

__global__ void __launch_bounds__(256) swiglu4_kernel(const __grid_constant__ kern_swiglu_args a)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.y;
    const uint32_t i = 4 * (blockIdx.x * 256 + threadIdx.x);
    if (i >= a.ffn) return;
    const float4 g = *(const float4 *)(a.gate + row * a.in_stride + i);
    const float4 u = *(const float4 *)(a.up + row * a.in_stride + i);
    const float4 out =
        make_float4(swiglu(g.x, u.x), swiglu(g.y, u.y), swiglu(g.z, u.z), swiglu(g.w, u.w));
    if (a.out_bf16)
        *(uint2 *)(a.out_bf16 + row * a.ffn + i) = bf16_pack4(out);
    else
        *(float4 *)(a.out + row * a.ffn + i) = out;
}

__global__ void __launch_bounds__(256) swiglu_kernel(const __grid_constant__ kern_swiglu_args a)
{
    cuda_begin_short();
    const uint64_t row = blockIdx.y;
    for (uint32_t i = blockIdx.x * 256 + threadIdx.x; i < a.ffn; i += gridDim.x * 256) {
        const float g = a.gate[row * a.in_stride + i], u = a.up[row * a.in_stride + i];
        if (a.out_bf16)
            a.out_bf16[row * a.ffn + i] = float_bf16(swiglu(g, u));
        else
            a.out[row * a.ffn + i] = swiglu(g, u);
    }
}

} // namespace

extern "C" status cuda_swiglu(kern_stream *stream, const kern_swiglu_args *args)
{
    const uintptr_t to = args->out_bf16 ? (uintptr_t)args->out_bf16 : (uintptr_t)args->out;
    const uintptr_t places = (uintptr_t)args->gate | (uintptr_t)args->up | to;
    const bool wide = places % 16 == 0 && args->ffn % 4 == 0 && args->in_stride % 4 == 0;
    for (uint32_t row = 0; row < args->rows; row += 32768) { /* a grid's y is 16 bits wide */
        kern_swiglu_args part = *args;
        part.gate += row * args->in_stride;
        part.up += row * args->in_stride;
        if (args->out_bf16)
            part.out_bf16 += (uint64_t)row * args->ffn;
        else
            part.out += (uint64_t)row * args->ffn;
        part.rows = args->rows - row < 32768 ? args->rows - row : 32768;
        const dim3 grid(cuda_blocks(args->ffn, wide ? 1024 : 256), part.rows);
        if (wide)
            cuda_launch(cuda_stream_of(stream), {grid, 256}, swiglu4_kernel, part);
        else
            cuda_launch(cuda_stream_of(stream), {grid, 256}, swiglu_kernel, part);
    }
    return cuda_launched("swiglu");
}
