/* kernels/candidates.cu - what to prefetch: the best unforced blocks by importance at the next
 * position that the table does not hold, best first. One CTA a (sequence, KV head). Bound: latency;
 * it runs between steps. Comparisons only, so the outcome is the CPU's. */
#include "kernels/cuda.cuh"
#include "kernels/selector.h"

namespace
{

constexpr uint32_t THREADS = 256, BLOCKS_MAX = 24000;

struct candidate_list {
    int32_t *block;
    uint32_t count, max;
};

/* Larger key, larger value, ties to the smaller block. Never 0. */
__device__ __forceinline__ unsigned long long rank_key(float value, uint32_t block)
{
    if (value == 0.0f) value = 0.0f;
    uint32_t bits = __float_as_uint(value);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (unsigned long long)bits << 32 | (UINT32_MAX - block);
}

/* All threads: add those of storage blocks first .. last that are complete, absent and not listed.
 */
__device__ void offer_storage(const kern_candidates_args &a, uint64_t place, uint32_t first,
                              uint32_t last, int32_t next, candidate_list &list)
{
    for (uint32_t s = first; s <= last; s++) {
        if ((uint64_t)(s + 1) * KERN_BLOCK > (uint64_t)next || s >= a.table.max_blocks) continue;
        if (a.table.entry_of[place * a.table.max_blocks + s] >= 0) continue;
        bool known = false;
        for (uint32_t i = threadIdx.x; i < list.count; i += THREADS)
            known |= list.block[i] == (int32_t)s;
        if (__syncthreads_or(known) || list.count >= list.max) continue;
        if (threadIdx.x == 0) list.block[list.count] = (int32_t)s;
        list.count++;
        __syncthreads();
    }
}

/* The same for selection block b. */
__device__ void offer(const kern_candidates_args &a, const kern_selector &selector, uint64_t place,
                      uint32_t b, int32_t next, candidate_list &list)
{
    const uint32_t first = b * selector.block / KERN_BLOCK;
    const uint32_t last = (b * selector.block + selector.block - 1) / KERN_BLOCK;
    offer_storage(a, place, first, last, next, list);
}

__device__ unsigned long long take_best(unsigned long long *key, uint32_t count,
                                        unsigned long long *shared)
{
    unsigned long long best = 0;
    for (uint32_t b = threadIdx.x; b < count; b += THREADS)
        best = key[b] > best ? key[b] : best;
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) {
        const unsigned long long other = __shfl_xor_sync(~0u, best, i);
        best = other > best ? other : best;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = best;
    __syncthreads();
    for (uint32_t w = 0; w < THREADS / 32; w++)
        best = shared[w] > best ? shared[w] : best;
    const uint32_t b = UINT32_MAX - (uint32_t)best;
    if (best != 0 && threadIdx.x == b % THREADS) key[b] = 0;
    return best;
}

__global__ void __launch_bounds__(THREADS)
    candidates_kernel(const __grid_constant__ kern_candidates_args a)
{
    cuda_begin();
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    __shared__ unsigned long long shared[THREADS / 32];
    unsigned long long *key = reinterpret_cast<unsigned long long *>(shared_bytes);
    const kern_summary &s = a.summary;
    const uint32_t i = blockIdx.x, head = blockIdx.y;
    const kern_selector selector = a.selectors[a.selector[i]];
    const int32_t next = a.next_pos[i];
    const uint32_t current = selector_current(&selector, next);
    const uint64_t place = (uint64_t)a.seq[i] * s.kv_heads + head;
    candidate_list list = {a.block + ((uint64_t)i * s.kv_heads + head) * a.max_candidates, 0,
                           a.max_candidates};
    const uint16_t *uc = s.uc + place * s.max_windows;
    const uint32_t visible =
        min(selector_windows_at(selector.window, selector.stride, next - 1), s.max_windows);
    uint32_t forced = 0;
    for (uint32_t b = 0; b <= current; b++) {
        if (!selector_forced(&selector, b, current)) continue;
        forced++;
        if (a.forced) offer(a, selector, place, b, next, list);
    }
    if (a.forced)
        offer_storage(a, place, selector_near_first(&selector, next), (uint32_t)next / KERN_BLOCK,
                      next, list);
    for (uint32_t b = threadIdx.x; b <= current; b += THREADS) {
        key[b] = 0;
        if (selector_forced(&selector, b, current)) continue;
        uint32_t lo, hi;
        selector_block_windows(&selector, b, visible, &lo, &hi);
        float most = -INFINITY;
        for (uint32_t j = lo; j < hi; j++) {
            const float u = bf16_float(uc[j]);
            if (u > most) most = u;
        }
        key[b] = rank_key(most, b);
    }
    __syncthreads();
    uint32_t want = 0;
    if (selector_takes_all(&selector, next))
        want = current + 1 - forced;
    else if (selector.fill_by_importance)
        want = selector_fill(&selector, forced, a.forced);
    for (uint32_t k = 0; k < want && list.count < list.max; k++) {
        const unsigned long long best = take_best(key, current + 1, shared);
        if (best == 0) break;
        offer(a, selector, place, UINT32_MAX - (uint32_t)best, next, list);
    }
    for (uint32_t k = list.count + threadIdx.x; k < list.max; k += THREADS)
        list.block[k] = -1;
}

} // namespace

extern "C" status cuda_candidates(kern_stream *stream, const kern_candidates_args *args)
{
    if (args->n == 0) return STATUS_OK;
    /* A selection block has at least 16 tokens. */
    const uint32_t blocks = args->summary.max_tokens / 16 + 1;
    if (blocks > BLOCKS_MAX)
        return FAIL(UNSUPPORTED, "candidates on CUDA has up to %u tokens, not %u", BLOCKS_MAX * 16,
                    args->summary.max_tokens);
    TRY_CUDA(cudaFuncSetAttribute(candidates_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)(BLOCKS_MAX * sizeof(unsigned long long))));
    const dim3 grid(args->n, args->summary.kv_heads);
    cuda_launch(cuda_stream_of(stream), {grid, THREADS, blocks * sizeof(unsigned long long)},
                candidates_kernel, *args);
    return cuda_launched("candidates");
}
