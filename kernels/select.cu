/* kernels/select.cu - which blocks a row attends to; one CTA a (row, KV head).
 *
 * The rule is NOSA's (arXiv 2510.13602): forced blocks, then the best by query score until `query`
 * are chosen, then the best of the rest by importance until `total`; ties to the smaller block; a
 * row that sees no more than it may hold takes all. The search by chunks, as SSA's released kernel
 * makes it (arXiv 2511.20102), is three such choices over ranges of blocks. NSA's sliding window
 * (arXiv 2502.11089) adds its storage blocks to the list's first part, some with an empty mask.
 * Floats are only compared: the outcome is the CPU's. With `pick` pool's work is the CTA's first,
 * where blocks are few.
 *
 * Bound: latency. Where a thread has one block at most, each ranks its key against all others, with
 * one barrier. Else top-k is a search for the k-th largest key, two bits a round below those that
 * all keys share: each thread counts its keys at or above three bounds, the counts meet by one
 * barrier. No atomics, so equal exponents (scores are much alike) cost nothing. As soon as the keys
 * between the bounds are few, they are ranked against each other in one step, smaller blocks first
 * among equals. Importance is bf16 and full of ties: when bits run out before, ties at the bound
 * are taken in ascending order by a scan. */
#include "kernels/pool.cuh"

extern "C" {
status cuda_pool(kern_stream *stream, const kern_pool_args *args);
status cuda_select(kern_stream *stream, const kern_select_args *args);
}

