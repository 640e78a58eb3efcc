/* kernels/compress.cu - key ring, u, and the window means that a row completes (InfLLM-V2's
 * windows; uc as NOSA, arXiv 2510.13602; means of values for NSA's compressed branch, arXiv
 * 2502.11089). Bound: launch.
 *
 * Two launches, so that all rows work at once: first the means, which read tokens of this launch
 * from its rows and older ones from the ring; then the rows enter the ring (the last KERN_KEY_RING
 * of a sequence) and u. Rows of different sequences need no more than one (qkv.cu). */
#include "kernels/rows.cuh"

namespace
{

/* The row of this launch that holds token t of row r's sequence, or -1. */
__device__ __forceinline__ int64_t row_of(const kern_compress_args &a, uint32_t r, uint32_t t)
{
    const int64_t other = (int64_t)r - (a.row_pos[r] - (int64_t)t);
    if (other < 0 || a.row_seq[other] != a.row_seq[r] || a.row_pos[other] != (int32_t)t) return -1;
    return other;
}

__global__ void __launch_bounds__(128) window_kernel(const __grid_constant__ kern_compress_args a)
{
    cuda_begin_short();
    const kern_summary &s = a.summary;
    const uint32_t r = blockIdx.x, head = blockIdx.y, d = s.head_dim;
    const uint32_t pos = (uint32_t)a.row_pos[r];
    const window_row w = window_of(s, pos);
    const uint64_t place = (uint64_t)a.row_seq[r] * s.kv_heads + head;
    for (uint32_t i = threadIdx.x; w.complete && i < w.values; i += 128) {
        const window_value is(s, i);
        const float *rows = is.of_v ? a.v : a.k;
        float sum = 0.0f;
        for (uint32_t t = w.first; t <= pos; t++) {
            const int64_t row = row_of(a, r, t);
            uint16_t x;
            if (is.of_u)
                x = row >= 0 ? a.u[row * s.kv_heads + head] : s.u[place * s.max_tokens + t];
            else if (row >= 0)
                x = float_bf16(rows[row * a.row_stride + (uint64_t)head * d + is.c]);
            else
                x = is.ring[(place * KERN_KEY_RING + t % KERN_KEY_RING) * d + is.c];
            sum += bf16_float(x);
        }
        is.store(s, place * s.max_windows + w.index, sum);
    }
}

__global__ void __launch_bounds__(128) ring_kernel(const __grid_constant__ kern_compress_args a)
{
    cuda_begin_short();
    const kern_summary &s = a.summary;
    const uint32_t r = blockIdx.x, head = blockIdx.y, d = s.head_dim;
    const uint32_t pos = (uint32_t)a.row_pos[r];
    const uint64_t place = (uint64_t)a.row_seq[r] * s.kv_heads + head;
    if (threadIdx.x == 0) s.u[place * s.max_tokens + pos] = a.u[(uint64_t)r * s.kv_heads + head];
    const uint64_t later = (uint64_t)r + KERN_KEY_RING; /* a row that takes this one's place */
    if (later < a.rows && a.row_seq[later] == a.row_seq[r]) return;
    const uint64_t to = (place * KERN_KEY_RING + pos % KERN_KEY_RING) * d;
    const uint64_t from = (uint64_t)r * a.row_stride + (uint64_t)head * d;
    for (uint32_t i = threadIdx.x; i < d; i += 128) {
        s.key_ring[to + i] = float_bf16(a.k[from + i]);
        if (s.vc != nullptr) s.value_ring[to + i] = float_bf16(a.v[from + i]);
    }
}

} // namespace

extern "C" status cuda_compress(kern_stream *stream, const kern_compress_args *args)
{
    if (args->rows == 0) return STATUS_OK;
    const dim3 grid(args->rows, args->summary.kv_heads);
    cuda_launch(cuda_stream_of(stream), {grid, 128}, window_kernel, *args);
    cuda_launch(cuda_stream_of(stream), {grid, 128}, ring_kernel, *args);
    return cuda_launched("compress");
}
