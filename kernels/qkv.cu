/* kernels/qkv.cu - rope, importance and compress of the rows of one projection in one launch.
 * Bound: launch.
 *
 * A row's first CTAs are of its KV heads: each turns its head's k, one warp of it makes u, and then
 * they go into the summaries as compress's two kernels put them there. One launch is enough for
 * that, since rows are of different sequences: who reads the ring of a sequence is who writes to
 * it, and a window never reaches back to the token whose place in the ring the row takes. The other
 * CTAs turn q, 256 pairs each.
 *
 * Bits: the functions of rope.cu, importance.cu and compress.cu (rows.cuh). */
#include "kernels/rows.cuh"

namespace
{

constexpr uint32_t THREADS = 256, WARP_OF_U = 7;
static_assert(KERN_DIM_MAX / 2 <= 32 * WARP_OF_U, "k's pairs and u are made side by side");

/* What a row knows of its own token beside the ring. */
struct qkv_own {
    uint16_t k[KERN_DIM_MAX], u;
};

/* The summaries of (row, KV head), from the row itself and the ring. */
__device__ void summarise(const kern_compress_args &a, const qkv_own &own, uint32_t row,
                          uint32_t head)
{
    const kern_summary &s = a.summary;
    const uint32_t pos = (uint32_t)a.row_pos[row], d = s.head_dim;
    const uint64_t place = (uint64_t)a.row_seq[row] * s.kv_heads + head;
    const uint64_t ring = place * KERN_KEY_RING * d;
    const float *v = a.v + (uint64_t)row * a.row_stride + (uint64_t)head * d;
    const window_row w = window_of(s, pos);
    for (uint32_t i = threadIdx.x; w.complete && i < w.values; i += THREADS) {
        const window_value is(s, i);
        float sum = 0.0f;
#pragma unroll 8
        for (uint32_t t = w.first; t < pos; t++)
            sum += bf16_float(is.of_u ? s.u[place * s.max_tokens + t]
                                      : is.ring[ring + t % KERN_KEY_RING * (uint64_t)d + is.c]);
        sum += bf16_float(is.of_u ? own.u : is.of_v ? float_bf16(v[is.c]) : own.k[is.c]);
        is.store(s, place * s.max_windows + w.index, sum);
    }
    if (threadIdx.x == 0) s.u[place * s.max_tokens + pos] = own.u;
    const uint64_t to = ring + pos % KERN_KEY_RING * (uint64_t)d;
    for (uint32_t i = threadIdx.x; i < d; i += THREADS) {
        s.key_ring[to + i] = own.k[i];
        if (s.vc != nullptr) s.value_ring[to + i] = float_bf16(v[i]);
    }
}

__global__ void __launch_bounds__(THREADS) qkv_kernel(const __grid_constant__ kern_qkv_args a)
{
    cuda_begin_short();
    __shared__ qkv_own own;
    const uint32_t row = blockIdx.x, kv_heads = a.importance.kv_heads;
    const uint32_t half = a.rope.head_dim / 2, q_pairs = (a.rope.heads - kv_heads) * half;
    if (blockIdx.y >= kv_heads) {
        const uint32_t pair = (blockIdx.y - kv_heads) * THREADS + threadIdx.x;
        if (pair < q_pairs) (void)rope_pair(a.rope, row, pair);
        return;
    }
    const uint32_t head = blockIdx.y;
    if (threadIdx.x < half) {
        const float2 k = rope_pair(a.rope, row, q_pairs + head * half + threadIdx.x);
        own.k[threadIdx.x] = float_bf16(k.x);
        own.k[half + threadIdx.x] = float_bf16(k.y);
    }
    if (threadIdx.x / 32 == WARP_OF_U) {
        const uint16_t u = importance_of(a.importance, row, head);
        if (threadIdx.x % 32 == 0) own.u = u;
    }
    if (row >= a.compress.rows) return;
    __syncthreads();
    summarise(a.compress, own, row, head);
}

} // namespace

extern "C" status cuda_qkv(kern_stream *stream, const kern_qkv_args *args)
{
    const kern_rope_args &r = args->rope;
    const uint32_t kv_heads = args->importance.kv_heads;
    if (r.rows == 0) return STATUS_OK;
    const uint64_t q_pairs = (uint64_t)(r.heads - kv_heads) * (r.head_dim / 2);
    const dim3 grid(r.rows, kv_heads + cuda_blocks(q_pairs, THREADS));
    cuda_launch(cuda_stream_of(stream), {grid, THREADS}, qkv_kernel, *args);
    return cuda_launched("qkv");
}
