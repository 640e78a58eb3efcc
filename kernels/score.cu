/* kernels/score.cu - query-aware scores of compressed keys: for every window the sum over a group's
 * heads of that head's exact softmax. NOSA, arXiv 2510.13602; compressed keys as InfLLM-V2. Raw
 * rows (MoBA, arXiv 2502.13189) have the sum of the plain products: nothing is exchanged, each warp
 * writes what it multiplied.
 *
 * Bound: each compressed key is read once, D bf16, and 4 bytes of score are written: memory, as
 * long as the logits (64 bytes a window with 16 heads) never leave the chip. So:
 *
 *   warp     128 windows of one row and KV head, 16 at a time through swizzled shared memory into
 * mma; the logits of all heads stay in its registers, and become exponentials against its own
 * maximum CTA      4 warps; (max, sum) of each head folded in their order cluster  the CTAs of a
 * row and KV head: each writes its (max, sum) into the shared memory of its peers, one barrier, and
 * each weighs its own exponentials and sums them over the heads
 *
 * Where a row has more than 16 CTAs, or the device has no clusters (before sm_90), the same kernel
 * runs twice, (max, sum) through the workspace, and reads the keys twice. The bits are the same.
 * The first of the two runs has nothing to do for raw rows.
 *
 * Rows of a prompt go to prefill_score.cu where the device has the products.
 *
 * Bits: the structure depends on a window's index only. q is split into two bf16 (high + low). */
#include "kernels/prefill.cuh"
#include "kernels/selector.h"

#include <cooperative_groups.h>

namespace cg = cooperative_groups;

namespace
{

constexpr int WARPS = 4, THREADS = 32 * WARPS, HEADS = 16, STAGES = 3, TILES = 8;
constexpr uint32_t WARP_WINDOWS = 16 * TILES, CTA_WINDOWS = WARPS * WARP_WINDOWS, CLUSTER_MAX = 16;

enum score_pass { PASS_CLUSTER, PASS_STATISTICS, PASS_SCORES };

struct score_params {
    kern_score_args a;
    float *statistics; /* [rows of the launch, kv_heads, chunks, 2, HEADS] for the two-pass form */
    uint32_t first_row, kv_heads, group_heads, chunks; /* chunks: CTAs of a row and KV head */
    float scale;                                       /* log2(e) / sqrt(D) */
};

template <int D> struct score_shared {
    uint16_t stage[WARPS][STAGES][16][D];
    uint16_t query[2][HEADS][D]; /* high, low */
    float warp_max[WARPS][HEADS], warp_sum[WARPS][HEADS], factor[WARPS][HEADS];
    float peer_max[CLUSTER_MAX][HEADS], peer_sum[CLUSTER_MAX][HEADS];
};

/* Logits of a warp: [tile][8 windows][row, row, row + 8, row + 8 of lane / 4]. */
typedef float warp_logits[TILES][2][4];

/* q of the group's heads, split; rows beyond them are 0. */
template <int D> __device__ void load_query(score_shared<D> &s, const float *q, uint32_t heads)
{
    const uint32_t r = threadIdx.x / 8, part = threadIdx.x % 8;
#pragma unroll
    for (uint32_t c = 0; c < D / 64; c++) {
        const uint32_t chunk = c * 8 + part;
        uint32_t high[4], low[4];
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) {
            const float x = r < heads ? q[r * D + chunk * 8 + 2 * i] : 0.0f;
            const float y = r < heads ? q[r * D + chunk * 8 + 2 * i + 1] : 0.0f;
            split_bf16(x, y, high[i], low[i]);
        }
        const uint32_t to = (chunk ^ (r & 7)) * 8;
        *(uint4 *)&s.query[0][r][to] = make_uint4(high[0], high[1], high[2], high[3]);
        *(uint4 *)&s.query[1][r][to] = make_uint4(low[0], low[1], low[2], low[3]);
    }
}

/* Start copying 16 windows; those at `count` or beyond arrive as zeros. */
template <int D>
__device__ __forceinline__ void issue_tile(uint16_t (&stage)[16][D], const uint16_t *kc,
                                           uint32_t first, uint32_t count)
{
    constexpr int CHUNKS = D / 8;
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (int i = 0; i < 16 * CHUNKS / 32; i++) {
        const uint32_t c = i * 32 + lane, r = c / CHUNKS, chunk = c % CHUNKS;
        const bool there = first + r < count;
        copy_async16_or_zero(shared_address(&stage[r][(chunk ^ (r & 7)) * 8]),
                             there ? kc + ((uint64_t)first * D + c * 8) : kc, there ? 16 : 0);
    }
}

