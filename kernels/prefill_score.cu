/* kernels/prefill_score.cu - scores of compressed keys for a prompt's rows, on Hopper's warpgroup
 * products; what score.cu computes for single rows.
 *
 * Bound: arithmetic, 4 * D flops a head and window: the keys are multiplied twice. A tile of
 * consecutive tokens (prefill.cuh) reads each key once a pass:
 *
 *   first   (max, sum) of each of a tile's 128 rows over its windows, 64 at a time
 *   second  the same products again; exp2(logit - max - log2 sum), summed over the heads of a token
 *           across lanes, written
 *
 * Two CTAs an SM: one multiplies while the other takes exponentials. Keeping the logits between the
 * passes would take 64 bytes a window and row out of the chip and back, more than the keys.
 *
 * Raw rows (MoBA, arXiv 2502.13189) have one pass: the products themselves, summed over the heads.
 * A few blocks are chosen by small differences of large sums, so there q is two bf16, as for single
 * rows; its second half takes two of the four stages.
 *
 * Bits: a row's sums run over windows in ascending order in the same lanes whatever the tile; q is
 * rounded to bf16 (raw: split into two). Source: NOSA, arXiv 2510.13602; compressed keys as
 * InfLLM-V2. */
#include "kernels/prefill.cuh"
#include "kernels/selector.h"
#include "kernels/wgmma.cuh"

namespace
{

constexpr uint32_t STAGES = 4, WINDOWS = 64;

struct score_params {
    kern_score_args a;
    prefill_shape shape;
};

template <int D> struct score_shared {
    uint8_t query[2][D / 64][64 * 128];
    uint8_t stage[STAGES][D / 64][WINDOWS * 128];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <int D> struct score_cta {
    const score_params &p;
    score_shared<D> &s;
    const uint32_t group, lane, head, first; /* warpgroup; the tile's first token */
    const uint16_t *kc;
    uint32_t row[2], visible[2]; /* of this thread's two rows; visible 0: nothing to do */
    uint32_t most;               /* windows that the tile's last token sees */
    bool real[2];                /* the row stands for a head */
    bool raw;
    float logit[32], max[2], sum[2];

    __device__ score_cta(const score_params &params, score_shared<D> &shared, uint32_t tile)
        : p(params), s(shared), group(threadIdx.x / 128), lane(threadIdx.x % 32), head(blockIdx.y),
          first(tile * params.shape.tile_tokens)
    {
        const kern_selector selector = p.a.selectors[p.a.row_selector[first]];
        const uint32_t windows = p.a.summary.max_windows;
        const uint32_t last = min(first + p.shape.tile_tokens, p.shape.rows) - 1;
        kc =
            p.a.summary.kc + ((uint64_t)p.a.row_seq[first] * p.shape.kv_heads + head) * windows * D;
        most = seen(selector, p.a.row_pos[last]);
        raw = selector.raw;
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const uint32_t m = group * 64 + threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * h;
            row[h] = first + m / p.shape.padded_heads;
            real[h] = m % p.shape.padded_heads < p.shape.group_heads;
            visible[h] = row[h] <= last ? seen(selector, p.a.row_pos[row[h]]) : 0;
            max[h] = -INFINITY, sum[h] = 0.0f;
        }
    }

    __device__ uint32_t seen(const kern_selector &selector, int32_t pos) const
    {
        if (!selector_needs_scores(&selector, pos)) return 0;
        return min(selector_visible(&selector, pos), p.a.summary.max_windows);
    }

    /* Start copying windows 64 j ...; those that no row sees arrive as zeros. */
    __device__ __forceinline__ void issue(uint32_t t, uint32_t j)
    {
        const uint32_t from = j * WINDOWS;
#pragma unroll
        for (int i = 0; i < (int)WINDOWS * D / 8 / PREFILL_THREADS; i++) {
            const uint32_t c = i * PREFILL_THREADS + threadIdx.x, r = c / (D / 8);
            const uint32_t chunk = c % (D / 8), to = r * 128 + ((chunk % 8) ^ (r & 7)) * 16;
            const bool there = from + r < most;
            copy_async16_or_zero(shared_address(s.stage[t % STAGES][chunk / 8] + to),
                                 there ? kc + (uint64_t)from * D + c * 8 : kc, there ? 16 : 0);
        }
    }

    /* RAW: with both halves of q, the second of which stands in the first two stages. */
    template <bool RAW> __device__ __forceinline__ void products(uint32_t t)
    {
        const uint32_t k = shared_address(s.stage[t % STAGES]);
        wgmma_begin();
#pragma unroll
        for (int half = 0; half < (RAW ? 2 : 1); half++) {
            const uint32_t q = shared_address(half == 0 ? s.query[group] : s.stage[group]);
#pragma unroll
            for (int i = 0; i < D / 16; i++) {
                const uint32_t at = i / 4 * 8192 + i % 4 * 32;
                wgmma_64x64(logit, wgmma_panel(q + at, 0), wgmma_panel(k + at, 0), half + i > 0);
            }
        }
        wgmma_commit();
        wgmma_wait<0>();
    }

    /* Windows that a row does not see: -inf, RAW: 0. */
    template <bool RAW> __device__ __forceinline__ void hide(uint32_t j)
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            const int left = (int)visible[h] - (int)(j * WINDOWS + 2 * (lane % 4));
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    if (8 * n + i >= left) logit[4 * n + 2 * h + i] = RAW ? 0.0f : -INFINITY;
        }
    }

    /* First pass: this thread's columns into (max, sum), in units of log2. */
    __device__ __forceinline__ void measure()
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float top = max[h];
#pragma unroll
            for (int n = 0; n < 8; n++)
                top = fmaxf(top,
                            p.shape.scale * fmaxf(logit[4 * n + 2 * h], logit[4 * n + 2 * h + 1]));
            const float from = top == -INFINITY ? 0.0f : top;
            float total = 0.0f;
