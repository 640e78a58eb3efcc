/* kernels/digest.cu - XXH3-64 of rows of floats (a step's logits), one CTA a row.
 *
 * Bound: one read of the row; the chain of scrambles over its 1 KiB blocks, 20 ns each, weighs as
 * much. XXH3 of more than 240 bytes (see xxh3.cuh) of any number of words: whole blocks by a warp
 * each; of the rest, its stripes of 64 bytes by eight lanes, then the last 64 bytes of the row with
 * a key of their own. */
#include "kernels/xxh3.cuh"

namespace
{

constexpr uint32_t AHEAD = 4; /* blocks that a warp has under way */
constexpr uint32_t STRIPE = 64;

/* 16 bytes at a word's address. */
template <bool WIDE> __device__ __forceinline__ uint4 load_words(const uint8_t *from)
{
    if (WIDE) return *(const uint4 *)from;
    const uint32_t *w = (const uint32_t *)from;
    return make_uint4(w[0], w[1], w[2], w[3]);
}

__device__ __forceinline__ uint64_t load_lane(const uint8_t *stripe, uint32_t lane)
{
    const uint32_t *w = (const uint32_t *)stripe + 2 * lane;
    return w[0] | (uint64_t)w[1] << 32;
}

/* What a stripe adds to accumulator `lane` of eight. */
__device__ __forceinline__ uint64_t stripe_adds(const uint8_t *stripe, uint32_t lane, uint64_t key)
{
    const uint64_t x = load_lane(stripe, lane) ^ key;
    return load_lane(stripe, lane ^ 1) + (uint64_t)(uint32_t)x * (uint32_t)(x >> 32);
}

template <bool WIDE>
__device__ void sum_blocks(xxh_shared &s, xxh_sums sum, const uint8_t *row, uint32_t blocks)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = XXH_THREADS / 32;
    for (uint32_t first = warp; first < blocks; first += AHEAD * warps) {
        uint4 low[AHEAD], high[AHEAD];
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++) {
            const uint8_t *from = row + (uint64_t)(first + i * warps) * XXH_BLOCK + lane * 16;
            if (first + i * warps >= blocks) continue;
            low[i] = load_words<WIDE>(from), high[i] = load_words<WIDE>(from + 512);
        }
#pragma unroll
        for (uint32_t i = 0; i < AHEAD; i++)
            if (first + i * warps < blocks)
                xxh_block_sum(s, sum[first + i * warps], false, 0, low[i], high[i]);
    }
}

/* Lanes 0 .. 7 of warp 0: the accumulators through all blocks and the rest, then the avalanche. */
__device__ uint64_t finish(const xxh_shared &s, xxh_sums sum, const uint8_t *row, uint32_t bytes,
                           uint32_t blocks)
{
    const uint32_t lane = threadIdx.x, stripes = (bytes - 1 - blocks * XXH_BLOCK) / STRIPE;
    uint64_t acc = xxh_chain(s, sum, blocks, 0);
    for (uint32_t i = 0; i < stripes; i++)
        acc +=
            stripe_adds(row + (uint64_t)blocks * XXH_BLOCK + i * STRIPE, lane, s.secret[i + lane]);
    acc += stripe_adds(row + bytes - STRIPE, lane, xxh_key(s, 15 + lane, 8, 0)); /* byte 121 */
    return xxh_avalanche(s, acc, bytes, 0);
}

__global__ void __launch_bounds__(XXH_THREADS)
    digest_kernel(const __grid_constant__ kern_digest_args a)
{
    cuda_begin();
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    __shared__ xxh_shared s;
    xxh_sums sum = reinterpret_cast<xxh_sums>(shared_bytes);
    const uint8_t *row = (const uint8_t *)(a.x + (uint64_t)blockIdx.x * a.count);
    const uint32_t bytes = a.count * 4, blocks = (bytes - 1) / XXH_BLOCK;
    xxh_begin(s);
    if ((uintptr_t)row % 16 == 0)
        sum_blocks<true>(s, sum, row, blocks);
    else
        sum_blocks<false>(s, sum, row, blocks);
    __syncthreads();
    if (threadIdx.x >= 8) return;
    const uint64_t digest = finish(s, sum, row, bytes, blocks);
    if (threadIdx.x == 0) a.digest[blockIdx.x] = digest;
}

} // namespace

extern "C" status cuda_digest(kern_stream *stream, const kern_digest_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    if (args->count < KERN_DIGEST_MIN) /* XXH3 of up to 240 bytes is another function */
        return FAIL(UNSUPPORTED, "digest on CUDA takes rows of %d floats and more, not %u",
                    KERN_DIGEST_MIN, args->count);
    const uint32_t most = KERN_VOCAB_MAX * 4 / XXH_BLOCK * 64;
    TRY_CUDA(cudaFuncSetAttribute(digest_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)most));
    const uint32_t bytes = (args->count * 4 / XXH_BLOCK + 1) * 64;
    cuda_launch(cuda_stream_of(stream), {args->rows, XXH_THREADS, bytes}, digest_kernel, *args);
    return cuda_launched("digest");
}