/* Products of a tile's 16 windows with the heads. */
template <int D>
__device__ __forceinline__ void tile_products(const score_shared<D> &s,
                                              const uint16_t (&stage)[16][D], float (&logit)[2][4])
{
    const uint32_t lane = threadIdx.x % 32, lr = lane % 8, lm = lane / 8;
    float low[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; i++)
        logit[0][i] = logit[1][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
        uint32_t b[4], q[4], ql[4];
        const uint32_t r = (lm >> 1) * 8 + lr, chunk = 2 * k + (lm & 1);
        const uint32_t qr = (lm & 1) * 8 + lr, qc = ((2 * k + (lm >> 1)) ^ (qr & 7)) * 8;
        load_matrix4(b, shared_address(&stage[r][(chunk ^ (r & 7)) * 8]));
        load_matrix4(q, shared_address(&s.query[0][qr][qc]));
        load_matrix4(ql, shared_address(&s.query[1][qr][qc]));
        mma_16x8x16(logit[0], q, b[0], b[1]);
        mma_16x8x16(logit[1], q, b[2], b[3]);
        mma_16x8x16(low[0], ql, b[0], b[1]);
        mma_16x8x16(low[1], ql, b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            logit[n][i] += low[n][i];
}

/* Products of the warp's first `count` windows times `scale`; `beyond` for the others. */
template <int D>
__device__ __forceinline__ void warp_products(score_shared<D> &s, const uint16_t *kc,
                                              uint32_t count, float scale, float beyond,
                                              warp_logits &logit)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        copy_async_wait<STAGES - 1>();
        __syncwarp();
        if ((uint32_t)t * 16 < count) tile_products<D>(s, s.stage[warp][t % STAGES], logit[t]);
        __syncwarp();
        const uint32_t next = t + STAGES;
        if (next < TILES && next * 16 < count)
            issue_tile<D>(s.stage[warp][t % STAGES], kc, next * 16, count);
        copy_async_commit();
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const uint32_t w = t * 16 + n * 8 + 2 * (lane % 4) + (i & 1);
                logit[t][n][i] = w < count ? logit[t][n][i] * scale : beyond;
            }
    }
}

/* Logits become exponentials against the warp's maximum; (max, sum) a head into shared memory. */
template <int D>
__device__ __forceinline__ void warp_exponentials(score_shared<D> &s, warp_logits &logit)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; h++) {
        float top = -INFINITY, sum = 0.0f;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int n = 0; n < 2; n++)
                top = fmaxf(top, fmaxf(logit[t][n][2 * h], logit[t][n][2 * h + 1]));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
        top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
        const float from = top == -INFINITY ? 0.0f : top;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int n = 0; n < 2; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++) {
                    logit[t][n][i] = fast_exp2(logit[t][n][i] - from);
                    sum += logit[t][n][i];
                }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        if (lane % 4 == 0)
            s.warp_max[warp][lane / 4 + 8 * h] = top, s.warp_sum[warp][lane / 4 + 8 * h] = sum;
    }
}

/* Fold one more part's (max, sum) into a head's total. */
__device__ __forceinline__ void fold_part(float &max, float &sum, float part_max, float part_sum)
{
    if (part_max == -INFINITY) return;
    const float together = fmaxf(max, part_max);
    const float a = max == -INFINITY ? 0.0f : fast_exp2(max - together);
    sum = fmaf(part_sum, fast_exp2(part_max - together), sum * a);
    max = together;
}

/* (max, sum) of this CTA for head threadIdx.x % HEADS. */
template <int D>
__device__ __forceinline__ void fold_warps(const score_shared<D> &s, float &max, float &sum)
{
    max = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int w = 0; w < WARPS; w++)
        fold_part(max, sum, s.warp_max[w][threadIdx.x % HEADS], s.warp_sum[w][threadIdx.x % HEADS]);
}

/* What the warps' exponentials are multiplied by: (max, sum) of all CTAs of the row, from its peers
 * or from an earlier run, and the warp's own max. */
template <int D, score_pass PASS>
__device__ __forceinline__ void fold_row(score_shared<D> &s, const score_params &p,
                                         const float *statistics)
{
    const uint32_t head = threadIdx.x % HEADS;
    float max = -INFINITY, sum = 0.0f;
    for (uint32_t i = 0; i < p.chunks; i++)
        if (PASS == PASS_CLUSTER)
            fold_part(max, sum, s.peer_max[i][head], s.peer_sum[i][head]);
        else
            fold_part(max, sum, statistics[i * 2 * HEADS + head],
                      statistics[i * 2 * HEADS + HEADS + head]);
    if (threadIdx.x >= WARPS * HEADS) return;
    const float own = s.warp_max[threadIdx.x / HEADS][head];
    s.factor[threadIdx.x / HEADS][head] =
        head < p.group_heads && own != -INFINITY ? fast_exp2(own - max) / sum : 0.0f;
}

