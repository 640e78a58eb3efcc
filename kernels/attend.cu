/* kernels/attend.cu - softmax attention over a selection of blocks, on tensor cores.
 *
 * Bound: every selected block is read once, 2 * 64 * D bf16; with G = 16 heads on a KV head that is
 * 16 flops a byte, far below the card's ratio, so the bound is memory. The design serves the loads:
 *
 *   The groups (8 entries) of all rows and KV heads stand in one line; two CTAs an SM (beside a
 * gather fewer, by the places that it needs) share it out evenly, whatever the lengths of the
 * lists; what does not come out even is taken group by group by ticket. Each streams its stretch
 * without a gap: the first blocks of the next group are under way while the last one is folded. CTA
 * = 4 warps; warp w owns tokens 16 w .. 16 w + 15 of every block (one bit of the mask), so its
 * copies need no barrier: K and V rows go to its own swizzled shared memory by cp.async, three
 * blocks ahead, and from there by ldmatrix into mma. Where a block lies in the pool makes no
 * difference.
 *
 * Order (DESIGN: one order of summation): a warp folds its rows of 8 consecutive entries (online
 * softmax), the CTA folds its 4 warps in order: that is a group's partial. 8 groups fold in order
 * into a super, supers in order into the row. A super that lies within one CTA's stretch is folded
 * as it goes; of one that is split, the groups' partials meet in the workspace and the last CTA to
 * arrive folds them: the same float operations in the same order, so the split never shows in the
 * bits.
 *
 * Late blocks (ATTEND_PRESENT, then ATTEND_LATE): the first launch takes the groups whose entries
 * are all in the pool and leaves, of a super that lacks some, their partials in the workspace; the
 * second takes the others, and who brings a super's last folds it. Again the same operations in the
 * same order: what was late does not show either. The second may be launched while the gather still
 * runs in another stream: it has its tables and queries by then, and waits for what its groups
 * lack; meanwhile what it is going to read comes into the second-level cache. An attention to all
 * at once may wait so too.
 *
 * Precision: q and the weights are split into two bf16 each (high + low), so a product carries
 * about 16 bits; sums are float32. Source: NOSA, arXiv 2510.13602 (bias u in the logit); online
 * softmax: Milakov and Gimelshein, arXiv 1805.02867.
 *
 * Branches (NSA, arXiv 2502.11089) are instances of the same kernel that differ in its tables only.
 * BRANCH_NEAR: an entry's mask is what the window of the last tokens leaves of the block, and
 * within a part tokens before the window count as those beyond pos do. BRANCH_COARSE: the list is
 * the windows that the row sees, 64 an entry, which lie one after another in Kc and Vc instead of
 * in slots; the last window takes the place of pos.
 *
 * Not here: a prompt's rows over their selection, which share keys (prefill.cu), where the device
 * has the products. Rows of a prompt in the other branches come here one by one. */
#include "kernels/attend_line.cuh"

