/* kernels/attend_line.cuh - private to attend.cu: the line of all groups, how its CTAs share it
 * out, and the tables of the groups that a CTA has at hand. */
#ifndef KERNELS_ATTEND_LINE_CUH
#define KERNELS_ATTEND_LINE_CUH

#include "kernels/attend.cuh"

namespace
{

/* The line of all groups, shared out among the CTAs. */
struct attend_line {
    uint32_t total, large, dynamic; /* groups; of a CTA's first stretch; where tickets begin */
    uint32_t begin, end;            /* this CTA's stretch */
    uint32_t item_first, item_last,
        before; /* items that this thread counts, and groups before them */
};

/* BRANCH_COARSE: windows that a row sees. */
__device__ __forceinline__ uint32_t windows_of(const attend_params &p, uint64_t row)
{
    const kern_summary &s = p.a.summary;
    return min(selector_windows_at(s.window, s.stride, __ldcg(p.a.row_pos + row)), s.max_windows);
}

/* Entries of a list, or `least` if they are fewer. */
template <kern_branch BRANCH>
__device__ __forceinline__ uint32_t entries_of(const attend_params &p, uint64_t list, int32_t least)
{
    if constexpr (BRANCH == BRANCH_COARSE) {
        const uint32_t windows = windows_of(p, list / p.kv_heads);
        return max((windows + KERN_BLOCK - 1) / KERN_BLOCK, (uint32_t)least);
    }
    return (uint32_t)max(__ldcg(p.a.count + list), least);
}

/* Of the whole item. */
template <kern_branch BRANCH>
__device__ __forceinline__ uint32_t groups_of(const attend_params &p, uint32_t item)
{
    const uint64_t list = (uint64_t)p.first_row * p.kv_heads + item / p.tiles;
    const uint32_t count = entries_of<BRANCH>(p, list, 1); /* an empty one has an output too */
    return (count + KERN_GROUP_ENTRIES - 1) / KERN_GROUP_ENTRIES;
}

/* Groups of the super from `first` on that stand in this launch's line, a bit each. */
template <bool TWICE>
__device__ __forceinline__ uint32_t groups_here(const attend_params &p, uint32_t item,
                                                uint32_t first, uint32_t groups)
{
    const uint32_t all = (1u << min(groups - first, SUPER_GROUPS)) - 1;
    if constexpr (!TWICE) return all;
    const uint64_t list = (uint64_t)p.first_row * p.kv_heads + item / p.tiles;
    const uint32_t late = __ldcg(p.a.late + list * p.supers + first / SUPER_GROUPS);
    return p.a.part == ATTEND_LATE ? all & late : all & ~late;
}

/* Parts of 16 tokens of a block that tokens from .. pos touch. */
__device__ __forceinline__ uint8_t near_parts(int32_t block, int32_t from, int32_t pos)
{
    uint32_t mask = 0;
#pragma unroll
    for (int i = 0; i < KERN_BLOCK / ROWS; i++) {
        const int32_t first = block * KERN_BLOCK + i * ROWS;
        if (from <= pos && first <= pos && first + ROWS > from) mask |= 1u << i;
    }
    return (uint8_t)mask;
}

template <int D, kern_branch BRANCH, bool TWICE>
__device__ attend_line measure_line(const attend_params &p, attend_shared<D> &s)
{
    attend_line line;
    const uint32_t each = (p.items + THREADS - 1) / THREADS, lane = threadIdx.x % 32;
    line.item_first = min(threadIdx.x * each, p.items);
    line.item_last = min(line.item_first + each, p.items);
    uint32_t mine = 0;
    for (uint32_t i = line.item_first; i < line.item_last; i++) {
        const uint32_t groups = groups_of<BRANCH>(p, i);
        if (!TWICE) mine += groups;
        for (uint32_t g = 0; TWICE && g < groups; g += SUPER_GROUPS)
            mine += __popc(groups_here<TWICE>(p, i, g, groups));
    }
    uint32_t up = mine;
#pragma unroll
    for (int i = 1; i < 32; i <<= 1) {
        const uint32_t other = __shfl_up_sync(~0u, up, i);
        if (lane >= (uint32_t)i) up += other;
    }
    if (lane == 31) s.warp_total[threadIdx.x / 32] = up;
    __syncthreads();
    line.before = up - mine;
    line.total = 0;
#pragma unroll
    for (uint32_t w = 0; w < WARPS; w++) {
        if (w < threadIdx.x / 32) line.before += s.warp_total[w];
        line.total += s.warp_total[w];
    }
    line.large = line.total / gridDim.x;
    line.dynamic = line.large * gridDim.x;
    const uint32_t rest = line.total - line.dynamic;
    const bool late = TWICE && p.a.part == ATTEND_LATE;
    if (late || line.large == 0 || 2 * rest > gridDim.x) { /* not worth a ticket */
        line.large += line.dynamic < line.total;
        line.dynamic = line.total;
    }
    line.begin = min(line.large * blockIdx.x, line.dynamic);
    line.end = min(line.begin + line.large, line.dynamic);
    return line;
}

/* Where the partials of the split super whose first group stands at `first` meet: which counter,
 * and the place of its first. */
__device__ __forceinline__ uint32_t owner_of(const attend_line &line, uint32_t first,
                                             uint32_t &place)
{
    if (first < line.dynamic) {
        place = first / line.large * SUPER_GROUPS;
        return first / line.large;
    }
    place = gridDim.x * SUPER_GROUPS + first - line.dynamic;
    return gridDim.x + first - line.dynamic;
}

/* BRANCH_NEAR: the first token of a row's window; beyond pos without one. */
__device__ __forceinline__ int32_t near_from(const attend_params &p, uint64_t row)
{
    const int64_t near = p.a.selectors[p.a.row_selector[row]].near;
    const int64_t from = (int64_t)p.a.row_pos[row] + 1 - near;
    return from > 0 ? (int32_t)from : 0;
}

/* Entry `index` of a list, or nothing beyond its end, into place e of the tables. */
template <int D, kern_branch BRANCH>
__device__ __forceinline__ void load_entry(const attend_params &p, attend_shared<D> &s, uint32_t e,
                                           uint64_t list, uint32_t index, bool there)
{
    if constexpr (BRANCH == BRANCH_COARSE) {
        s.block[e] = s.slot[e] = there ? (int32_t)index : -1;
        s.mask[e] = there ? 15 : 0;
        return;
    }
    const uint64_t from = list * p.a.max_select + index;
    const int32_t block = there ? __ldcg(p.a.block + from) : -1;
    s.block[e] = block;
    s.slot[e] = there ? __ldcg(p.a.slot + from) : -1;
    if constexpr (BRANCH == BRANCH_NEAR) {
        const uint64_t row = list / p.kv_heads;
        s.mask[e] = near_parts(block, near_from(p, row), p.a.row_pos[row]);
    } else {
        s.mask[e] = there ? __ldcg(p.a.mask + from) : 0;
    }
}

/* What the groups of a list have in common. */
template <int D, kern_branch BRANCH>
__device__ __forceinline__ void load_row(const attend_params &p, attend_unit &unit, uint64_t list)
{
    const uint64_t row = list / p.kv_heads;
    const uint64_t place = (uint64_t)__ldcg(p.a.row_seq + row) * p.kv_heads + list % p.kv_heads;
    if constexpr (BRANCH == BRANCH_COARSE) {
        unit.pos = (int32_t)windows_of(p, row) - 1;
        unit.bias = false;
        unit.kept = p.a.summary.kc + place * p.a.summary.max_windows * D;
        return;
    }
    unit.pos = __ldcg(p.a.row_pos + row);
    unit.bias = p.a.selectors[__ldcg(p.a.row_selector + row)].bias;
    if constexpr (BRANCH == BRANCH_NEAR) unit.from = near_from(p, row);
    unit.kept = p.a.summary.u + place * p.a.summary.max_tokens;
}

/* A super's groups into units [base, base + units) of the line, as far as they stand there; from:
 * item, group, groups and the place of the first. Returns how many the line has of it. */
template <int D, bool TWICE>
__device__ __forceinline__ uint32_t line_super(const attend_params &p, attend_shared<D> &s,
                                               const attend_unit &from, uint32_t base,
                                               uint32_t units)
{
    uint32_t bits = groups_here<TWICE>(p, from.item, from.group, from.groups);
    const uint32_t members = __popc(bits);
    const bool parted = members < min(from.groups - from.group, SUPER_GROUPS);
    for (uint32_t place = from.start; bits != 0; bits &= bits - 1, place++) {
        if (place < base || place >= base + units) continue;
        attend_unit &unit = s.unit[place - base];
        unit.item = from.item;
        unit.group = from.group + __ffs((int)bits) - 1;
        unit.groups = from.groups;
        unit.start = from.start;
        unit.members = members;
        unit.parted = TWICE && (parted || p.a.part == ATTEND_LATE);
    }
    return members;
}

/* Units [base, base + units) of the line and their entries into shared memory. */
template <int D, kern_branch BRANCH, bool TWICE>
__device__ void load_units(const attend_params &p, attend_shared<D> &s, const attend_line &line,
                           uint32_t base, uint32_t units)
{
    uint32_t at = line.before;
    for (uint32_t i = line.item_first; i < line.item_last && at < base + units; i++) {
        const uint32_t groups = groups_of<BRANCH>(p, i);
        uint32_t first = 0;
        if (!TWICE && base > at) first = min((base - at) / SUPER_GROUPS * SUPER_GROUPS, groups);
        for (at += first; first < groups && at < base + units; first += SUPER_GROUPS)
            at += line_super<D, TWICE>(p, s, {i, first, groups, at}, base, units);
        if (!TWICE && first < groups) break;
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x; e < units * KERN_GROUP_ENTRIES; e += THREADS) {
        attend_unit &unit = s.unit[e / KERN_GROUP_ENTRIES];
        const uint64_t list = (uint64_t)p.first_row * p.kv_heads + unit.item / p.tiles;
        const uint32_t first = unit.group * KERN_GROUP_ENTRIES, i = e % KERN_GROUP_ENTRIES;
        const uint32_t count = entries_of<BRANCH>(p, list, 0);
        load_entry<D, BRANCH>(p, s, e, list, first + i, first + i < count);
        if (i > 0) continue;
        unit.entries = min(count - min(first, count), (uint32_t)KERN_GROUP_ENTRIES);
        load_row<D, BRANCH>(p, unit, list);
    }
    __syncthreads();
}

/* The next entry to copy after e; entries of a unit stand 8 apart from the next unit's. */
template <int D>
__device__ __forceinline__ uint32_t next_entry(const attend_shared<D> &s, uint32_t e,
                                               uint32_t units)
{
    uint32_t unit = e / KERN_GROUP_ENTRIES;
    if (++e - unit * KERN_GROUP_ENTRIES < s.unit[unit].entries) return e;
    do
        unit++;
    while (unit < units && s.unit[unit].entries == 0);
    return unit * KERN_GROUP_ENTRIES;
}

/* A group by ticket, when the stretch is done; false: none is left. The last CTA to learn that puts
 * the tickets back. */
template <int D>
__device__ bool next_stretch(const attend_params &p, attend_shared<D> &s, attend_line &line,
                             uint32_t &base)
{
    if (line.dynamic == line.total) return false;
    if (threadIdx.x == 0) {
        s.ticket = atomicAdd(p.arrived, 1);
        if (s.ticket >= line.total - line.dynamic) {
            __threadfence();
            if (atomicAdd(p.arrived + 1, 1) + 1 == gridDim.x) p.arrived[0] = p.arrived[1] = 0;
        }
    }
    __syncthreads();
    const uint32_t ticket = s.ticket;
    if (ticket >= line.total - line.dynamic) return false;
    line.begin = base = line.dynamic + ticket;
    line.end = base + 1;
    return true;
}

} // namespace

#endif
