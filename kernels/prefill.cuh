/* kernels/prefill.cuh - what prompts need from more than one file: which rows the tile kernels take
 * (attend.cu, score.cu ask), taking them, and the queries of a tile.
 *
 * A tile is 128 rows of a product: 128 / H consecutive tokens of one sequence times H heads of a KV
 * head, H its number of heads up to a power of two. */
#ifndef KERNELS_PREFILL_CUH
#define KERNELS_PREFILL_CUH

#include "kernels/cuda.cuh"

/* Whether this device and geometry have the tile kernels. Depends on nothing else, so a row always
 * goes the same way. */
static inline bool cuda_prefill_can(const cuda_stream *stream, uint32_t group_heads,
                                    uint32_t head_dim)
{
    return cuda_device_of(stream->base.backend)->major == 9 && group_heads <= 16 &&
           (head_dim == 64 || head_dim == 128);
}

/* args->prefill is set: rows of one sequence at ascending positions. */
status cuda_prefill_attend(cuda_stream *stream, const kern_attend_args *args);
status cuda_prefill_score(cuda_stream *stream, const kern_score_args *args);

constexpr int PREFILL_ROWS = 128, PREFILL_THREADS = 256;

struct prefill_shape {
    uint32_t rows, heads, kv_heads; /* rows: of the call */
    uint32_t group_heads, padded_heads, tile_tokens;
    float scale; /* log2(e) / sqrt(D) */
};

static inline prefill_shape prefill_shape_of(uint32_t rows, uint32_t heads, uint32_t kv_heads,
                                             uint32_t head_dim)
{
    prefill_shape s = {};
    s.rows = rows, s.heads = heads, s.kv_heads = kv_heads;
    s.group_heads = heads / kv_heads;
    s.padded_heads = 1;
    while (s.padded_heads < s.group_heads)
        s.padded_heads *= 2;
    s.tile_tokens = PREFILL_ROWS / s.padded_heads;
    s.scale = CUDA_LOG2E / sqrtf((float)head_dim);
    return s;
}

#ifdef __CUDACC__

/* q of a tile, whose first token is row `first` of the call, rounded to bf16, into swizzled panels
 * (wgmma.cuh), 64 rows after 64 rows; rows that stand for no head or no token are 0. LOW: what that
 * rounding leaves of q, rounded too. By all threads of the CTA. */
template <int D, bool LOW = false>
__device__ void prefill_load_query(uint8_t (&query)[2][D / 64][64 * 128], const prefill_shape &s,
                                   const float *q, uint64_t row_stride, uint32_t first,
                                   uint32_t head)
{
    for (uint32_t c = threadIdx.x; c < PREFILL_ROWS * D / 8; c += PREFILL_THREADS) {
        const uint32_t m = c / (D / 8), chunk = c % (D / 8), g = m % s.padded_heads;
        const uint32_t row = first + m / s.padded_heads;
        uint32_t v[4] = {};
        if (g < s.group_heads && row < s.rows) {
            const float *from = q + (uint64_t)row * row_stride +
                                (uint64_t)(head * s.group_heads + g) * D + chunk * 8;
#pragma unroll
            for (int i = 0; i < 4; i++) {
                uint32_t high, low;
                split_bf16(from[2 * i], from[2 * i + 1], high, low);
                v[i] = LOW ? low : high;
            }
        }
        uint8_t *to = query[m / 64][chunk / 8] + m % 64 * 128;
        *(uint4 *)(to + ((chunk % 8) ^ (m & 7)) * 16) = make_uint4(v[0], v[1], v[2], v[3]);
    }
}

#endif
#endif