namespace
{

/* While attention waits the memory is idle: the start of the weight that is read after it. */
__device__ __forceinline__ void bring_weight(const weight_part &w)
{
    for (uint32_t i = blockIdx.x * THREADS + threadIdx.x; i < w.rows; i += gridDim.x * THREADS)
        cuda_bring_nearer(w.from + (uint64_t)i * w.pitch, w.bytes);
}

template <int D, kern_branch BRANCH> struct attend_cta {
    const attend_params &p;
    attend_shared<D> &s;
    const uint32_t warp, lane;
    const bool u_aligned;
    uint32_t q_high[D / 16][4], q_low[D / 16][4];
    float acc[D / 8][4], max[2], sum[2];

    __device__ attend_cta(const attend_params &params, attend_shared<D> &shared)
        : p(params), s(shared), warp(threadIdx.x / 32), lane(threadIdx.x % 32),
          u_aligned(params.a.summary.max_tokens % ROWS == 0)
    {
    }

    /* A fragments of an item's heads, split: row = lane / 4 (+ 8), k = 2 (lane % 4) + {0, 1} (+ 8).
     * Rows beyond the group's heads are 0. By way of shared memory, since registers for all loads
     * at once are lacking: 10,000 cycles in place of 1,500. */
    __device__ void load_query(uint32_t item)
    {
        const uint32_t list = item / p.tiles, tile = item % p.tiles;
        const uint32_t row = p.first_row + list / p.kv_heads;
        const uint32_t head = list % p.kv_heads * p.group_heads + tile * ROWS;
        const uint32_t rows = min((uint32_t)ROWS, p.group_heads - tile * ROWS);
        const float *q = p.a.q + (uint64_t)row * p.a.row_stride + (uint64_t)head * D;
        const uint32_t r = threadIdx.x / 8, c = threadIdx.x % 8;
        static_assert(sizeof s.fold >= 2 * ROWS * D * sizeof(uint16_t), "between two folds");
        uint16_t *high = reinterpret_cast<uint16_t *>(s.fold), *low = high + ROWS * D;
        float4 v[D / 32];
#pragma unroll
        for (int j = 0; j < D / 32; j++)
            v[j] = r < rows ? __ldcg((const float4 *)(q + r * D + 32 * j + 4 * c))
                            : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
        for (int j = 0; j < D / 32; j++) {
            const uint32_t chunk = 4 * j + c / 2, at = r * D + (chunk ^ (r & 7)) * 8 + c % 2 * 4;
            uint2 h, l;
            split_bf16(v[j].x, v[j].y, h.x, l.x);
            split_bf16(v[j].z, v[j].w, h.y, l.y);
            *(uint2 *)(high + at) = h;
            *(uint2 *)(low + at) = l;
        }
        __syncthreads();
        const uint32_t from = lane % 16, second = lane / 16;
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            const uint32_t at = from * D + ((2 * k + second) ^ (from & 7)) * 8;
            load_matrix4(q_high[k], shared_address(high + at));
            load_matrix4(q_low[k], shared_address(low + at));
        }
        __syncthreads();
    }

    /* Whether this warp has anything to do in entry e of the stretch. */
    __device__ bool active(uint32_t e) const
    {
        return ((s.mask[e] >> warp) & 1) && s.slot[e] >= 0 && s.block[e] >= 0 &&
               s.block[e] * KERN_BLOCK + (int)warp * ROWS <= s.unit[e / KERN_GROUP_ENTRIES].pos;
    }

    /* Whether entry e is the block that the row's own token stands in. */
    __device__ bool open(uint32_t e) const
    {
        return s.block[e] == s.unit[e / KERN_GROUP_ENTRIES].pos / KERN_BLOCK;
    }

    /* Whether token t, or window t of BRANCH_COARSE, has a weight. */
    __device__ __forceinline__ static bool counts(const attend_unit &unit, int32_t t)
    {
        return t <= unit.pos && (BRANCH != BRANCH_NEAR || t >= unit.from);
    }

    /* Start copying entry e into a stage. Rows that do not count arrive as zeros: what stands in
     * the pool there may be anything, even NaN, and 0 * NaN would show. */
    __device__ void issue(uint32_t e, uint32_t stage)
    {
        constexpr int CHUNKS = D / 8;
        const attend_unit &unit = s.unit[e / KERN_GROUP_ENTRIES];
        const int token = s.block[e] * KERN_BLOCK + (int)warp * ROWS;
        const uint8_t *k = p.a.pool + (uint64_t)s.slot[e] * p.a.block_bytes + warp * ROWS * D * 2;
        const uint8_t *v = k + KERN_BLOCK * D * 2;
        if constexpr (BRANCH == BRANCH_COARSE) {
            const uint16_t *means = unit.kept + (uint64_t)token * D;
            k = (const uint8_t *)means;
            v = (const uint8_t *)(p.a.summary.vc + (means - p.a.summary.kc));
        }
#pragma unroll
        for (int i = 0; i < ROWS * CHUNKS / 32; i++) {
            const uint32_t c = i * 32 + lane, r = c / CHUNKS, chunk = c % CHUNKS;
            const uint32_t bytes = counts(unit, token + (int)r) ? 16 : 0;
            const uint32_t to = (chunk ^ (r & 7)) * 8;
            /* means end where Kc and Vc do, a slot's rows are all there */
            const uint32_t at = BRANCH != BRANCH_COARSE || bytes != 0 ? c * 16 : 0;
            copy_async16_or_zero(shared_address(&s.stage[warp][stage][0][r][to]), k + at, bytes);
            copy_async16_or_zero(shared_address(&s.stage[warp][stage][1][r][to]), v + at, bytes);
        }
        if (BRANCH == BRANCH_COARSE || !unit.bias) return;
        if (u_aligned) {
            if (lane < 2)
                copy_async16(shared_address(&s.u[warp][stage][lane * 8]),
                             unit.kept + token + lane * 8);
        } else if (lane < ROWS) {
            const uint32_t t = token + lane;
            s.u[warp][stage][lane] = t < p.a.summary.max_tokens ? __ldcg(unit.kept + t) : 0;
        }
    }

