/* kernels/plan.cu - diff the selection against the block table, choose victims, hand out entries,
 * list the misses for whoever fetches them. One launch:
 *
 *   plan     one CTA a (sequence, KV head): its rows in order. Entries are ranked once a row by
 *            (free first, least recently used, least important, lowest); each miss takes the least.
 *            Misses go to the workspace, with what their homes say: looks at host memory, under way
 *            while entries are ranked.
 *   publish  the CTA that ends last: the misses in order of row, head and entry into the exchange,
 *            which the host sees, with the arrivals of those that lie in host memory; then their
 *            numbers (release).
 *
 * Integers and comparisons only: the outcome is the CPU's, but for rows that do not fit. There the
 * CPU leaves the later heads of the void row alone, here they are planned; no token depends on it.
 */
#include "kernels/cuda.cuh"

namespace
{

constexpr uint32_t THREADS = 128, COUNTED_MAX = 4 * THREADS;
constexpr size_t SHARED_MAX = 220 << 10; /* of ranks and wants; 1.2 million tokens, all selected */
constexpr uint64_t TAKEN = ~0ull;        /* rank of an entry that may not be given away */

/* A kern_arrival as it is stored. */
struct alignas(16) arrival_words {
    uint64_t source, seed, digest;
    int32_t state, source_kind;
};
static_assert(sizeof(arrival_words) == sizeof(kern_arrival), "stored as two uint4");

struct plan_params {
    kern_plan_args a;
    kern_miss *miss;        /* [rows, kv_heads, max_select] in the workspace */
    arrival_words *arrived; /* the same */
    uint32_t *missing;      /* [rows, kv_heads] */
    uint32_t *where; /* [rows * kv_heads * max_select] each miss to publish, as an index of miss */
    uint32_t *done;  /* counter of CTAs */
    kern_miss *out_miss, *own_miss; /* own_...: NULL or the device's copies */
    kern_arrival *arrival, *own_arrival;
    uint32_t *answered, *own_count, *coming;
    uint32_t own_tag;
    uint64_t *counts; /* published, unanswered */
    uint32_t capacity;
};

struct plan_shared {
    unsigned long long best[THREADS / 32];
    uint32_t best_entry[THREADS / 32];
    uint32_t warp[THREADS / 32];
    uint32_t all;
    uint32_t open; /* 1: the current block is a hit */
    uint32_t
        starts; /* which miss is the current block, in its first token: nobody has to bring it */
    uint8_t late[2][THREADS / 32]; /* groups of a warp's 32 picks; taken in turns */
};

__device__ __forceinline__ bool row_planned(const kern_plan_args &a, uint32_t row)
{
    return (!a.row_on || a.row_on[row]) && a.row_status[row] == STATUS_OK;
}

__device__ bool selects(const kern_plan_args &a, uint64_t list, int32_t block)
{
    for (int32_t e = 0; e < a.count[list]; e++)
        if (a.block[list * a.max_select + e] == block) return true;
    return false;
}

/* A float's order as an unsigned number. */
__device__ __forceinline__ uint32_t ordered(float x)
{
    if (x == 0.0f) x = 0.0f;
    const uint32_t bits = __float_as_uint(x);
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float block_importance(const kern_plan_args &a, uint64_t list, int32_t pos,
                                  int32_t block)
{
    const uint32_t current = (uint32_t)pos / a.select_block;
    const uint32_t first = (uint32_t)block * KERN_BLOCK / a.select_block;
    const uint32_t last = ((uint32_t)block * KERN_BLOCK + KERN_BLOCK - 1) / a.select_block;
    float most = -INFINITY;
    for (uint32_t b = first; b <= last && b <= current && b < a.max_select_blocks; b++)
        most = fmaxf(most, a.importance[list * a.max_select_blocks + b]);
    return most;
}

/* Exclusive sum over the CTA's threads; s.all holds the total. */
__device__ uint32_t cta_scan(plan_shared &s, uint32_t x)
{
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    uint32_t up = x, below = 0, all = 0;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
        const uint32_t other = __shfl_up_sync(~0u, up, i);
        if (lane >= (uint32_t)i) up += other;
    }
    __syncthreads();
    if (lane == 31) s.warp[warp] = up;
    __syncthreads();
    for (uint32_t w = 0; w < THREADS / 32; w++) {
        if (w < warp) below += s.warp[w];
        all += s.warp[w];
    }
    if (threadIdx.x == 0) s.all = all;
    __syncthreads();
    return below + up - x;
}

/* The entry of least rank, ties to the lowest; known to all threads. */
__device__ uint32_t least_entry(plan_shared &s, const unsigned long long *rank, uint32_t entries)
{
    unsigned long long best = TAKEN;
    uint32_t at = 0;
    for (uint32_t e = threadIdx.x; e < entries; e += THREADS)
        if (rank[e] < best) best = rank[e], at = e;
#pragma unroll
    for (int i = 16; i > 0; i >>= 1) {
        const unsigned long long other = __shfl_xor_sync(~0u, best, i);
        const uint32_t other_at = __shfl_xor_sync(~0u, at, i);
        if (other < best || (other == best && other_at < at)) best = other, at = other_at;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) s.best[threadIdx.x / 32] = best, s.best_entry[threadIdx.x / 32] = at;
    __syncthreads();
    best = s.best[0], at = s.best_entry[0];
#pragma unroll
    for (uint32_t w = 1; w < THREADS / 32; w++)
        if (s.best[w] < best || (s.best[w] == best && s.best_entry[w] < at))
            best = s.best[w], at = s.best_entry[w];
    return at;
}

/* One row of one KV head: its selection, and its sequence's part of the table. */
struct plan_list {
    uint32_t row, head, entries, count;
    int32_t seq, pos;
    uint64_t list;
    int32_t *entry_of, *block_of, *slot;
    const int32_t *slot_of, *block;
    uint32_t *used;
};

__device__ plan_list list_of(const kern_plan_args &a, uint32_t row, uint32_t head)
{
    plan_list l;
    l.row = row, l.head = head;
    l.seq = a.row_seq[row], l.pos = a.row_pos[row];
    l.list = (uint64_t)row * a.table.kv_heads + head;
    const uint64_t place = (uint64_t)l.seq * a.table.kv_heads + head;
    l.entry_of = a.table.entry_of + place * a.table.max_blocks;
    l.block_of = a.table.block_of + place * a.table.max_entries;
    l.slot_of = a.table.slot_of + place * a.table.max_entries;
    l.used = a.table.used_step + place * a.table.max_entries;
    l.entries = min((uint32_t)a.table.entries[l.seq], a.table.max_entries);
    l.count = (uint32_t)a.count[l.list];
    l.block = a.block + l.list * a.max_select;
    l.slot = a.slot + l.list * a.max_select;
    return l;
}

__device__ __forceinline__ uint32_t late_bytes(const kern_plan_args &a)
{
    return (a.max_select + KERN_LATE_ENTRIES - 1) / KERN_LATE_ENTRIES;
}

/* Which groups of the warp's 32 picks have one that must come: for store_late, a barrier later. */
__device__ __forceinline__ void note_late(plan_shared &s, uint32_t turn, bool late)
{
    static_assert(KERN_GROUP_ENTRIES == 8 && KERN_LATE_ENTRIES == 64, "two warps make a byte");
    const uint32_t lanes = __ballot_sync(~0u, late);
    uint32_t bits = 0;
#pragma unroll
    for (uint32_t g = 0; g < 4; g++)
        bits |= (lanes >> 8 * g & 0xff) != 0 ? 1u << g : 0;
    if (threadIdx.x % 32 == 0) s.late[turn % 2][threadIdx.x / 32] = (uint8_t)bits;
}

__device__ __forceinline__ void store_late(const kern_plan_args &a, const plan_shared &s,
                                           uint64_t list, uint32_t turn)
{
    const uint32_t byte = turn * (THREADS / KERN_LATE_ENTRIES) + threadIdx.x;
    if (!a.late || threadIdx.x >= THREADS / KERN_LATE_ENTRIES || byte >= late_bytes(a)) return;
    const uint8_t *half = s.late[turn % 2] + 2 * threadIdx.x;
    a.late[list * late_bytes(a) + byte] = (uint8_t)(half[0] | half[1] << 4);
}

/* Entries that hold a block of the selection are marked used and TAKEN, their slots noted. Of the
 * picks that no entry holds, which are put into wants in order, returns how many there are. rank:
 * [entries] in shared memory. */
__device__ uint32_t find_missing(const kern_plan_args &a, plan_shared &s, const plan_list &l,
                                 unsigned long long *rank, uint32_t *wants)
{
    const int32_t current = l.pos / KERN_BLOCK;
    for (uint32_t e = threadIdx.x; e < l.entries; e += THREADS)
        rank[e] = 0;
    if (threadIdx.x == 0) s.open = 0, s.starts = UINT32_MAX;
    __syncthreads();
    uint32_t missing = 0;
    for (uint32_t first = 0; first < a.max_select; first += THREADS) {
        const uint32_t e = first + threadIdx.x;
        const int32_t block = e < l.count ? l.block[e] : -1;
        const int32_t entry = block >= 0 ? l.entry_of[block] : -1;
        if (e < a.max_select) l.slot[e] = entry >= 0 ? l.slot_of[entry] : -1;
        if (entry >= 0) {
            l.used[entry] = a.step;
            rank[entry] = TAKEN;
            if (block == current) s.open = 1;
        }
        const bool lacks = e < l.count && entry < 0;
        const bool starts = lacks && block == current && l.pos % KERN_BLOCK == 0;
        note_late(s, first / THREADS, lacks && !starts);
        const uint32_t at = missing + cta_scan(s, lacks);
        if (lacks) {
            wants[at] = e;
            if (starts) s.starts = at;
        }
        store_late(a, s, l.list, first / THREADS);
        missing += s.all;
    }
    __syncthreads();
    return missing;
}

/* Rank the other entries; returns how many may be given away. first_row: of this sequence. */
__device__ uint32_t rank_entries(const kern_plan_args &a, plan_shared &s, const plan_list &l,
                                 unsigned long long *rank, uint32_t first_row)
{
    uint32_t available = 0;
    for (uint32_t e = threadIdx.x; e < l.entries; e += THREADS) {
        if (rank[e] == TAKEN) continue;
        const int32_t held = l.block_of[e];
        if (held >= 0) {
            bool needed = false;
            if (l.used[e] == a.step)
                for (uint32_t r = first_row; r < l.row && !needed; r++)
                    needed = a.row_seq[r] == l.seq && row_planned(a, r) &&
                             selects(a, (uint64_t)r * a.table.kv_heads + l.head, held);
            const uint32_t worth = ordered(block_importance(a, l.list, l.pos, held));
            rank[e] = needed ? TAKEN : (uint64_t)l.used[e] << 32 | worth;
            if (needed) continue;
        }
        available++;
    }
    (void)cta_scan(s, available);
    return s.all;
}

/* To the i-th miss the entry of the i-th least rank, ties to the lowest: above the pick in wants.
 */
__device__ void match_entries(plan_shared &s, const plan_list &l, unsigned long long *rank,
                              uint32_t *wants, uint32_t missing)
{
    if (l.entries <= COUNTED_MAX) {
        for (uint32_t e = threadIdx.x; e < l.entries; e += THREADS) {
            const unsigned long long mine = rank[e];
            uint32_t before = 0;
            if (mine == TAKEN) continue;
            for (uint32_t o = 0; o < l.entries; o++)
                before += rank[o] < mine || (rank[o] == mine && o < e);
            if (before < missing) wants[before] |= e << 16;
        }
    }
    for (uint32_t i = 0; i < missing && l.entries > COUNTED_MAX; i++) {
        const uint32_t entry = least_entry(s, rank, l.entries);
        if (threadIdx.x == 0) wants[i] |= entry << 16, rank[entry] = TAKEN;
        __syncthreads();
    }
    __syncthreads();
}

/* What the home of a block says of it. */
struct home_words {
    uint64_t seed, digest;
    int32_t slot;
};

__device__ __forceinline__ home_words home_of(const kern_plan_args &a, const plan_list &l,
                                              int32_t block)
{
    const kern_homes &h = a.homes;
    if (!h.home) return home_words{0, 0, -1};
    const kern_home *home =
        h.home + (uint64_t)l.seq * h.seq_stride + (uint64_t)l.head * a.table.max_blocks + block;
    return home_words{*(const volatile uint64_t *)&home->seed,
                      *(const volatile uint64_t *)&home->digest, load_relaxed(&home->slot)};
}

/* A miss that lies in host memory is answered, else PENDING: somebody has to bring it. */
__device__ __forceinline__ arrival_words arrival_of(const kern_plan_args &a, const home_words &home)
{
    const kern_homes &h = a.homes;
    arrival_words w = {0, home.seed, home.digest, STATUS_PENDING, 0};
    if (!h.home) return w;
    w.source = (uint64_t)(h.memory + (uint64_t)(home.slot < 0 ? 0 : home.slot) * h.block_bytes);
    w.state = home.slot < 0 ? STATUS_PENDING : STATUS_OK;
    w.source_kind = KERN_FROM_HOME;
    return w;
}

/* Their entries to the blocks that are missing, a block a thread; returns how many have to be
 * fetched. home: of the thread's first. */
__device__ uint32_t hand_out(const plan_params &p, const plan_shared &s, const plan_list &l,
                             const uint32_t *wants, uint32_t missing, home_words home)
{
    const kern_plan_args &a = p.a;
    for (uint32_t i = threadIdx.x; i < missing; i += THREADS) {
        const uint32_t e = wants[i] & 0xffff, entry = wants[i] >> 16;
        const int32_t block = l.block[e], held = l.block_of[entry], slot = l.slot_of[entry];
        if (held >= 0) l.entry_of[held] = -1;
        l.entry_of[block] = (int32_t)entry;
        l.block_of[entry] = block;
        l.used[entry] = a.step;
        l.slot[e] = slot;
        if (i == s.starts) continue;
        const uint32_t agnostic = (int32_t)e < a.settled[l.list] ? 1 : 0;
        const uint64_t first = l.list * a.max_select, at = first + i - (s.starts < i);
        if (p.coming) p.coming[first + e] = 1;
        p.miss[at] = kern_miss{(int32_t)l.row, l.seq, (int32_t)l.head, block,
                               (int32_t)entry, slot,  agnostic,        (uint32_t)first + e};
        p.arrived[at] = arrival_of(a, i < THREADS ? home : home_of(a, l, block));
    }
    return missing - (s.starts != UINT32_MAX);
}

__device__ void plan_row(const plan_params &p, plan_shared &s, unsigned long long *rank,
                         uint32_t first_row, uint32_t row, uint32_t head)
{
    const kern_plan_args &a = p.a;
    const plan_list l = list_of(a, row, head);
    uint32_t *wants = reinterpret_cast<uint32_t *>(rank + a.table.max_entries);
    const uint32_t missing = find_missing(a, s, l, rank, wants);
    const uint32_t closed = l.count - missing - s.open;
    uint32_t published = 0;
    if (missing > 0) {
        home_words home = {};
        if (threadIdx.x < missing) home = home_of(a, l, l.block[wants[threadIdx.x]]);
        if (missing > rank_entries(a, s, l, rank, first_row)) {
            if (threadIdx.x != 0) return;
            p.missing[l.list] = 0;
            (void)atomicCAS(a.row_status + row, (int)STATUS_OK, (int)STATUS_NO_MEMORY);
            return;
        }
        match_entries(s, l, rank, wants, missing);
        published = hand_out(p, s, l, wants, missing, home);
    }
    if (threadIdx.x != 0) return;
    p.missing[l.list] = published;
    if (closed > 0) (void)atomicAdd(a.row_hits + row, closed);
    if (published > 0) (void)atomicAdd(a.row_misses + row, published);
}

/* A miss and its arrival as entry i of the lists. True: unanswered. */
__device__ bool publish_one(const plan_params &p, uint32_t i)
{
    const uint4 *from = reinterpret_cast<const uint4 *>(p.miss + p.where[i]);
    const uint4 *words = reinterpret_cast<const uint4 *>(p.arrived + p.where[i]);
    const uint4 low = __ldcg(from), high = __ldcg(from + 1);
    const uint4 first = __ldcg(words), second = __ldcg(words + 1);
    uint4 *miss = reinterpret_cast<uint4 *>(p.out_miss + i);
    uint4 *arrival = reinterpret_cast<uint4 *>(p.arrival + i);
    miss[0] = low, miss[1] = high;
    arrival[0] = first, arrival[1] = second;
    if (p.own_count) {
        miss = reinterpret_cast<uint4 *>(p.own_miss + i);
        arrival = reinterpret_cast<uint4 *>(p.own_arrival + i);
        miss[0] = low, miss[1] = high;
        arrival[0] = first, arrival[1] = second;
    }
    return (int32_t)second.z == STATUS_PENDING;
}

/* Misses of all lists, in their order, by one CTA: first where each of them is, a list a thread,
 * then a miss a thread. */
__device__ void publish(const plan_params &p, plan_shared &s)
{
    const uint32_t lists = p.a.rows * p.a.table.kv_heads;
    uint32_t base = 0, unanswered = 0;
    for (uint32_t first = 0; first < lists; first += THREADS) {
        const uint32_t list = first + threadIdx.x;
        const uint32_t count = list < lists ? __ldcg(p.missing + list) : 0;
        const uint32_t at = base + cta_scan(s, count);
        for (uint32_t i = 0; i < count && at + i < p.capacity; i++)
            p.where[at + i] = list * p.a.max_select + i;
        base += s.all;
    }
    base = min(base, p.capacity);
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < base; i += THREADS)
        unanswered += publish_one(p, i);
    (void)cta_scan(s, unanswered);
    __threadfence_system();
    __syncthreads();
    if (threadIdx.x == 0) {
        if (s.all == 0) *(volatile uint32_t *)p.answered = p.a.step;
        if (p.own_count) {
            *(volatile uint64_t *)p.own_count = base | (uint64_t)p.own_tag << 32;
            p.own_count[2] = s.all;
        }
        *(volatile uint64_t *)p.counts = base | (uint64_t)s.all << 32; /* both or neither */
    }
}