/* One step of a butterfly that adds and halves: the lane keeps the upper or the lower HALF sums. */
template <int HALF> __device__ __forceinline__ void halve(float (&v)[32], bool upper, int bit)
{
#pragma unroll
    for (int i = 0; i < HALF; i++) {
        const float keep = upper ? v[HALF + i] : v[i], give = upper ? v[i] : v[HALF + i];
        v[i] = keep + __shfl_xor_sync(~0u, give, bit);
    }
}

/* Exponentials (or products) times their factors, summed over the heads, written for windows below
 * `limit`. First a lane's two rows, then a butterfly over lane / 4 that leaves each four lanes one
 * tile. */
template <int D>
__device__ __forceinline__ void write_scores(const score_shared<D> &s, const warp_logits &e,
                                             float *out, uint32_t limit)
{
    const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const float f0 = s.factor[warp][lane / 4], f1 = s.factor[warp][lane / 4 + 8];
    float v[32];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int c = 0; c < 2; c++)
                v[t * 4 + n * 2 + c] = fmaf(e[t][n][2 + c], f1, e[t][n][c] * f0);
    halve<16>(v, lane & 16, 16);
    halve<8>(v, lane & 8, 8);
    halve<4>(v, lane & 4, 4);
    const uint32_t tile = lane / 4; /* bits 4, 3, 2 of the lane chose halves, quarters, eighths */
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const uint32_t w = tile * 16 + n * 8 + 2 * (lane % 4) + c;
            if (w < limit) out[w] = v[n * 2 + c];
        }
}

/* A CTA's (max, sum) to every peer; then all of them are here. */
template <int D>
__device__ __forceinline__ void exchange_statistics(score_shared<D> &s, float max, float sum)
{
#if __CUDA_ARCH__ >= 900
    cg::cluster_group cluster = cg::this_cluster();
    const uint32_t rank = cluster.block_rank(), size = cluster.num_blocks();
    asm volatile("barrier.cluster.wait.aligned;" ::: "memory"); /* all peers have begun */
    for (uint32_t peer = threadIdx.x / HEADS; peer < size; peer += THREADS / HEADS) {
        *cluster.map_shared_rank(&s.peer_max[rank][threadIdx.x % HEADS], peer) = max;
        *cluster.map_shared_rank(&s.peer_sum[rank][threadIdx.x % HEADS], peer) = sum;
    }
    cluster.sync();
#else
    (void)s, (void)max, (void)sum;
#endif
}

/* grid: (chunks, kv_heads, rows of the launch); clusters of gridDim.x when PASS_CLUSTER. */
template <int D, score_pass PASS>
__global__ void __launch_bounds__(THREADS, 3) score_kernel(const __grid_constant__ score_params p)
{
    cuda_begin_short();
    extern __shared__ __align__(128) uint8_t shared_bytes[];
    score_shared<D> &s = *reinterpret_cast<score_shared<D> *>(shared_bytes);
    const uint32_t row = p.first_row + blockIdx.z, kv_head = blockIdx.y, warp = threadIdx.x / 32;
    const kern_selector selector = p.a.selectors[p.a.row_selector[row]];
    const int32_t pos = p.a.row_pos[row];
    const bool raw = selector.raw;
    if (!selector_needs_scores(&selector, pos)) return; /* the whole cluster leaves */
    if (PASS == PASS_STATISTICS && raw) return;
#if __CUDA_ARCH__ >= 900
    if (PASS == PASS_CLUSTER && !raw) asm volatile("barrier.cluster.arrive.relaxed.aligned;");
#endif
    const uint32_t windows = p.a.summary.max_windows;
    const uint32_t visible = min(selector_visible(&selector, pos), windows);
    const uint32_t start = blockIdx.x * CTA_WINDOWS + warp * WARP_WINDOWS;
    const uint32_t count = start < visible ? min(visible - start, WARP_WINDOWS) : 0;
    const uint64_t place = (uint64_t)p.a.row_seq[row] * p.kv_heads + kv_head;
    const uint16_t *kc = p.a.summary.kc + (place * windows + min(start, windows - 1)) * D;
#pragma unroll
    for (uint32_t i = 0; i < STAGES; i++) {
        if (i * 16 < count) issue_tile<D>(s.stage[warp][i], kc, i * 16, count);
        copy_async_commit();
    }
    load_query<D>(s, p.a.q + (uint64_t)row * p.a.row_stride + (uint64_t)kv_head * p.group_heads * D,
                  p.group_heads);
    __syncthreads();
    warp_logits logit;
    warp_products<D>(s, kc, count, raw ? 1.0f : p.scale, raw ? 0.0f : -INFINITY, logit);
    if (!raw) warp_exponentials<D>(s, logit);
    __syncthreads();

    float *statistics =
        p.statistics + ((uint64_t)blockIdx.z * p.kv_heads + kv_head) * p.chunks * 2 * HEADS;
    const uint32_t head = threadIdx.x % HEADS;
    if (raw) {
        if (threadIdx.x < WARPS * HEADS)
            s.factor[threadIdx.x / HEADS][head] = head < p.group_heads ? 1.0f : 0.0f;
    } else {
        float max, sum;
        fold_warps<D>(s, max, sum);
        if (PASS == PASS_STATISTICS) {
            if (threadIdx.x >= HEADS) return;
            statistics[blockIdx.x * 2 * HEADS + head] = max;
            statistics[blockIdx.x * 2 * HEADS + HEADS + head] = sum;
            return;
        }
        if (PASS == PASS_CLUSTER) exchange_statistics<D>(s, max, sum);
        fold_row<D, PASS>(s, p, statistics);
    }
    __syncthreads();
    if (start >= windows) return;
    write_scores<D>(s, logit, p.a.out + ((uint64_t)row * p.kv_heads + kv_head) * windows + start,
                    windows - start);
}