    /* Products of the stage's 16 tokens with the 16 heads. B fragments of K: tokens 0-7 k, 0-7 k+8,
     * 8-15 k, 8-15 k+8. */
    __device__ void products(uint32_t stage, float (&logit)[2][4])
    {
        const uint32_t lr = lane % 8, lm = lane / 8;
        float low[2][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
            uint32_t b[4];
            const uint32_t r = (lm >> 1) * 8 + lr, chunk = 2 * k + (lm & 1);
            load_matrix4(b, shared_address(&s.stage[warp][stage][0][r][(chunk ^ (r & 7)) * 8]));
            mma_16x8x16(logit[0], q_high[k], b[0], b[1]);
            mma_16x8x16(logit[1], q_high[k], b[2], b[3]);
            mma_16x8x16(low[0], q_low[k], b[0], b[1]);
            mma_16x8x16(low[1], q_low[k], b[2], b[3]);
        }
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                logit[n][i] += low[n][i];
    }

    /* Fold one stage into acc, max, sum. */
    __device__ void compute(uint32_t e, uint32_t stage)
    {
        float logit[2][4] = {};
        products(stage, logit);
        const attend_unit &unit = s.unit[e / KERN_GROUP_ENTRIES];
        const uint32_t lr = lane % 8, lm = lane / 8;
        const int token = s.block[e] * KERN_BLOCK + (int)warp * ROWS + 2 * (int)(lane % 4);
        float top[2] = {max[0], max[1]};
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const int t = n * 8 + (i & 1);
                const float add =
                    BRANCH != BRANCH_COARSE && unit.bias
                        ? bf16_float(s.u[warp][stage][2 * (lane % 4) + t]) * CUDA_LOG2E
                        : 0.0f;
                const float x = fmaf(logit[n][i], p.scale, add);
                logit[n][i] = counts(unit, token + t) ? x : -INFINITY;
                top[i >> 1] = fmaxf(top[i >> 1], logit[n][i]);
            }
        }
        float shrink[2];
#pragma unroll
        for (int h = 0; h < 2; h++) {
            top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 1));
            top[h] = fmaxf(top[h], __shfl_xor_sync(~0u, top[h], 2));
            shrink[h] = fold_factor(max[h], top[h]);
            max[h] = top[h];
            sum[h] *= shrink[h];
        }
        uint32_t p_high[4], p_low[4];
#pragma unroll
        for (int n = 0; n < 2; n++) {
#pragma unroll
            for (int h = 0; h < 2; h++) {
                const float x = fast_exp2(logit[n][2 * h] - top[h]);
                const float y = fast_exp2(logit[n][2 * h + 1] - top[h]);
                sum[h] += x + y;
                split_bf16(x, y, p_high[2 * n + h], p_low[2 * n + h]);
            }
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
            acc[n][0] *= shrink[0], acc[n][1] *= shrink[0];
            acc[n][2] *= shrink[1], acc[n][3] *= shrink[1];
        }
