/* kernels/rows.cuh - what rope, importance, compress, locate and append do with a value: alone
 * (their own files) and together (qkv.cu, enter.cu) they have the same bits. */
#ifndef KERNELS_ROWS_CUH
#define KERNELS_ROWS_CUH

#include "kernels/cuda.cuh"

/* (a, b) -> (a cos - b sin, b cos + a sin): one rounding for the product and one for the fma, as
 * the CPU backends, so the bits are theirs. Source: RoFormer, arXiv 2104.09864, in its half-split
 * form. Pair i of a row, in place. */
__device__ __forceinline__ float2 rope_pair(const kern_rope_args &a, uint64_t row, uint32_t i)
{
    const uint32_t half = a.head_dim / 2, d = i % half;
    const uint64_t table = (uint64_t)a.row_pos[row] * half;
    float *x = a.x + row * a.row_stride + (uint64_t)(i / half) * a.head_dim + d;
    const float c = a.cos[table + d], s = a.sin[table + d], low = x[0], high = x[half];
    const float2 turned = make_float2(fmaf(-high, s, low * c), fmaf(low, s, high * c));
    x[0] = turned.x;
    x[half] = turned.y;
    return turned;
}

/* u of (row, KV head), by one warp: lane l sums values l, l + 32, ... of all heads; then a
 * butterfly. softplus in double, x itself beyond 20. */
__device__ __forceinline__ uint16_t importance_of(const kern_importance_args &a, uint64_t row,
                                                  uint32_t head)
{
    const uint32_t lane = threadIdx.x % 32, width = a.kv_heads * a.head_dim;
    uint16_t u = 0;
    if (a.a) {
        const float *v = a.v + row * a.row_stride;
        const uint16_t *delta = a.delta + (uint64_t)head * width;
        float sum = 0.0f;
        for (uint32_t i = lane; i < width; i += 32)
            sum = fmaf(bf16_float(float_bf16(v[i])), bf16_float(delta[i]), sum);
        const double x = warp_sum(sum);
        const double soft = x > 20.0 ? x : fmax(x, 0.0) + log1p(exp(-fabs(x)));
        u = float_bf16(bf16_float(a.a[head]) * (float)soft);
    }
    if (lane == 0) a.out[row * a.kv_heads + head] = u;
    return u;
}

/* The window that token `pos` completes, if it does, and how many values have a mean there. */
struct window_row {
    bool complete;
    uint32_t index, first, values;
};

__device__ __forceinline__ window_row window_of(const kern_summary &s, uint32_t pos)
{
    window_row w = {};
    if (pos + 1 < s.window || (pos + 1 - s.window) % s.stride != 0) return w;
    w.first = pos + 1 - s.window;
    w.index = w.first / s.stride;
    w.complete = w.index < s.max_windows;
    w.values = s.vc == nullptr ? s.head_dim + 1 : 2 * s.head_dim + 1;
    return w;
}

/* Value i of a window's means: of k below D, of u at D, of v above. A mean is one chain of
 * additions over its tokens, ascending, as on the CPU. */
struct window_value {
    bool of_u, of_v;
    uint32_t c; /* column of k or v */
    const uint16_t *ring;

    __device__ __forceinline__ window_value(const kern_summary &s, uint32_t i)
        : of_u(i == s.head_dim), of_v(i > s.head_dim), c(of_v ? i - s.head_dim - 1 : i),
          ring(of_v ? s.value_ring : s.key_ring)
    {
    }

    /* window: its place in uc. */
    __device__ __forceinline__ void store(const kern_summary &s, uint64_t window, float sum) const
    {
        const uint16_t mean = float_bf16(sum * (1.0f / (float)s.window));
        if (of_u)
            s.uc[window] = mean;
        else
            (of_v ? s.vc : s.kc)[window * s.head_dim + c] = mean;
    }
};

/* The slot of a block of (row, KV head). */
__device__ __forceinline__ int32_t slot_of(const kern_locate_args &a, uint32_t row, uint32_t head,
                                           int32_t block)
{
    if (a.home) return a.home[(uint64_t)head * a.table.max_blocks + block];
    const uint64_t place = (uint64_t)a.row_seq[row] * a.table.kv_heads + head;
    const int32_t entry = a.table.entry_of[place * a.table.max_blocks + block];
    return entry < 0 ? -1 : a.table.slot_of[place * a.table.max_entries + entry];
}

/* K and V of (row, KV head) into a slot, by `threads` threads; -1: nowhere. */
__device__ __forceinline__ void append_row(const kern_append_args &a, uint64_t row, uint32_t head,
                                           int32_t slot, uint32_t threads)
{
    const uint32_t d = a.head_dim;
    if (slot < 0) return;
    uint16_t *to = (uint16_t *)a.pool + (uint64_t)slot * 2 * KERN_BLOCK * d +
                   (uint64_t)(a.row_pos[row] % KERN_BLOCK) * d;
    const float *k = a.k + row * a.row_stride + (uint64_t)head * d;
    const float *v = a.v + row * a.row_stride + (uint64_t)head * d;
    for (uint32_t i = threadIdx.x; i < d; i += threads) {
        to[i] = float_bf16(k[i]);
        to[(uint64_t)KERN_BLOCK * d + i] = float_bf16(v[i]);
    }
}

#endif