namespace
{

constexpr uint32_t BLOCKS_MAX = 40000, CANDIDATES = 128;
constexpr uint32_t FEW_BLOCKS = 512, FEWER_BLOCKS = 256; /* one a thread */

__host__ __device__ constexpr size_t whole_fours(uint32_t n)
{
    return ((size_t)n + 3) / 4 * 4;
}

enum part : uint8_t { PART_NONE, PART_SETTLED, PART_QUERY, PART_KEPT };

/* Blocks [first, end) whose mark is `from`: the `want` best of them get the mark `to`. */
struct mark_rule {
    uint32_t first, end, want;
    part from, to;
};

/* Larger key, larger value; NaN counts as -inf and -0 as +0. Never 0. */
__device__ __forceinline__ uint32_t rank_key(float value)
{
    if (!(value == value)) value = -INFINITY;
    if (value == 0.0f) value = 0.0f;
    const uint32_t bits = __float_as_uint(value);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

/* Which 16-token parts of a storage block are selected; whether any of them is settled. */
__device__ __forceinline__ uint32_t storage_mask(uint32_t block_tokens, const part *parts,
                                                 uint32_t current, uint32_t storage, bool &settled)
{
    uint32_t mask = 0;
    settled = false;
#pragma unroll
    for (uint32_t i = 0; i < KERN_BLOCK / 16; i++) {
        const uint32_t b = (storage * KERN_BLOCK + i * 16) / block_tokens;
        if (b > current || parts[b] == PART_NONE) continue;
        mask |= 1u << i;
        settled |= parts[b] == PART_SETTLED;
    }
    return mask;
}

template <uint32_t THREADS> struct select_cta {
    constexpr static uint32_t WARPS = THREADS / 32;

    struct select_shared {
        uint32_t warp[2][WARPS], second[2][WARPS];
        uint64_t candidate[CANDIDATES];
        uint32_t candidates;
    };

    /* Sum of one number a thread, known to all. Alternates buffers, so one barrier a call is
     * enough. */
    __device__ __forceinline__ static uint32_t cta_sum(select_shared &s, uint32_t &turn, uint32_t x)
    {
        const uint32_t total = __reduce_add_sync(~0u, x);
        if (threadIdx.x % 32 == 0) s.warp[turn][threadIdx.x / 32] = total;
        __syncthreads();
        const uint32_t lane = threadIdx.x % 32;
        const uint32_t all = __reduce_add_sync(~0u, lane < WARPS ? s.warp[turn][lane] : 0);
        turn ^= 1;
        return all;
    }

    __device__ __forceinline__ static uint32_t cta_or(select_shared &s, uint32_t &turn, uint32_t x)
    {
        const uint32_t lane = threadIdx.x % 32, any = __reduce_or_sync(~0u, x);
        if (lane == 0) s.warp[turn][threadIdx.x / 32] = any;
        __syncthreads();
        const uint32_t all = __reduce_or_sync(~0u, lane < WARPS ? s.warp[turn][lane] : 0);
        turn ^= 1;
        return all;
    }

    /* Two sums at once, in place. */
    __device__ __forceinline__ static void cta_sum_two(select_shared &s, uint32_t &turn,
                                                       uint32_t &x, uint32_t &y)
    {
        const uint32_t lane = threadIdx.x % 32;
        x = __reduce_add_sync(~0u, x);
        y = __reduce_add_sync(~0u, y);
        if (lane == 0) s.warp[turn][threadIdx.x / 32] = x, s.second[turn][threadIdx.x / 32] = y;
        __syncthreads();
        x = __reduce_add_sync(~0u, lane < WARPS ? s.warp[turn][lane] : 0);
        y = __reduce_add_sync(~0u, lane < WARPS ? s.second[turn][lane] : 0);
        turn ^= 1;
    }

    /* Sum of the numbers of lower threads, and of all. Numbers fit 16 bits each half. */
    __device__ __forceinline__ static uint32_t cta_scan(select_shared &s, uint32_t &turn,
                                                        uint32_t x, uint32_t &out_all)
    {
        const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        uint32_t up = x;
#pragma unroll
        for (int i = 1; i < 32; i <<= 1) {
            const uint32_t other = __shfl_up_sync(~0u, up, i);
            if (lane >= (uint32_t)i) up += other;
        }
        if (lane == 31) s.warp[turn][warp] = up;
        __syncthreads();
        const uint32_t w = lane < WARPS ? s.warp[turn][lane] : 0;
        out_all = __reduce_add_sync(~0u, w);
        const uint32_t below = __reduce_add_sync(~0u, lane < warp ? w : 0);
        turn ^= 1;
        return below + up - x;
    }

    /* Keys in [low, high) are few: mark the `want` best of them, and all above. */
    __device__ static void mark_ranked(select_shared &s, const uint32_t *key, const mark_rule &rule,
                                       uint64_t low, uint64_t high, uint32_t want, part *parts)
    {
        if (threadIdx.x == 0) s.candidates = 0;
        __syncthreads();
        for (uint32_t b = rule.first + threadIdx.x; b < rule.end; b += THREADS) {
            const uint32_t k = key[b];
            if (k == 0 || k < low) continue;
            if (k >= high)
                parts[b] = rule.to;
            else
                s.candidate[atomicAdd(&s.candidates, 1)] = (uint64_t)k << 32 | ~b;
        }
        __syncthreads();
        const uint32_t n = s.candidates;
        if (threadIdx.x >= n) return;
        const uint64_t mine = s.candidate[threadIdx.x];
        uint32_t rank = 0;
#pragma unroll 8
        for (uint32_t i = 0; i < n; i++)
            rank += s.candidate[i] > mine;
        if (rank < want) parts[~(uint32_t)mine] = rule.to;
    }

    /* A block a thread at most: its key's rank among all, smaller blocks first among equals. An
     * equal key counts for the blocks behind it, since there v >= k is v > k - 1. key: in fours,
     * the last filled with zeros. */
    __device__ __forceinline__ static void mark_few(const float *value, const mark_rule &rule,
                                                    part *parts, uint32_t *key)
    {
        const uint32_t b = rule.first + threadIdx.x, at = threadIdx.x / 4;
        const uint32_t fours = (rule.end - rule.first + 3) / 4;
        const bool eligible = b < rule.end && parts[b] == rule.from;
        const uint32_t k = eligible ? rank_key(value[b]) : 0;
        if (at < fours) key[threadIdx.x] = k;
        __syncthreads();
        if (k == 0) return;
        const uint4 *others = reinterpret_cast<const uint4 *>(key);
        uint32_t rank = 0;
#pragma unroll 4
        for (uint32_t i = 0; i < fours; i++) {
            const uint4 v = others[i];
            const uint32_t bound = i < at ? k - 1 : k;
            rank += v.x > bound;
            rank += v.y > bound;
            rank += v.z > bound;
            rank += v.w > bound;
        }
        const uint32_t lane = threadIdx.x % 4;
        const uint4 v = others[at];
        rank += (lane > 0 && v.x == k) + (lane > 1 && v.y == k) + (lane > 2 && v.z == k);
        if (rank < rule.want) parts[b] = rule.to;
    }

    /* Follow one rule. key: scratch. Threads read and write only marks of their own blocks, but for
     * those that are ranked: a barrier stands between two rules. */
    __device__ static void mark_best(select_shared &s, uint32_t &turn, const float *value,
                                     const mark_rule &rule, part *parts, uint32_t *key)
    {
        const uint32_t want = rule.want, start = rule.first + threadIdx.x;
        if (want == 0) return;
        if (rule.end - rule.first <= THREADS) {
            mark_few(value, rule, parts, key);
            return;
        }
        uint32_t mine = 0, ones = 0, zeros = 0;
        for (uint32_t b = start; b < rule.end; b += THREADS) {
            const uint32_t k = parts[b] == rule.from ? rank_key(value[b]) : 0;
            key[b] = k;
            mine += k != 0;
            ones |= k;
            zeros |= k != 0 ? ~k : 0;
        }
        const uint32_t eligible = cta_sum(s, turn, mine);
        uint32_t bound = 1, above = eligible; /* bound: the largest with >= want keys at or above */
        if (eligible > want) {
            uint64_t high = 1ull << 32; /* keys at or above it are marked for sure: */
            uint32_t sure = 0;
            ones = cta_or(s, turn, ones);
            const int top = 31 - __clz((ones & cta_or(s, turn, zeros)) | 1);
            bound = top >= 31 ? 0 : (ones >> (top + 1)) << (top + 1); /* bits that all keys share */
            for (int bit = top & ~1; bit >= 0 && above != want; bit -= 2) {
                if (above - sure <= CANDIDATES) {
                    mark_ranked(s, key, rule, bound, high, want - sure, parts);
                    return;
                }
                const uint32_t t1 = bound | 1u << bit, t2 = bound | 2u << bit,
                               t3 = bound | 3u << bit;
                uint32_t n12 = 0, n3 = 0;
                for (uint32_t b = start; b < rule.end; b += THREADS) {
                    const uint32_t k = key[b];
                    n12 += (k >= t1) | (uint32_t)(k >= t2) << 16;
                    n3 += k >= t3;
                }
                cta_sum_two(s, turn, n12, n3);
                if (n3 >= want) {
                    bound = t3, above = n3;
                } else if (n12 >> 16 >= want) {
                    bound = t2, above = n12 >> 16, high = t3, sure = n3;
                } else if ((n12 & 0xffff) >= want) {
                    bound = t1, above = n12 & 0xffff, high = t2, sure = n12 >> 16;
                } else {
                    high = t1, sure = n12 & 0xffff;
                }
            }
        }
        if (above <= want) {
            for (uint32_t b = start; b < rule.end; b += THREADS)
                if (key[b] >= bound && key[b] != 0) parts[b] = rule.to;
            return;
        }
        mine = 0;
        for (uint32_t b = start; b < rule.end; b += THREADS)
            mine += key[b] > bound;
        uint32_t ties = want - cta_sum(s, turn, mine);
        for (uint32_t first = rule.first; first < rule.end; first += THREADS) {
            const uint32_t b = first + threadIdx.x;
            const uint32_t k = b < rule.end ? key[b] : 0;
            uint32_t all;
            const uint32_t before = cta_scan(s, turn, k == bound, all);
            if (k > bound || (k == bound && before < ties)) parts[b] = rule.to;
            ties -= min(ties, all);
        }
    }

    /* Mark the `picks` best by query. By chunks: what SSA's released kernel leaves of that, the
     * best of `kept` ones, which are the half of a chunk's number before the last chunk and the
     * half of that in it, the current block's place among them. Ends with a barrier. */
    __device__ __forceinline__ static void mark_queries(select_shared &s, uint32_t &turn,
                                                        const float *value,
                                                        const kern_selector &selector,
                                                        uint32_t current, uint32_t picks,
                                                        part *parts, uint32_t *key)
    {
        const uint32_t chunk = selector.chunk, half = chunk / 2;
        const bool chunks = chunk != 0 && current >= chunk;
        const uint32_t last = chunks ? current / chunk * chunk : 0;
#pragma unroll 1
        for (int i = chunks ? 0 : 2; i < 3; i++) {
            mark_rule rule = {0, current + 1, picks, chunks ? PART_KEPT : PART_NONE, PART_QUERY};
            if (i == 0) rule = {0, last, half, PART_NONE, PART_KEPT};
            if (i == 1) rule = {last, current, half - 1, PART_NONE, PART_KEPT};
            mark_best(s, turn, value, rule, parts, key);
            __syncthreads(); /* few or equal ones were marked by other threads */
        }
        if (!chunks) return;
        for (uint32_t b = threadIdx.x; b < current; b += THREADS)
            if (parts[b] == PART_KEPT) parts[b] = PART_NONE;
        __syncthreads();
    }

    /* pool: NULL, or what leaves a.query and a.importance here. */
    __device__ __forceinline__ static void run(const kern_select_args &a,
                                               const kern_pool_args *pool)
    {
        extern __shared__ __align__(16) uint8_t shared_bytes[];
        __shared__ select_shared s;
        uint32_t *key = reinterpret_cast<uint32_t *>(shared_bytes);
        float *query_here = reinterpret_cast<float *>(key + whole_fours(a.max_select_blocks));
        float *importance_here = query_here + (pool ? a.max_select_blocks : 0);
        part *parts = reinterpret_cast<part *>(importance_here + (pool ? a.max_select_blocks : 0));
        const uint64_t list = blockIdx.x;
        const uint32_t row = (uint32_t)(list / a.kv_heads);
        const kern_selector selector = a.selectors[a.row_selector[row]];
        const int32_t pos = a.row_pos[row];
        const uint32_t current = selector_current(&selector, pos);
        const bool all = selector_takes_all(&selector, pos);
        for (uint32_t b = threadIdx.x; pool && b <= current && b < a.max_select_blocks;
             b += THREADS) { /* read behind the barrier of cta_sum */
            const pooled v = pool_block(*pool, selector, row, (uint32_t)(list % a.kv_heads), b);
            query_here[b] = v.query, importance_here[b] = v.importance;
        }
        const float *query = pool ? query_here : a.query + list * a.max_select_blocks;
        const float *importance =
            pool ? importance_here : a.importance + list * a.max_select_blocks;
        uint32_t turn = 0, mine = 0;
        for (uint32_t b = threadIdx.x; b <= current; b += THREADS) {
            parts[b] = all || selector_forced(&selector, b, current) ? PART_SETTLED : PART_NONE;
            mine += parts[b];
        }
        if (!all) {
            const uint32_t forced = cta_sum(s, turn, mine);
            const uint32_t picks = selector.query > forced ? selector.query - forced : 0;
            const uint32_t held = forced + picks;
            mark_queries(s, turn, query, selector, current, picks, parts, key);
            if (selector.fill_by_importance && selector.total > held)
                mark_best(s, turn, importance,
                          {0, current + 1, selector.total - held, PART_NONE, PART_SETTLED}, parts,
                          key);
        }
        __syncthreads();

        const uint32_t last = (uint32_t)pos / KERN_BLOCK;
        const uint32_t near = selector_near_first(&selector, pos);
        const bool once = last < THREADS; /* one scan tells where the second part begins */
        mine = 0;
        for (uint32_t b = threadIdx.x; !once && b <= last; b += THREADS) {
            bool settled;
            const uint32_t m = storage_mask(selector.block, parts, current, b, settled);
            mine += (m != 0 && settled) || b >= near;
        }
        uint32_t settled_count = once ? 0 : cta_sum(s, turn, mine);
        int32_t *block = a.block + list * a.max_select;
        uint8_t *mask = a.mask + list * a.max_select;
        uint32_t settled_at = 0, query_at = settled_count;
        for (uint32_t first = 0; first <= last; first += THREADS) {
            const uint32_t b = first + threadIdx.x;
            bool settled = false;
            const uint32_t m =
                b <= last ? storage_mask(selector.block, parts, current, b, settled) : 0;
            const bool nearby = b <= last && b >= near, listed = m != 0 || nearby;
            settled |= nearby;
            uint32_t both;
            const uint32_t before = cta_scan(s, turn, !listed ? 0 : settled ? 1 : 1 << 16, both);
            if (once) settled_count = query_at = both & 0xffff;
            const uint32_t at =
                settled ? settled_at + (before & 0xffff) : query_at + (before >> 16);
            if (listed && at < a.max_select) block[at] = (int32_t)b, mask[at] = (uint8_t)m;
            settled_at += both & 0xffff;
            query_at += both >> 16;
        }
        for (uint32_t e = query_at + threadIdx.x; e < a.max_select; e += THREADS)
            block[e] = -1, mask[e] = 0;
        if (threadIdx.x == 0) {
            a.count[list] = (int32_t)min(query_at, a.max_select);
            a.settled[list] = (int32_t)min(settled_count, a.max_select);
        }
    }
};

template <uint32_t THREADS>
__global__ void __launch_bounds__(THREADS) select_kernel(const __grid_constant__ kern_select_args a)
{
    cuda_begin_short();
    select_cta<THREADS>::run(a, nullptr);
}

template <uint32_t THREADS>
__global__ void __launch_bounds__(THREADS) pick_kernel(const __grid_constant__ kern_pick_args a)
{
    cuda_begin_short();
    select_cta<THREADS>::run(a.select, &a.pool);
}

size_t shared_bytes_of(const kern_select_args &a, bool pools)
{
    const size_t values = pools ? 2 * sizeof(float) * a.max_select_blocks : 0;
    return whole_fours(a.max_select_blocks) * sizeof(uint32_t) + values +
           a.max_select_blocks * sizeof(part);
}

template <uint32_t THREADS> status launch(cuda_stream *stream, const kern_select_args &a)
{
    TRY_CUDA(cudaFuncSetAttribute(select_kernel<THREADS>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)(BLOCKS_MAX * (sizeof(uint32_t) + sizeof(part)))));
    cuda_launch(stream, {a.rows * a.kv_heads, THREADS, shared_bytes_of(a, false)},
                select_kernel<THREADS>, a);
    return cuda_launched("select");
}

} // namespace