#pragma unroll
        for (int n = 0; n < D / 16; n++) { /* d 0-7 tokens 0-7, 8-15; d 8-15 tokens 0-7, 8-15 */
            uint32_t b[4];
            const uint32_t r = (lm & 1) * 8 + lr, chunk = 2 * n + (lm >> 1);
            load_matrix4_transposed(
                b, shared_address(&s.stage[warp][stage][1][r][(chunk ^ (r & 7)) * 8]));
            mma_16x8x16(acc[2 * n], p_high, b[0], b[1]);
            mma_16x8x16(acc[2 * n + 1], p_high, b[2], b[3]);
            mma_16x8x16(acc[2 * n], p_low, b[0], b[1]);
            mma_16x8x16(acc[2 * n + 1], p_low, b[2], b[3]);
        }
    }

    __device__ void clear()
    {
        max[0] = max[1] = -INFINITY;
        sum[0] = sum[1] = 0.0f;
#pragma unroll
        for (int n = 0; n < D / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                acc[n][i] = 0.0f;
    }

    /* The group's partial: the four warps folded in order, WIDTH columns at a time by way of
     * room[0], room[pitch], ... for each warp. Thread t holds row t / 8, columns 4 (t % 8) + 32 j.
     */
    template <int WIDTH>
    __device__ void fold_warps(row_state<D> &group, float *room, uint32_t pitch)
    {
        constexpr uint32_t LINE = WIDTH + 8;
        const uint32_t r = threadIdx.x / 8, c = threadIdx.x % 8;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float total = sum[h] + __shfl_xor_sync(~0u, sum[h], 1);
            total += __shfl_xor_sync(~0u, total, 2);
            if (lane % 4 == 0)
                s.fold_max[warp][lane / 4 + 8 * h] = max[h],
                                                s.fold_sum[warp][lane / 4 + 8 * h] = total;
        }
        float factor[WARPS];
#pragma unroll
        for (int first = 0; first < D; first += WIDTH) {
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int n = 0; n < WIDTH / 8; n++)
                    *(float2 *)&room[warp * pitch + (lane / 4 + 8 * h) * LINE + n * 8 +
                                     2 * (lane % 4)] =
                        make_float2(acc[first / 8 + n][2 * h], acc[first / 8 + n][2 * h + 1]);
            __syncthreads();
            if (first == 0) {
                group.max = fmaxf(fmaxf(s.fold_max[0][r], s.fold_max[1][r]),
                                  fmaxf(s.fold_max[2][r], s.fold_max[3][r]));
                group.sum = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    factor[w] = fold_factor(s.fold_max[w][r], group.max);
                    group.sum = fmaf(s.fold_sum[w][r], factor[w], group.sum);
                }
            }
#pragma unroll
            for (int j = 0; j < WIDTH / 32; j++) {
                float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
                for (int w = 0; w < WARPS; w++) {
                    const float4 v = *(const float4 *)&room[w * pitch + r * LINE + 32 * j + 4 * c];
                    total.x = fmaf(v.x, factor[w], total.x);
                    total.y = fmaf(v.y, factor[w], total.y);
                    total.z = fmaf(v.z, factor[w], total.z);
                    total.w = fmaf(v.w, factor[w], total.w);
                }
                const int at = first / 8 + 4 * j;
                group.value[at] = total.x, group.value[at + 1] = total.y;
                group.value[at + 2] = total.z, group.value[at + 3] = total.w;
            }
            __syncthreads();
        }
    }
};

/* Begin to copy the first entries of the tables; returns the next one to copy. With a.entered the
 * launch before this one may not have ended yet, and writes the rows' open blocks. */
template <int D, kern_branch BRANCH>
__device__ __forceinline__ uint32_t copy_first(attend_cta<D, BRANCH> &cta, uint32_t units)
{
    uint32_t ahead = 0;
    while (ahead < units * KERN_GROUP_ENTRIES &&
           cta.s.unit[ahead / KERN_GROUP_ENTRIES].entries == 0)
        ahead += KERN_GROUP_ENTRIES;
    for (uint32_t stage = 0; stage < STAGES; stage++) {
        if (ahead < units * KERN_GROUP_ENTRIES) {
            if (cta.open(ahead)) cuda_begin();
            if (cta.active(ahead)) cta.issue(ahead, stage);
            ahead = next_entry<D>(cta.s, ahead, units);
        }
        copy_async_commit();
    }
    return ahead;
}