/* ---- launcher -------------------------------------------------------------------------------- */

template <int D, score_pass PASS>
status launch(cuda_stream *stream, const score_params &p, uint32_t rows, uint32_t width)
{
    const size_t bytes = sizeof(score_shared<D>);
    TRY_CUDA(cudaFuncSetAttribute((score_kernel<D, PASS>),
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    if (width > 8 && PASS == PASS_CLUSTER)
        TRY_CUDA(cudaFuncSetAttribute((score_kernel<D, PASS>),
                                      cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    const dim3 grid(width, p.kv_heads, rows);
    cuda_launch(stream, {grid, THREADS, bytes, PASS == PASS_CLUSTER ? width : 0},
                score_kernel<D, PASS>, p);
    return cuda_launched("score");
}

template <int D> status score_rows(cuda_stream *stream, score_params &p)
{
    uint32_t width = 1; /* a power of two; CTAs beyond the last chunk have nothing to do */
    while (width < p.chunks)
        width *= 2;
    const cuda_device *device = cuda_device_of(stream->base.backend);
    const bool cluster = width <= CLUSTER_MAX && device->major >= 9;
    const uint64_t row_bytes = (uint64_t)p.kv_heads * p.chunks * 2 * HEADS * sizeof(float);
    uint64_t wave = cluster ? 32768 : CUDA_WORKSPACE_BYTES / row_bytes;
    if (wave > 32768) wave = 32768;
    p.statistics = reinterpret_cast<float *>(stream->workspace);
    for (uint64_t row = 0; row < p.a.rows; row += wave) {
        const uint32_t rows = (uint32_t)(p.a.rows - row < wave ? p.a.rows - row : wave);
        p.first_row = (uint32_t)row;
        status done;
        if (cluster) {
            done = launch<D, PASS_CLUSTER>(stream, p, rows, width);
        } else {
            done = launch<D, PASS_STATISTICS>(stream, p, rows, p.chunks);
            if (done == STATUS_OK) done = launch<D, PASS_SCORES>(stream, p, rows, p.chunks);
        }
        if (done != STATUS_OK) return done;
    }
    return STATUS_OK;
}

} // namespace

extern "C" status cuda_score(kern_stream *stream, const kern_score_args *args)
{
    if (args->rows == 0 || args->summary.max_windows == 0) return STATUS_OK;
    if (args->prefill &&
        cuda_prefill_can(cuda_stream_of(stream), args->heads / args->summary.kv_heads,
                         args->summary.head_dim))
        return cuda_prefill_score(cuda_stream_of(stream), args);
    score_params p = {};
    p.a = *args;
    p.kv_heads = args->summary.kv_heads;
    p.group_heads = args->heads / p.kv_heads;
    p.chunks = cuda_blocks(args->summary.max_windows, CTA_WINDOWS);
    const uint32_t d = args->summary.head_dim;
    p.scale = CUDA_LOG2E / sqrtf((float)d);
    if (p.group_heads > HEADS)
        return FAIL(UNSUPPORTED, "score on CUDA has up to %d heads on a KV head, not %u", HEADS,
                    p.group_heads);
    if (d == 64) return score_rows<64>(cuda_stream_of(stream), p);
    if (d == 128) return score_rows<128>(cuda_stream_of(stream), p);
    return FAIL(UNSUPPORTED, "score on CUDA has heads of 64 or 128, not %u", d);
}
