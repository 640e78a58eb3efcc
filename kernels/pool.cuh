/* kernels/pool.cuh - windows to one selection block (NOSA, arXiv 2510.13602: a block's score is the
 * most of the windows that share a token with it; MoBA, arXiv 2502.13189, has one mean of a block's
 * keys, so a raw score is the mean of its windows' scores; NSA, arXiv 2502.11089, equation 9, adds
 * windows up, each as often as it has strides in the block). For pool alone (pool.cu) and in front
 * of select (select.cu). Floats are compared, or added in ascending order and divided once, so the
 * bits are the CPU's. */
#ifndef KERNELS_POOL_CUH
#define KERNELS_POOL_CUH

#include "kernels/cuda.cuh"
#include "kernels/selector.h"

constexpr uint32_t POOL_AHEAD = 6; /* windows read at once; a block of NOSA's touches five */

/* Strides of window j in block b. */
__device__ __forceinline__ float strides_shared(const kern_selector &s, uint32_t b, uint32_t j)
{
    const uint32_t first = b * s.block, from = j * s.stride;
    const uint32_t tokens = min(from + s.window, first + s.block) - max(from, first);
    return __fdiv_rn((float)tokens, (float)s.stride);
}

struct pooled {
    float query, importance;
};

/* Block b of a list (row, KV head), b <= current; stored and returned. */
__device__ __forceinline__ pooled pool_block(const kern_pool_args &a, const kern_selector &selector,
                                             uint32_t row, uint32_t head, uint32_t b)
{
    const kern_summary &s = a.summary;
    const int32_t pos = a.row_pos[row];
    const uint64_t list = (uint64_t)row * s.kv_heads + head;
    float query = INFINITY, importance = INFINITY;
    if (!selector_forced(&selector, b, selector_current(&selector, pos))) {
        const uint32_t visible = min(selector_visible(&selector, pos), s.max_windows);
        const bool scored = selector_needs_scores(&selector, pos);
        const float *scores = a.scores + list * s.max_windows;
        const uint16_t *uc = s.uc + ((uint64_t)a.row_seq[row] * s.kv_heads + head) * s.max_windows;
        uint32_t lo, hi;
        selector_block_windows(&selector, b, visible, &lo, &hi);
        query = importance = -INFINITY;
        float sum = 0.0f;
        for (uint32_t first = lo; first < hi; first += POOL_AHEAD) {
            uint16_t u[POOL_AHEAD];
            float score[POOL_AHEAD];
#pragma unroll
            for (uint32_t i = 0; i < POOL_AHEAD; i++) {
                const uint32_t j = min(first + i, hi - 1);
                u[i] = uc[j];
                score[i] = scored ? scores[j] : 0.0f;
            }
#pragma unroll
            for (uint32_t i = 0; i < POOL_AHEAD; i++) {
                if (first + i >= hi) break;
                if (scored && selector.raw)
                    sum = __fadd_rn(sum, score[i]);
                else if (scored && selector.near != 0)
                    sum =
                        __fadd_rn(sum, __fmul_rn(strides_shared(selector, b, first + i), score[i]));
                else if (scored && score[i] > query)
                    query = score[i];
                importance = bf16_float(u[i]) > importance ? bf16_float(u[i]) : importance;
            }
        }
        if (scored && hi > lo) {
            if (selector.raw)
                query = __fdiv_rn(sum, (float)(hi - lo));
            else if (selector.near != 0)
                query = sum;
        }
    }
    a.query[list * a.max_select_blocks + b] = query;
    a.importance[list * a.max_select_blocks + b] = importance;
    return pooled{query, importance};
}

#endif