/* The word of entry e of the tables that says whether the gather in the other stream has yet to
 * bring it; NULL where there is no such entry. */
template <int D>
__device__ __forceinline__ const uint32_t *coming_of(const attend_params &p,
                                                     const attend_shared<D> &s, uint32_t e)
{
    const attend_unit &unit = s.unit[e / KERN_GROUP_ENTRIES];
    const uint64_t list = (uint64_t)p.first_row * p.kv_heads + unit.item / p.tiles;
    const uint64_t at = list * p.a.max_select + unit.group * KERN_GROUP_ENTRIES;
    if (e % KERN_GROUP_ENTRIES >= unit.entries) return nullptr;
    return p.coming + at + e % KERN_GROUP_ENTRIES;
}

/* Whether a block of the units is yet to come; the others are there. */
template <int D>
__device__ __forceinline__ bool units_lack(const attend_params &p, const attend_shared<D> &s,
                                           uint32_t units)
{
    bool lack = false;
    for (uint32_t e = threadIdx.x; e < units * KERN_GROUP_ENTRIES; e += THREADS) {
        const uint32_t *coming = coming_of<D>(p, s, e);
        lack |= coming && load_acquire_device(coming) != 0;
    }
    return __syncthreads_or(lack);
}

/* Until all blocks of the units are there. */
template <int D>
__device__ __forceinline__ void wait_units(const attend_params &p, const attend_shared<D> &s,
                                           const attend_line &line, uint32_t units)
{
    const uint64_t begun = device_now();
    const uint32_t waiting =
        line.large == 0 ? gridDim.x : (line.dynamic + line.large - 1) / line.large;
    for (uint32_t e = threadIdx.x; e < units * KERN_GROUP_ENTRIES; e += THREADS) {
        const uint32_t *coming = coming_of<D>(p, s, e);
        while (coming && load_acquire_device(coming) != 0)
            __nanosleep(100);
    }
    __syncthreads();
    if (threadIdx.x == 0 && p.a.waited_ns)
        atomicAdd((unsigned long long *)p.a.waited_ns,
                  (unsigned long long)((device_now() - begun) / min(waiting, gridDim.x)));
}

/* The blocks of the units into the second-level cache, where those that the gather writes are by
 * then, if it holds what all CTAs read: else it would give up what was brought before it is used.
 */
template <int D>
__device__ __forceinline__ void bring_units(const attend_params &p, const attend_shared<D> &s,
                                            const attend_line &line, uint32_t units)
{
    if ((uint64_t)line.total * KERN_GROUP_ENTRIES * p.a.block_bytes > p.near_bytes) return;
    for (uint32_t e = threadIdx.x; e < units * KERN_GROUP_ENTRIES; e += THREADS)
        if (s.slot[e] >= 0)
            cuda_bring_nearer(p.a.pool + (uint64_t)s.slot[e] * p.a.block_bytes, p.a.block_bytes);
}

