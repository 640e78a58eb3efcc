/* kernels/rmsnorm.cu - root mean square norm, all in float32. Bound: memory; one CTA a row.
 *
 * Bits: thread t sums x[t], x[t + 256], ...; a butterfly over the warp, then the 8 warps in order.
 */
#include "kernels/cuda.cuh"

namespace
{

constexpr int THREADS = 256;

__global__ void __launch_bounds__(THREADS)
    rmsnorm_kernel(const __grid_constant__ kern_rmsnorm_args a)
{
    __shared__ float part[THREADS / 32];
    const uint64_t row = blockIdx.x;
    const float *x = a.x + row * a.hidden;
    float *out = a.out + row * a.hidden;
    float sum = 0.0f;
    for (uint32_t i = threadIdx.x; i < a.hidden; i += THREADS)
        sum = fmaf(x[i], x[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++)
        sum += part[w];
    const float scale = 1.0f / sqrtf(sum / (float)a.hidden + a.eps);
    for (uint32_t i = threadIdx.x; i < a.hidden; i += THREADS)
        out[i] = x[i] * scale * bf16_float(a.weight[i]);
}

} // namespace

extern "C" status cuda_rmsnorm(kern_stream *stream, const kern_rmsnorm_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    rmsnorm_kernel<<<args->rows, THREADS, 0, cuda_stream_of(stream)->handle>>>(*args);
    return cuda_launched("rmsnorm");
}
