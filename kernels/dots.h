/* kernels/dots.h - inner products of queries with bf16 rows, shared by attend and score.
 *
 * A product over D elements has sixteen lanes. The row is read in pairs (simd.h): of each 32
 * elements, lane i takes element 2 i and then element 2 i + 1, one fma each; the lanes are then
 * summed by the fixed tree. Queries are held in that order once for all rows (dots_spread). How
 * many heads and positions a tile holds changes no bit, since every product is computed alone. */
#ifndef KERNELS_DOTS_H
#define KERNELS_DOTS_H

#include "kernels/simd.h"

/* Elements of x [dim] in lane order: of each 32, the even ones and then the odd ones. */
LANE_OP void dots_spread(const float *x, uint32_t dim, float *out)
{
    for (uint32_t c = 0; c < dim; c += 32)
        for (uint32_t i = 0; i < 16; i++) {
            out[c + i] = x[c + 2 * i];
            out[c + 16 + i] = x[c + 2 * i + 1];
        }
}

/* The reverse, times `scale`. */
LANE_OP void dots_unspread(const float *x, uint32_t dim, float scale, float *out)
{
    for (uint32_t c = 0; c < dim; c += 32)
        for (uint32_t i = 0; i < 16; i++) {
            out[c + 2 * i] = x[c + i] * scale;
            out[c + 2 * i + 1] = x[c + 16 + i] * scale;
        }
}

#if defined(__AVX512F__)

/* heads x (16 / heads) products: out[h * stride + p] = q[h] . row p. */
LANE_OP void dots_tile(uint32_t heads, const float *q, const uint16_t *rows, uint32_t dim,
                       float *out, uint64_t stride)
{
    const uint32_t positions = 16 / heads;
    vf sum[16];
    UNROLL(16)
    for (uint32_t i = 0; i < 16; i++)
        sum[i] = vf_zero();
    for (uint32_t c = 0; c < dim; c += 32) {
        vf q_low[4], q_high[4];
        UNROLL(4)
        for (uint32_t h = 0; h < heads; h++) {
            q_low[h] = vf_load(q + (uint64_t)h * dim + c);
            q_high[h] = vf_load(q + (uint64_t)h * dim + c + 16);
        }
        UNROLL(16)
        for (uint32_t p = 0; p < positions; p++) {
            vf low, high;
            vf_pair(rows + (uint64_t)p * dim + c, &low, &high);
            UNROLL(4)
            for (uint32_t h = 0; h < heads; h++)
                sum[h * positions + p] =
                    vf_fma(q_high[h], high, vf_fma(q_low[h], low, sum[h * positions + p]));
        }
    }
    const vf all = vf_sum16(sum);
    if (heads == 4) {
        _mm_storeu_ps(out, _mm512_castps512_ps128(all));
        _mm_storeu_ps(out + stride, _mm512_extractf32x4_ps(all, 1));
        _mm_storeu_ps(out + 2 * stride, _mm512_extractf32x4_ps(all, 2));
        _mm_storeu_ps(out + 3 * stride, _mm512_extractf32x4_ps(all, 3));
    } else if (heads == 2) {
        _mm256_storeu_ps(out, _mm512_castps512_ps256(all));
        _mm256_storeu_ps(out + stride, _mm512_extractf32x8_ps(all, 1));
    } else {
        vf_store(out, all);
    }
}

/* Sixteen rows. */
LANE_OP void dots_sixteen(uint32_t heads, const float *q, const uint16_t *rows, uint32_t dim,
                          float *out, uint64_t stride)
{
    const uint32_t positions = 16 / heads;
    for (uint32_t p = 0; p < 16; p += positions)
        dots_tile(heads, q, rows + (uint64_t)p * dim, dim, out + p, stride);
}

#elif defined(__AVX2__)

/* One head and four rows at a time (eight sums, two of q): lanes i + (i + 8) of row p in s[p]. */
LANE_OP void dots_four(const float *q, const uint16_t *rows, uint32_t dim, __m256 s[4])
{
    vf sum[4];
    UNROLL(4)
    for (uint32_t p = 0; p < 4; p++)
        sum[p] = vf_zero();
    for (uint32_t c = 0; c < dim; c += 32) {
        UNROLL(2)
        for (uint64_t half = 0; half < 2; half++) {
            const __m256 q_low = _mm256_loadu_ps(q + c + 8 * half);
            const __m256 q_high = _mm256_loadu_ps(q + c + 16 + 8 * half);
            UNROLL(4)
            for (uint32_t p = 0; p < 4; p++) {
                __m256 low, high;
                vn_pair(rows + (uint64_t)p * dim + c + 16 * half, &low, &high);
                __m256 *lanes = half == 0 ? &sum[p].a : &sum[p].b;
                *lanes = _mm256_fmadd_ps(q_high, high, _mm256_fmadd_ps(q_low, low, *lanes));
            }
        }
    }
    UNROLL(4)
    for (uint32_t p = 0; p < 4; p++)
        s[p] = _mm256_add_ps(sum[p].a, sum[p].b);
}

LANE_OP void dots_sixteen(uint32_t heads, const float *q, const uint16_t *rows, uint32_t dim,
                          float *out, uint64_t stride)
{
    for (uint32_t p = 0; p < 16; p += 8)
        for (uint32_t h = 0; h < heads; h++) {
            __m256 s[8];
            const float *of = q + (uint64_t)h * dim;
            dots_four(of, rows + (uint64_t)p * dim, dim, s);
            dots_four(of, rows + (uint64_t)(p + 4) * dim, dim, s + 4);
            _mm256_storeu_ps(out + h * stride + p, sum8(s));
        }
}

#else

LANE_OP void dots_sixteen(uint32_t heads, const float *q, const uint16_t *rows, uint32_t dim,
                          float *out, uint64_t stride)
{
    for (uint32_t h = 0; h < heads; h++)
        for (uint32_t p = 0; p < 16; p++) {
            vf sum = vf_zero();
            for (uint32_t c = 0; c < dim; c += 32) {
                vf low, high;
                vf_pair(rows + (uint64_t)p * dim + c, &low, &high);
                sum = vf_fma(vf_load(q + (uint64_t)h * dim + c), low, sum);
                sum = vf_fma(vf_load(q + (uint64_t)h * dim + c + 16), high, sum);
            }
            out[h * stride + p] = vf_sum(sum);
        }
}

#endif
#endif