template <int D, kern_branch BRANCH, bool TWICE>
__global__ void __launch_bounds__(THREADS, 2) attend_kernel(const __grid_constant__ attend_params p)
{
    cuda_begin_unless(p.a.entered);
    extern __shared__ __align__(128) uint8_t shared_bytes[];
    attend_shared<D> &s = *reinterpret_cast<attend_shared<D> *>(shared_bytes);
    attend_cta<D, BRANCH> cta(p, s);
    bring_weight(p.next);
    attend_line line = measure_line<D, BRANCH, TWICE>(p, s);
    row_state<D> state, group;
    state_clear(state);
    uint32_t item = UINT32_MAX, given = 0; /* given: partials of a split super that are ours */
    for (uint32_t base = line.begin;; base += UNITS) {
        if (base >= line.end && !next_stretch<D>(p, s, line, base)) break;
        const uint32_t units = min(line.end - base, UNITS);
        load_units<D, BRANCH, TWICE>(p, s, line, base, units);
        if (p.coming && units_lack<D>(p, s, units)) {
            bring_units<D>(p, s, line, units);
            if (item == UINT32_MAX) cta.load_query(item = s.unit[0].item);
            wait_units<D>(p, s, line, units);
        }
        uint32_t ahead = copy_first(cta, units), done = 0;
        if (item == UINT32_MAX) cta.load_query(item = s.unit[0].item);
        cuda_begin();
        for (uint32_t n = 0; n < units; n++) {
            const attend_unit &unit = s.unit[n];
            if (unit.item != item) cta.load_query(item = unit.item);
            cta.clear(); /* here, so that its registers are free between groups */
            for (uint32_t i = 0; i < unit.entries; i++) {
                const uint32_t e = n * KERN_GROUP_ENTRIES + i, stage = done % STAGES;
                copy_async_wait<STAGES - 1>();
                __syncwarp();
                if (cta.active(e)) cta.compute(e, stage);
                __syncwarp();
                if (ahead < units * KERN_GROUP_ENTRIES) {
                    if (cta.active(ahead)) cta.issue(ahead, stage);
                    ahead = next_entry<D>(s, ahead, units);
                }
                copy_async_commit();
                done++;
            }
            const bool idle = n + 1 == units; /* each warp's stages, once it is here */
            if (idle)
                cta.template fold_warps<D>(group, (float *)s.stage, sizeof s.stage[0] / 4);
            else
                cta.template fold_warps<FOLD>(group, (float *)s.fold, sizeof s.fold[0] / 4);
            if (TWICE && unit.parted) {
                put_parted<D>(p, s, unit, group, idle);
                continue;
            }
            const uint32_t start = unit.start, members = unit.members, place = base + n;
            const bool ends = place + 1 == start + members;
            if (start >= line.begin && start + members <= line.end) {
                if (place == start) state_clear(state);
                state_fold(state, group);
                if (ends) finish_super<D>(p, s, unit, state);
                continue;
            }
            uint32_t where;
            const uint32_t owner = owner_of(line, start, where);
            float *partials = partial_at<D>(p, where);
            partial_store<D>(partials + (place - start) * (uint64_t)PARTIAL<D>, group,
                             threadIdx.x / 8, threadIdx.x % 8);
            given++;
            if (!ends && place + 1 < line.end) continue;
            const bool last = arrive_last<D>(s, p.arrived + 2 + owner, given, members);
            given = 0;
            if (last) finish_split<D>(p, s, unit, partials, members, idle);
        }
        __syncthreads(); /* the tables have been read */
    }
    cuda_begin(); /* who had nothing to do */
}

/* ---- launcher -------------------------------------------------------------------------------- */