extern "C" status cuda_select(kern_stream *stream, const kern_select_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    if (args->max_select_blocks > BLOCKS_MAX)
        return FAIL(UNSUPPORTED, "select on CUDA has up to %u selection blocks, not %u", BLOCKS_MAX,
                    args->max_select_blocks);
    cuda_stream *s = cuda_stream_of(stream);
    return args->max_select_blocks <= FEWER_BLOCKS ? launch<256>(s, *args) : launch<512>(s, *args);
}

extern "C" status cuda_pick(kern_stream *stream, const kern_pick_args *args)
{
    const kern_select_args &a = args->select;
    if (a.max_select_blocks > FEW_BLOCKS) {
        TRY(cuda_pool(stream, &args->pool));
        return cuda_select(stream, &a);
    }
    if (a.rows == 0) return STATUS_OK;
    cuda_stream *s = cuda_stream_of(stream);
    const uint32_t lists = a.rows * a.kv_heads;
    if (a.max_select_blocks <= FEWER_BLOCKS)
        cuda_launch(s, {lists, 256, shared_bytes_of(a, true)}, pick_kernel<256>, *args);
    else
        cuda_launch(s, {lists, 512, shared_bytes_of(a, true)}, pick_kernel<512>, *args);
    return cuda_launched("pick");
}