__device__ void plan_rows(const plan_params &p, plan_shared &s, unsigned long long *rank)
{
    const kern_plan_args &a = p.a;
    const uint32_t first = blockIdx.x, head = blockIdx.y;
    const int32_t seq = a.row_seq[first];
    bool earlier = false, later = false;
    for (uint32_t r = threadIdx.x; r < a.rows; r += THREADS) {
        const bool same = a.row_seq[r] == seq;
        earlier |= same && r < first;
        later |= same && r > first;
    }
    if (__syncthreads_or(earlier)) return; /* the sequence's first row does all of them */
    const uint32_t end = __syncthreads_or(later) ? a.rows : first + 1;
    for (uint32_t row = first; row < end; row++) {
        if (a.row_seq[row] != seq) continue;
        const uint64_t list = (uint64_t)row * a.table.kv_heads + head;
        const bool on = !a.row_on || a.row_on[row];
        __syncthreads();
        if (row_planned(a, row)) {
            plan_row(p, s, rank, first, row, head);
        } else {
            if (threadIdx.x == 0) p.missing[list] = 0;
            for (uint32_t e = threadIdx.x; on && e < a.max_select; e += THREADS)
                a.slot[list * a.max_select + e] = -1;
            for (uint32_t b = threadIdx.x; on && a.late && b < late_bytes(a); b += THREADS)
                a.late[list * late_bytes(a) + b] = 0;
        }
        __syncthreads();
    }
}