/* Rows from `row` on in one launch. */
template <int D, kern_branch BRANCH, bool TWICE>
status attend_launch(cuda_stream *stream, attend_params &p, uint64_t row, uint64_t rows)
{
    const size_t bytes = sizeof(attend_shared<D>);
    TRY_CUDA(cudaFuncSetAttribute((attend_kernel<D, BRANCH, TWICE>),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    p.first_row = (uint32_t)row;
    p.items = (uint32_t)(rows * p.kv_heads * p.tiles);
    const uint64_t most = p.items * cuda_blocks(p.a.max_select, KERN_GROUP_ENTRIES);
    const uint32_t grid = (uint32_t)(most < p.ctas ? most : p.ctas);
    cuda_launch(stream, {grid, THREADS, bytes}, attend_kernel<D, BRANCH, TWICE>, p);
    return cuda_launched("attend");
}

/* Rows are cut into launches whose items, partials and counters fit. What does not fit in one is
 * attended to as a whole, when all is there. */
template <int D, kern_branch BRANCH> status attend_rows(cuda_stream *stream, attend_params &p)
{
    const uint64_t items_row = (uint64_t)p.kv_heads * p.tiles;
    const uint64_t partial_bytes = PARTIAL<D> * sizeof(float);
    p.ctas = 2 * cuda_device_of(stream->base.backend)->sms;
    if (p.a.after || p.a.part != ATTEND_WHOLE) p.ctas -= CUDA_BESIDE_CTAS;
    if (p.ctas > DYNAMIC_MAX) return FAIL(UNSUPPORTED, "attend: %u CTAs at once", p.ctas);
    const uint64_t room =
        CUDA_WORKSPACE_BYTES / partial_bytes - p.ctas * SUPER_GROUPS - DYNAMIC_MAX;
    uint64_t wave = ITEMS_MAX / items_row;
    if (p.supers > 1 && wave > room / (items_row * p.supers)) wave = room / (items_row * p.supers);
    if (wave == 0) return FAIL(UNSUPPORTED, "attend: max_select %u is too large", p.a.max_select);
    p.partial = reinterpret_cast<float *>(stream->workspace);
    p.arrived = stream->counters;
    if constexpr (BRANCH == BRANCH_SELECTED) {
        const uint64_t supers = p.a.rows * items_row * p.supers;
        const bool fits = supers <= LATE_MAX && p.a.rows <= wave &&
                          supers * (SUPER_GROUPS + (p.supers > 1)) <= room;
        if (p.a.part != ATTEND_WHOLE && fits)
            return attend_launch<D, BRANCH, true>(stream, p, 0, p.a.rows);
    }
    if (p.a.part == ATTEND_PRESENT) return STATUS_OK;
    for (uint64_t row = 0; row < p.a.rows; row += wave) {
        const uint64_t rows = p.a.rows - row < wave ? p.a.rows - row : wave;
        TRY((attend_launch<D, BRANCH, false>(stream, p, row, rows)));
    }
    return STATUS_OK;
}

template <int D> status attend_branch(cuda_stream *stream, attend_params &p)
{
    if (p.a.branch == BRANCH_NEAR) return attend_rows<D, BRANCH_NEAR>(stream, p);
    if (p.a.branch == BRANCH_COARSE) return attend_rows<D, BRANCH_COARSE>(stream, p);
    return attend_rows<D, BRANCH_SELECTED>(stream, p);
}

weight_part part_of(const kern_weight *w)
{
    weight_part part = {nullptr, 0, 0, 0};
    if (!w || w->k % 8 != 0) return part;
    const uint64_t most = NEXT_BYTES / w->n / 128 * 128; /* of a row, in lines */
    part.from = reinterpret_cast<const uint8_t *>(w->data);
    part.pitch = 2 * w->k;
    part.bytes = most < part.pitch ? (uint32_t)most : part.pitch;
    part.rows = part.bytes == 0 ? 0 : w->n;
    return part;
}

} // namespace

extern "C" status cuda_attend(kern_stream *stream, const kern_attend_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const uint32_t d = args->summary.head_dim;
    if (args->prefill && args->branch == BRANCH_SELECTED &&
        cuda_prefill_can(cuda_stream_of(stream), args->heads / args->summary.kv_heads, d))
        return cuda_prefill_attend(cuda_stream_of(stream), args);
    if ((uintptr_t)args->q % 16 != 0 || args->row_stride % 4 != 0)
        return FAIL(UNSUPPORTED, "attend on CUDA: queries that do not begin at 16 bytes");
    attend_params p = {};
    p.a = *args;
    p.kv_heads = args->summary.kv_heads;
    p.group_heads = args->heads / p.kv_heads;
    p.tiles = cuda_blocks(p.group_heads, ROWS);
    if (args->branch == BRANCH_COARSE) /* an empty list has a group too */
        p.a.max_select =
            args->summary.max_windows == 0 ? 1 : cuda_blocks(args->summary.max_windows, KERN_BLOCK);
    p.supers = cuda_blocks(p.a.max_select, KERN_LATE_ENTRIES);
    p.scale = CUDA_LOG2E / sqrtf((float)d);
    p.coming = args->after ? args->after->coming : nullptr;
    p.near_bytes = cuda_device_of(stream->backend)->l2_bytes / 4 * 3;
    if (args->after && args->part == ATTEND_LATE) p.next = part_of(args->next);
    if (d == 64) return attend_branch<64>(cuda_stream_of(stream), p);
    if (d == 128) return attend_branch<128>(cuda_stream_of(stream), p);
    return FAIL(UNSUPPORTED, "attend on CUDA has heads of 64 or 128, not %u", d);
}
