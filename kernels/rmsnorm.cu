/* kernels/rmsnorm.cu - root mean square norm, all in float32. Bound: memory; one CTA a row, whose
 * values are all asked for before the first is used.
 *
 * Bits: thread t sums x[t], x[t + 256], ...; a butterfly over the warp, then the 8 warps in order.
 */
#include "kernels/cuda.cuh"

namespace
{

constexpr uint32_t THREADS = 256, HELD = 16; /* values of a thread that are under way at once */

/* x[first + t], x[first + t + 256], ...: zeros beyond the row, which change no sum. */
__device__ __forceinline__ void load_held(float (&v)[HELD], const float *x, uint32_t first,
                                          uint32_t hidden)
{
#pragma unroll
    for (uint32_t i = 0; i < HELD; i++) {
        const uint32_t at = first + i * THREADS + threadIdx.x;
        v[i] = at < hidden ? x[at] : 0.0f;
    }
}

__device__ __forceinline__ void load_weights(uint16_t (&w)[HELD], const uint16_t *weight,
                                             uint32_t first, uint32_t hidden)
{
#pragma unroll
    for (uint32_t i = 0; i < HELD; i++) {
        const uint32_t at = first + i * THREADS + threadIdx.x;
        w[i] = at < hidden ? weight[at] : 0;
    }
}

__global__ void __launch_bounds__(THREADS)
    rmsnorm_kernel(const __grid_constant__ kern_rmsnorm_args a)
{
    cuda_begin_short();
    __shared__ float part[THREADS / 32];
    const uint64_t row = blockIdx.x;
    const float *x = a.x + row * a.hidden;
    float sum = 0.0f, v[HELD];
    uint16_t w[HELD];
    load_weights(w, a.weight, 0, a.hidden); /* under way while the sum is made */
    for (uint32_t first = 0; first < a.hidden; first += HELD * THREADS) {
        load_held(v, x, first, a.hidden);
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++)
            sum = fmaf(v[i], v[i], sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (uint32_t i = 0; i < THREADS / 32; i++)
        sum += part[i];
    const float scale = 1.0f / sqrtf(sum / (float)a.hidden + a.eps);
    for (uint32_t first = 0; first < a.hidden; first += HELD * THREADS) {
        if (a.hidden > HELD * THREADS) { /* else still there */
            load_held(v, x, first, a.hidden);
            load_weights(w, a.weight, first, a.hidden);
        }
#pragma unroll
        for (uint32_t i = 0; i < HELD; i++) {
            const uint32_t at = first + i * THREADS + threadIdx.x;
            if (at >= a.hidden) continue;
            const float out = v[i] * scale * bf16_float(w[i]);
            if (a.out_bf16)
                a.out_bf16[row * a.hidden + at] = float_bf16(out);
            else
                a.out[row * a.hidden + at] = out;
        }
    }
}

} // namespace

extern "C" status cuda_rmsnorm(kern_stream *stream, const kern_rmsnorm_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    cuda_launch(cuda_stream_of(stream), {args->rows, THREADS}, rmsnorm_kernel, *args);
    return cuda_launched("rmsnorm");
}