#pragma unroll
            for (int n = 0; n < 8; n++)
#pragma unroll
                for (int i = 2 * h; i < 2 * h + 2; i++)
                    total += fast_exp2(fmaf(logit[4 * n + i], p.shape.scale, -from));
            sum[h] = fmaf(sum[h], fast_exp2(max[h] - from), total);
            max[h] = top;
        }
    }

    /* max becomes what is taken off a logit: max + log2 sum of the row. */
    __device__ __forceinline__ void settle()
    {
#pragma unroll
        for (int h = 0; h < 2; h++) {
#pragma unroll
            for (int bit = 1; bit <= 2; bit *= 2) {
                const float other = __shfl_xor_sync(~0u, max[h], bit);
                const float other_sum = __shfl_xor_sync(~0u, sum[h], bit);
                const float top = fmaxf(max[h], other), from = top == -INFINITY ? 0.0f : top;
                sum[h] = sum[h] * fast_exp2(max[h] - from) + other_sum * fast_exp2(other - from);
                max[h] = top;
            }
            max[h] = real[h] && sum[h] > 0.0f ? max[h] + log2f(sum[h]) : INFINITY;
        }
    }

    /* What a logit adds to its window's score. */
    template <bool RAW> __device__ __forceinline__ float share(int at, int h) const
    {
        if (RAW) return real[h] ? logit[at] : 0.0f;
        return fast_exp2(fmaf(logit[at], p.shape.scale, -max[h]));
    }

    /* Second pass: shares of the softmax, summed over the heads of a token, written. */
    template <bool RAW> __device__ __forceinline__ void write(uint32_t j)
    {
        const uint32_t windows = p.a.summary.max_windows;
        const uint32_t spread = min(p.shape.padded_heads, 8u); /* lanes / 4 that share a token */
        const bool both = p.shape.padded_heads == 16;
#pragma unroll
        for (int n = 0; n < 8; n++) {
            float v[2][2];
#pragma unroll
            for (int h = 0; h < 2; h++)
#pragma unroll
                for (int i = 0; i < 2; i++)
                    v[h][i] = share<RAW>(4 * n + 2 * h + i, h);
            if (both) v[0][0] += v[1][0], v[0][1] += v[1][1];
            for (uint32_t bit = 4; bit < 4 * spread; bit *= 2) {
                v[0][0] += __shfl_xor_sync(~0u, v[0][0], bit);
                v[0][1] += __shfl_xor_sync(~0u, v[0][1], bit);
                if (both) continue;
                v[1][0] += __shfl_xor_sync(~0u, v[1][0], bit);
                v[1][1] += __shfl_xor_sync(~0u, v[1][1], bit);
            }
            if (lane / 4 % spread != n % spread) continue;
            const uint32_t w = j * WINDOWS + 8 * n + 2 * (lane % 4);
#pragma unroll
            for (int h = 0; h < 2; h++) {
                if (visible[h] == 0 || (h == 1 && both)) continue;
                float *out = p.a.out + ((uint64_t)row[h] * p.shape.kv_heads + head) * windows;
                if (w < windows) out[w] = v[h][0];
                if (w + 1 < windows) out[w + 1] = v[h][1];
            }
        }
    }

    /* Windows that no row of the tile sees. */
    __device__ void write_rest(uint32_t from)
    {
        const kern_selector selector = p.a.selectors[p.a.row_selector[first]];
        const uint32_t windows = p.a.summary.max_windows;
        for (uint32_t t = 0; t < p.shape.tile_tokens && first + t < p.shape.rows; t++) {
            if (seen(selector, p.a.row_pos[first + t]) == 0) continue;
            float *out = p.a.out + ((uint64_t)(first + t) * p.shape.kv_heads + head) * windows;
            for (uint32_t w = from + threadIdx.x; w < windows; w += PREFILL_THREADS)
                out[w] = 0.0f;
        }
    }

    __device__ void run()
    {
        const uint32_t tiles = (most + WINDOWS - 1) / WINDOWS;
        if (most == 0) return;
#pragma unroll
        for (uint32_t t = 0; t < STAGES - 1; t++) {
            if (t < 2 * tiles) issue(t, t % tiles);
            copy_async_commit();
        }
        prefill_load_query<D>(s.query, p.shape, p.a.q, p.a.row_stride, first, head);
#pragma unroll 1
        for (uint32_t t = 0; t < 2 * tiles; t++) {
            const uint32_t j = t < tiles ? t : t - tiles, ahead = t + STAGES - 1;
            copy_async_wait<STAGES - 2>();
            wgmma_publish();
            __syncthreads(); /* the stage before has been read by all */
            if (ahead < 2 * tiles) issue(ahead, ahead < tiles ? ahead : ahead - tiles);
            copy_async_commit();
            products<false>(t);
            if (j * WINDOWS + WINDOWS > min(visible[0], visible[1])) hide<false>(j);
            if (t < tiles) {
                measure();
                if (t + 1 == tiles) settle();
            } else {
                write<false>(j);
            }
        }
        write_rest(tiles * WINDOWS);
    }

    __device__ void run_raw()
    {
        typedef uint8_t query_panels[2][D / 64][64 * 128];
        static_assert(STAGES == 4 && WINDOWS == 64, "two stages hold what query holds");
        const uint32_t tiles = (most + WINDOWS - 1) / WINDOWS;
        if (most == 0) return;
        issue(2, 0);
        copy_async_commit();
        prefill_load_query<D>(s.query, p.shape, p.a.q, p.a.row_stride, first, head);
        prefill_load_query<D, true>(*reinterpret_cast<query_panels *>(s.stage), p.shape, p.a.q,
                                    p.a.row_stride, first, head);
#pragma unroll 1
        for (uint32_t j = 0; j < tiles; j++) {
            copy_async_wait<0>();
            wgmma_publish();
            __syncthreads(); /* the windows before have been read by all */
            if (j + 1 < tiles) issue(2 + (j + 1) % 2, j + 1);
            copy_async_commit();
            products<true>(2 + j % 2);
            if (j * WINDOWS + WINDOWS > min(visible[0], visible[1])) hide<true>(j);
            write<true>(j);
        }
        write_rest(tiles * WINDOWS);
    }
};

