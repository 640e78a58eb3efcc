/* kernels/pool.cu - windows to selection blocks, then forcing (NOSA, arXiv 2510.13602: a block's
 * score is the most of the windows that share a token with it; MoBA, arXiv 2502.13189, has one mean
 * of a block's keys, so a raw score is the mean of its windows' scores; NSA, arXiv 2502.11089,
 * equation 9, adds windows up, each as often as it has strides in the block). Bound: launch; one
 * thread a block. Floats are compared, or added in ascending order and divided once, so the bits
 * are the CPU's. */
#include "kernels/cuda.cuh"
#include "kernels/selector.h"

namespace
{

/* Strides of window j in block b. */
__device__ __forceinline__ float strides_shared(const kern_selector &s, uint32_t b, uint32_t j)
{
    const uint32_t first = b * s.block, from = j * s.stride;
    const uint32_t tokens = min(from + s.window, first + s.block) - max(from, first);
    return __fdiv_rn((float)tokens, (float)s.stride);
}

__global__ void __launch_bounds__(128)
    pool_kernel(const __grid_constant__ kern_pool_args a, uint32_t first_row)
{
    cuda_begin_short();
    const kern_summary &s = a.summary;
    const uint32_t row = first_row + blockIdx.z, head = blockIdx.y;
    const uint32_t b = blockIdx.x * 128 + threadIdx.x;
    const kern_selector selector = a.selectors[a.row_selector[row]];
    const int32_t pos = a.row_pos[row];
    const uint32_t current = selector_current(&selector, pos);
    if (b > current || b >= a.max_select_blocks) return;
    const uint64_t list = (uint64_t)row * s.kv_heads + head;
    float query = INFINITY, importance = INFINITY;
    if (!selector_forced(&selector, b, current)) {
        const uint32_t visible = min(selector_visible(&selector, pos), s.max_windows);
        const bool scored = selector_needs_scores(&selector, pos);
        const float *scores = a.scores + list * s.max_windows;
        const uint16_t *uc = s.uc + ((uint64_t)a.row_seq[row] * s.kv_heads + head) * s.max_windows;
        uint32_t lo, hi;
        selector_block_windows(&selector, b, visible, &lo, &hi);
        query = importance = -INFINITY;
        float sum = 0.0f;
        for (uint32_t j = lo; j < hi; j++) {
            const float u = bf16_float(uc[j]);
            if (scored && selector.raw)
                sum = __fadd_rn(sum, scores[j]);
            else if (scored && selector.near != 0)
                sum = __fadd_rn(sum, __fmul_rn(strides_shared(selector, b, j), scores[j]));
            else if (scored && scores[j] > query)
                query = scores[j];
            if (u > importance) importance = u;
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
}

} // namespace

extern "C" status cuda_pool(kern_stream *stream, const kern_pool_args *args)
{
    for (uint32_t row = 0; row < args->rows; row += 32768) { /* a grid's z is 16 bits wide */
        const uint32_t rows = args->rows - row < 32768 ? args->rows - row : 32768;
        const dim3 grid(cuda_blocks(args->max_select_blocks, 128), args->summary.kv_heads, rows);
        cuda_launch(cuda_stream_of(stream), {grid, 128}, pool_kernel, *args, row);
    }
    return cuda_launched("pool");
}