__global__ void __launch_bounds__(THREADS) plan_kernel(const __grid_constant__ plan_params p)
{
    cuda_begin_short();
    extern __shared__ __align__(16) uint8_t shared_bytes[];
    __shared__ plan_shared s;
    plan_rows(p, s, reinterpret_cast<unsigned long long *>(shared_bytes));
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence(); /* for all: what the barrier has ordered before it */
        s.all = atomicAdd(p.done, 1) + 1 == gridDim.x * gridDim.y;
        if (s.all) *p.done = 0;
    }
    __syncthreads();
    if (!s.all) return;
    __threadfence();
    __syncthreads(); /* s.all has been read */
    publish(p, s);
}

} // namespace

extern "C" status cuda_plan(kern_stream *stream, const kern_plan_args *args)
{
    cuda_stream *s = cuda_stream_of(stream);
    const uint64_t lists = (uint64_t)args->rows * args->table.kv_heads;
    if (lists == 0) return STATUS_OK;
    const size_t bytes =
        args->table.max_entries * sizeof(unsigned long long) + args->max_select * sizeof(uint32_t);
    if (bytes > SHARED_MAX || args->table.max_entries > 0xffff || args->max_select > 0xffff)
        return FAIL(UNSUPPORTED, "plan on CUDA: %u entries and %u picks a head are too many",
                    args->table.max_entries, args->max_select);
    const uint64_t pick_bytes = sizeof(kern_miss) + sizeof(arrival_words) + sizeof(uint32_t);
    if (lists * (args->max_select * pick_bytes + sizeof(uint32_t)) > CUDA_WORKSPACE_BYTES)
        return FAIL(UNSUPPORTED, "plan on CUDA: %u rows of %u entries do not fit the workspace",
                    args->rows, args->max_select);
    plan_params p = {};
    p.a = *args;
    p.miss = reinterpret_cast<kern_miss *>(s->workspace);
    p.arrived = reinterpret_cast<arrival_words *>(p.miss + lists * args->max_select);
    p.missing = reinterpret_cast<uint32_t *>(p.arrived + lists * args->max_select);
    p.where = p.missing + lists;
    p.done = s->counters;
    p.out_miss = args->exchange->miss;
    p.arrival = args->exchange->arrival;
    static_assert(offsetof(kern_exchange, published) % 8 == 0 &&
                      offsetof(kern_exchange, unanswered) == offsetof(kern_exchange, published) + 4,
                  "stored as one word");
    p.counts = (uint64_t *)&args->exchange->published;
    p.own_miss = args->exchange->own_miss;
    p.own_arrival = args->exchange->own_arrival;
    p.answered = (uint32_t *)&args->exchange->answered;
    p.own_count = args->exchange->own_count;
    p.own_tag = args->exchange->own_tag;
    p.coming = args->exchange->coming;
    p.capacity = args->exchange->capacity;
    TRY_CUDA(cudaFuncSetAttribute(plan_kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)SHARED_MAX));
    const dim3 grid(args->rows, args->table.kv_heads);
    cuda_launch(s, {grid, THREADS, bytes}, plan_kernel, p);
    return cuda_launched("plan");
}