#endif

template <int D>
__global__ void __launch_bounds__(PREFILL_THREADS, 2)
    prefill_score_kernel(const __grid_constant__ score_params p)
{
    cuda_begin();
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    extern __shared__ __align__(1024) uint8_t shared_bytes[];
    score_shared<D> &s = *reinterpret_cast<score_shared<D> *>(shared_bytes);
    score_cta<D> cta(p, s, gridDim.x - 1 - blockIdx.x); /* the longest first */
    if (cta.raw)
        cta.run_raw();
    else
        cta.run();
#endif
}

template <int D> status launch(cuda_stream *stream, const score_params &p)
{
    const size_t bytes = sizeof(score_shared<D>);
    TRY_CUDA(cudaFuncSetAttribute(prefill_score_kernel<D>,
                                  cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
    const dim3 grid(cuda_blocks(p.shape.rows, p.shape.tile_tokens), p.shape.kv_heads);
    cuda_launch(stream, {grid, PREFILL_THREADS, bytes}, prefill_score_kernel<D>, p);
    return cuda_launched("prefill score");
}

} // namespace

status cuda_prefill_score(cuda_stream *stream, const kern_score_args *args)
{
    const uint32_t d = args->summary.head_dim;
    score_params p = {};
    p.a = *args;
    p.shape = prefill_shape_of(args->rows, args->heads, args->summary.kv_heads, d);
    return d == 64 ? launch<64>(stream, p) : launch<128>(stream, p);
}
