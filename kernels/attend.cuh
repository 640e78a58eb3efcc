/* kernels/attend.cuh - private to attend.cu: what its CTAs share, and how partials of a softmax
 * meet (order of summation: see attend.cu). */
#ifndef KERNELS_ATTEND_CUH
#define KERNELS_ATTEND_CUH

#include "kernels/prefill.cuh"
#include "kernels/selector.h"

namespace
{

constexpr int WARPS = 4, THREADS = 32 * WARPS, ROWS = 16, STAGES = 3;
constexpr uint32_t SUPER_GROUPS = 8, UNITS = 32, ENTRIES = UNITS * KERN_GROUP_ENTRIES;
static_assert(SUPER_GROUPS * KERN_GROUP_ENTRIES == KERN_LATE_ENTRIES, "a super, a byte of late");
constexpr uint32_t ITEMS_MAX = 4096;   /* lists times head tiles of one launch */
constexpr int FOLD = 32;               /* columns folded at a time */
constexpr uint32_t DYNAMIC_MAX = 1024; /* groups handed out by ticket, and CTAs */
constexpr uint32_t LATE_MAX = 32768;   /* supers of a launch that is one of two */
/* Of the next weight, beside the blocks of late groups. */
constexpr uint64_t NEXT_BYTES = 24ull << 20;

/* The first bytes of each row of a weight: what every tile of a product begins with. */
struct weight_part {
    const uint8_t *from;
    uint32_t pitch, rows, bytes; /* rows: 0: nothing */
};

struct attend_params {
    kern_attend_args a;
    /* 8 groups of split supers for each stretch, then for tickets; items' supers; with two launches
     * 8 groups of each super */
    float *partial;
    /* counters: tickets, CTAs that are done; split supers; items; with two launches supers */
    uint32_t *arrived;
    uint32_t first_row; /* of this launch */
    uint32_t items, kv_heads, group_heads, tiles, supers;
    uint32_t ctas;          /* at most; both launches of two count places by it */
    float scale;            /* log2(e) / sqrt(D) */
    const uint32_t *coming; /* [R, Hk, M] NULL, or not 0: the gather beside is not done with it */
    uint64_t near_bytes;    /* of blocks that the second-level cache may be asked to keep */
    weight_part next;       /* for who waits for that */
};

/* A group of 8 entries in the CTA's stretch. An item is a (row, KV head, tile of 16 heads). */
struct attend_unit {
    uint32_t item, group, groups; /* groups: of the whole item */
    uint32_t start, members;      /* the super's groups in the line: place of the first, how many */
    uint32_t entries;
    bool parted; /* others of the super stand in the other launch's line */
    int32_t pos; /* of the row; BRANCH_COARSE: the last window that it sees */
    bool bias;
    int32_t from;         /* BRANCH_NEAR: the first token of the window */
    const uint16_t *kept; /* u of the row's sequence and head; BRANCH_COARSE: their Kc */
};

template <int D> struct attend_shared {
    uint16_t stage[WARPS][STAGES][2][ROWS][D];
    float fold[WARPS][ROWS][FOLD + 8];
    uint16_t u[WARPS][STAGES][ROWS];
    float fold_max[WARPS][ROWS], fold_sum[WARPS][ROWS];
    attend_unit unit[UNITS];
    int32_t block[ENTRIES], slot[ENTRIES];
    uint8_t mask[ENTRIES];
    uint32_t warp_total[WARPS];
    uint32_t last, ticket;
};

/* Softmax state of one row, as held by one thread: D / 8 of its columns. */
template <int D> struct row_state {
    float max, sum, value[D / 8];
};

__device__ __forceinline__ float fold_factor(float max, float together)
{
    return max == -INFINITY ? 0.0f : fast_exp2(max - together);
}

template <int D> __device__ __forceinline__ void state_clear(row_state<D> &s)
{
    s.max = -INFINITY;
    s.sum = 0.0f;
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        s.value[i] = 0.0f;
}

/* s = s + p: the only way two partials ever meet. */
template <int D> __device__ __forceinline__ void state_fold(row_state<D> &s, const row_state<D> &p)
{
    const float together = fmaxf(s.max, p.max);
    const float a = fold_factor(s.max, together), b = fold_factor(p.max, together);
    s.max = together;
    s.sum = fmaf(p.sum, b, s.sum * a);
#pragma unroll
    for (int i = 0; i < D / 8; i++)
        s.value[i] = fmaf(p.value[i], b, s.value[i] * a);
}

/* Partials in the workspace: max[16], sum[16], value[16][D] floats. */
template <int D> constexpr uint32_t PARTIAL = ROWS *(D + 2);

template <int D>
__device__ __forceinline__ float *partial_at(const attend_params &p, uint64_t index)
{
    return p.partial + index * PARTIAL<D>;
}

template <int D>
__device__ __forceinline__ void partial_store(float *to, const row_state<D> &s, int row, int column)
{
    if (column == 0) to[row] = s.max, to[ROWS + row] = s.sum;
#pragma unroll
    for (int j = 0; j < D / 32; j++)
        __stcg((float4 *)(to + 2 * ROWS + row * D + 32 * j + 4 * column),
               make_float4(s.value[4 * j], s.value[4 * j + 1], s.value[4 * j + 2],
                           s.value[4 * j + 3]));
}

/* HERE: it stands in shared memory, not in the workspace. */
template <bool HERE, class T> __device__ __forceinline__ T partial_word(const T *from)
{
    if constexpr (HERE)
        return *from;
    else
        return __ldcg(from);
}

template <int D, bool HERE>
__device__ __forceinline__ void partial_load(row_state<D> &s, const float *from, int row,
                                             int column)
{
    s.max = partial_word<HERE>(from + row);
    s.sum = partial_word<HERE>(from + ROWS + row);
#pragma unroll
    for (int j = 0; j < D / 32; j++) {
        const float *at = from + 2 * ROWS + row * D + 32 * j + 4 * column;
        const float4 v = partial_word<HERE>((const float4 *)at);
        s.value[4 * j] = v.x, s.value[4 * j + 1] = v.y;
        s.value[4 * j + 2] = v.z, s.value[4 * j + 3] = v.w;
    }
}

/* True for the CTA that brings the arrivals to `expected`; its reads then see what the others
 * wrote. */
template <int D>
__device__ __forceinline__ bool arrive_last(attend_shared<D> &s, uint32_t *counter, uint32_t mine,
                                            uint32_t expected)
{
    __syncthreads();
    if (threadIdx.x == 0) { /* releases for all: what the barrier has ordered before it */
        uint32_t before;
        asm volatile("atom.add.release.gpu.global.u32 %0, [%1], %2;"
                     : "=r"(before)
                     : "l"(counter), "r"(mine)
                     : "memory");
        s.last = before + mine == expected;
        if (s.last) *counter = 0;
    }
    __syncthreads();
    if (s.last) asm volatile("fence.acq_rel.gpu;" ::: "memory");
    return s.last;
}

template <int D>
__device__ __forceinline__ void store_row(const attend_params &p, uint32_t item,
                                          const row_state<D> &state)
{
    const uint32_t r = threadIdx.x / 8, c = threadIdx.x % 8;
    const uint32_t list = item / p.tiles, tile = item % p.tiles;
    if (r >= p.group_heads - tile * ROWS) return;
    const uint64_t row = p.first_row + list / p.kv_heads;
    const uint32_t head = list % p.kv_heads * p.group_heads + tile * ROWS + r;
    const uint64_t to = (row * p.a.heads + head) * D + 4 * c;
    const float by = state.sum > 0.0f ? 1.0f / state.sum : 0.0f;
#pragma unroll
    for (int j = 0; j < D / 32; j++) {
        const float4 out = make_float4(state.value[4 * j] * by, state.value[4 * j + 1] * by,
                                       state.value[4 * j + 2] * by, state.value[4 * j + 3] * by);
        if (p.a.out_bf16)
            *(uint2 *)(p.a.out_bf16 + to + 32 * j) = bf16_pack4(out);
        else
            *(float4 *)(p.a.out + to + 32 * j) = out;
    }
}

/* Fold `count` partials that stand one after another, the next one's loads under way meanwhile. */
template <int D>
__device__ __forceinline__ void fold_partials(row_state<D> &state, const float *from,
                                              uint32_t count)
{
    const int row = threadIdx.x / 8, column = threadIdx.x % 8;
    row_state<D> next;
    partial_load<D, false>(next, from, row, column);
    state_clear(state);
#pragma unroll 1
    for (uint32_t i = 1; i <= count; i++) {
        const row_state<D> one = next;
        if (i < count) partial_load<D, false>(next, from + i * (uint64_t)PARTIAL<D>, row, column);
        state_fold(state, one);
    }
}

template <int D>
__device__ __forceinline__ void finish_row(const attend_params &p, uint32_t item,
                                           const float *supers, uint32_t count)
{
    row_state<D> state;
    fold_partials<D>(state, supers, count);
    store_row<D>(p, item, state);
}

/* A super is whole: it is the row, or one of several that meet in the workspace. */
template <int D>
__device__ __forceinline__ void finish_super(const attend_params &p, attend_shared<D> &s,
                                             const attend_unit &unit, const row_state<D> &state)
{
    const uint32_t supers = (unit.groups + SUPER_GROUPS - 1) / SUPER_GROUPS;
    const uint32_t item = unit.item;
    if (supers == 1) {
        store_row<D>(p, item, state);
        return;
    }
    float *base = partial_at<D>(p, p.ctas * SUPER_GROUPS + DYNAMIC_MAX + (uint64_t)item * p.supers);
    partial_store<D>(base + unit.group / SUPER_GROUPS * (uint64_t)PARTIAL<D>, state,
                     threadIdx.x / 8, threadIdx.x % 8);
    if (arrive_last<D>(s, p.arrived + 2 + p.ctas + DYNAMIC_MAX + item, 1, supers))
        finish_row<D>(p, item, base, supers);
}

/* The super of a group, whose partials have all met. At the end of a CTA's tables (`idle`) no copy
 * is under way, and they come into the stages at once: one way to the second-level cache in place
 * of one for each. */
template <int D>
__device__ __forceinline__ void finish_split(const attend_params &p, attend_shared<D> &s,
                                             const attend_unit &unit, const float *partials,
                                             uint32_t count, bool idle)
{
    row_state<D> state;
    if (idle) {
        static_assert(sizeof s.stage >= SUPER_GROUPS * PARTIAL<D> * sizeof(float), "all fit");
        float *here = reinterpret_cast<float *>(s.stage);
        for (uint32_t i = threadIdx.x; i < count * (PARTIAL<D> / 4); i += THREADS)
            copy_async16(shared_address(here + 4 * i), partials + 4 * i);
        copy_async_commit();
        copy_async_wait<0>();
        __syncthreads();
        state_clear(state);
        for (uint32_t i = 0; i < count; i++) { /* near: no load ahead, and no registers for one */
            row_state<D> one;
            partial_load<D, true>(one, here + i * PARTIAL<D>, threadIdx.x / 8, threadIdx.x % 8);
            state_fold(state, one);
        }
    } else {
        fold_partials<D>(state, partials, count);
    }
    finish_super<D>(p, s, unit, state);
}

/* A group of a super that stands in both lines: its partial is put down, and the second launch
 * folds them when it has brought the last. */
template <int D>
__device__ __forceinline__ void put_parted(const attend_params &p, attend_shared<D> &s,
                                           const attend_unit &unit, const row_state<D> &group,
                                           bool idle)
{
    const uint64_t super = (uint64_t)unit.item * p.supers + unit.group / SUPER_GROUPS;
    const uint32_t first = unit.group / SUPER_GROUPS * SUPER_GROUPS;
    const uint64_t beside = p.supers > 1 ? (uint64_t)p.items * p.supers : 0;
    float *partials =
        partial_at<D>(p, p.ctas * SUPER_GROUPS + DYNAMIC_MAX + beside + super * SUPER_GROUPS);
    partial_store<D>(partials + (unit.group - first) * (uint64_t)PARTIAL<D>, group, threadIdx.x / 8,
                     threadIdx.x % 8);
    if (p.a.part == ATTEND_PRESENT) return;
    uint32_t *arrived = p.arrived + 2 + p.ctas + DYNAMIC_MAX + ITEMS_MAX + super;
    if (arrive_last<D>(s, arrived, 1, unit.members))
        finish_split<D>(p, s, unit, partials, min(unit.groups - first, SUPER_GROUPS), idle);
}

} // namespace

#endif
