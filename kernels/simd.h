/* kernels/simd.h - sixteen float32 lanes on every processor, with the same bits.
 *
 * Included only by *_cpu.c files, which are compiled once a level (KERN_LEVEL: generic, avx2,
 * avx512). A level decides how lanes are held (one 512-bit register, two 256-bit ones, an array),
 * never what is computed: each function below is defined lane by lane with IEEE single rounding and
 * explicit fma, and a sum over lanes is always the same tree: lane i + lane i + 8, then + 4, + 2,
 * + 1.
 *
 * vf is sixteen lanes; vn is what one register of the level holds (VN_LANES), for tiles that would
 * otherwise spill. "Pairs": 32 bf16 values read as 16 words; the low halves are one vf, the high
 * halves another. That costs one load, a shift and a mask, and no shuffle. */
#ifndef KERNELS_SIMD_H
#define KERNELS_SIMD_H

#include "kernels/backend.h"

#include <math.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#define LEVEL_JOIN2(level, name) cpu_##level##_##name
#define LEVEL_JOIN(level, name)  LEVEL_JOIN2(level, name)
#define LEVEL(name)              LEVEL_JOIN(KERN_LEVEL, name)

/* Tiles of registers are unrolled; tiles of arrays, which no register holds, are not. */
#if defined(__AVX2__)
#define UNROLL_TEXT(text) _Pragma(#text)
#define UNROLL(count)     UNROLL_TEXT(GCC unroll count)
#else
#define UNROLL(count)
#endif

#define LANE_OP static inline __attribute__((always_inline, unused))

/* ---- AVX-512
 * ---------------------------------------------------------------------------------------- */
#if defined(__AVX512F__)

typedef __m512 vf;
typedef __m512 vn;
enum { VN_LANES = 16 };

LANE_OP vf vf_set1(float x)
{
    return _mm512_set1_ps(x);
}
LANE_OP vf vf_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
LANE_OP void vf_store(float *p, vf v)
{
    _mm512_storeu_ps(p, v);
}
LANE_OP vf vf_add(vf a, vf b)
{
    return _mm512_add_ps(a, b);
}
LANE_OP vf vf_sub(vf a, vf b)
{
    return _mm512_sub_ps(a, b);
}
LANE_OP vf vf_mul(vf a, vf b)
{
    return _mm512_mul_ps(a, b);
}
LANE_OP vf vf_div(vf a, vf b)
{
    return _mm512_div_ps(a, b);
}
LANE_OP vf vf_max(vf a, vf b)
{
    return _mm512_max_ps(a, b);
}
LANE_OP vf vf_min(vf a, vf b)
{
    return _mm512_min_ps(a, b);
}
LANE_OP vf vf_fma(vf a, vf b, vf c)
{
    return _mm512_fmadd_ps(a, b, c);
}
LANE_OP vf vf_fnma(vf a, vf b, vf c)
{
    return _mm512_fnmadd_ps(a, b, c);
}
/* a where x >= limit, else +0. */
LANE_OP vf vf_keep_ge(vf a, vf x, vf limit)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, limit, _CMP_GE_OQ), a);
}
/* a in the first n lanes (n <= 16), b in the others. */
LANE_OP vf vf_first(uint32_t n, vf a, vf b)
{
    return _mm512_mask_blend_ps((__mmask16)((1u << n) - 1u), b, a);
}
/* y * 2^n for integral n in bits of the magic sum t (see vf_exp). */
LANE_OP vf vf_scale2(vf y, vf t)
{
    return _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(y), _mm512_slli_epi32(_mm512_castps_si512(t), 23)));
}
LANE_OP vf vf_bf16(const uint16_t *p)
{
    const __m512i w = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(const void *)p));
    return _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
}
LANE_OP void vf_pair(const uint16_t *p, vf *low, vf *high)
{
    const __m512i w = _mm512_loadu_si512((const void *)p);
    *low = _mm512_castsi512_ps(_mm512_slli_epi32(w, 16));
    *high = _mm512_castsi512_ps(_mm512_and_si512(w, _mm512_set1_epi32((int)0xffff0000u)));
}
LANE_OP float vf_sum(vf v)
{
    const __m256 a = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1));
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
LANE_OP float vf_max_lane(vf v)
{
    return _mm512_reduce_max_ps(v);
}

LANE_OP vn vn_zero(void)
{
    return _mm512_setzero_ps();
}
LANE_OP vn vn_set1(float x)
{
    return _mm512_set1_ps(x);
}
LANE_OP vn vn_fma(vn a, vn b, vn c)
{
    return _mm512_fmadd_ps(a, b, c);
}
LANE_OP vn vn_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
LANE_OP void vn_store(float *p, vn v)
{
    _mm512_storeu_ps(p, v);
}
LANE_OP void vn_pair(const uint16_t *p, vn *low, vn *high)
{
    vf_pair(p, low, high);
}

/* Lane i of the result is vf_sum(v[i]): the tree of sixteen sums at once. */
LANE_OP vf vf_sum16(vf v[16])
{
    const __m512i swap4 =
        _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
    const __m512i swap1 =
        _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
    vf w[8], x[4], y[2];
    UNROLL(8)
    for (int i = 0; i < 8; i++)
        w[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xff00, v[i], v[i + 8]),
                             _mm512_shuffle_f32x4(v[i], v[i + 8], 0x4e));
    UNROLL(4)
    for (int i = 0; i < 4; i++)
        x[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, w[i], w[i + 4]),
                             _mm512_permutex2var_ps(w[i], swap4, w[i + 4]));
    UNROLL(2)
    for (int i = 0; i < 2; i++)
        y[i] = _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, x[i], x[i + 2]),
                             _mm512_shuffle_ps(x[i], x[i + 2], 0x4e));
    return _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, y[0], y[1]),
                         _mm512_permutex2var_ps(y[0], swap1, y[1]));
}

/* ---- AVX2
 * ------------------------------------------------------------------------------------------- */
#elif defined(__AVX2__)

typedef struct vf {
    __m256 a, b;
} vf;
typedef __m256 vn;
enum { VN_LANES = 8 };

#define BOTH(expr_a, expr_b) ((vf){(expr_a), (expr_b)})
LANE_OP vf vf_set1(float x)
{
    return BOTH(_mm256_set1_ps(x), _mm256_set1_ps(x));
}
LANE_OP vf vf_load(const float *p)
{
    return BOTH(_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8));
}
LANE_OP void vf_store(float *p, vf v)
{
    _mm256_storeu_ps(p, v.a);
    _mm256_storeu_ps(p + 8, v.b);
}
LANE_OP vf vf_add(vf x, vf y)
{
    return BOTH(_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b));
}
LANE_OP vf vf_sub(vf x, vf y)
{
    return BOTH(_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b));
}
LANE_OP vf vf_mul(vf x, vf y)
{
    return BOTH(_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b));
}
LANE_OP vf vf_div(vf x, vf y)
{
    return BOTH(_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b));
}
LANE_OP vf vf_max(vf x, vf y)
{
    return BOTH(_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b));
}
LANE_OP vf vf_min(vf x, vf y)
{
    return BOTH(_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b));
}
LANE_OP vf vf_fma(vf x, vf y, vf z)
{
    return BOTH(_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b));
}
LANE_OP vf vf_fnma(vf x, vf y, vf z)
{
    return BOTH(_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b));
}
LANE_OP vf vf_keep_ge(vf v, vf x, vf limit)
{
    return BOTH(_mm256_and_ps(v.a, _mm256_cmp_ps(x.a, limit.a, _CMP_GE_OQ)),
                _mm256_and_ps(v.b, _mm256_cmp_ps(x.b, limit.b, _CMP_GE_OQ)));
}
LANE_OP vf vf_first(uint32_t n, vf x, vf y)
{
    const __m256i lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256 low = _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)n), lane));
    const __m256 high =
        _mm256_castsi256_ps(_mm256_cmpgt_epi32(_mm256_set1_epi32((int)n - 8), lane));
    return BOTH(_mm256_blendv_ps(y.a, x.a, low), _mm256_blendv_ps(y.b, x.b, high));
}
LANE_OP __m256 scale2_half(__m256 y, __m256 t)
{
    return _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(y), _mm256_slli_epi32(_mm256_castps_si256(t), 23)));
}
LANE_OP vf vf_scale2(vf y, vf t)
{
    return BOTH(scale2_half(y.a, t.a), scale2_half(y.b, t.b));
}
LANE_OP __m256 bf16_half(const uint16_t *p)
{
    const __m256i w = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
}
LANE_OP vf vf_bf16(const uint16_t *p)
{
    return BOTH(bf16_half(p), bf16_half(p + 8));
}
LANE_OP float sum_half(__m256 a)
{
    const __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(c, _mm_shuffle_ps(c, c, 1)));
}
LANE_OP float vf_sum(vf v)
{
    return sum_half(_mm256_add_ps(v.a, v.b));
}
LANE_OP float vf_max_lane(vf v)
{
    const __m256 a = _mm256_max_ps(v.a, v.b);
    const __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 c = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(c, _mm_shuffle_ps(c, c, 1)));
}

LANE_OP vn vn_zero(void)
{
    return _mm256_setzero_ps();
}
LANE_OP vn vn_set1(float x)
{
    return _mm256_set1_ps(x);
}
LANE_OP vn vn_fma(vn a, vn b, vn c)
{
    return _mm256_fmadd_ps(a, b, c);
}
LANE_OP vn vn_load(const float *p)
{
    return _mm256_loadu_ps(p);
}
LANE_OP void vn_store(float *p, vn v)
{
    _mm256_storeu_ps(p, v);
}
LANE_OP void vn_pair(const uint16_t *p, vn *low, vn *high)
{
    const __m256i w = _mm256_loadu_si256((const __m256i *)(const void *)p);
    *low = _mm256_castsi256_ps(_mm256_slli_epi32(w, 16));
    *high = _mm256_castsi256_ps(_mm256_and_si256(w, _mm256_set1_epi32((int)0xffff0000u)));
}
LANE_OP void vf_pair(const uint16_t *p, vf *low, vf *high)
{
    vn_pair(p, &low->a, &high->a);
    vn_pair(p + 16, &low->b, &high->b);
}

/* Lane i is the tree of s[i], whose lanes are already i + (i + 8). */
LANE_OP __m256 sum8(const __m256 s[8])
{
    __m256 x[4], y[2];
    UNROLL(4)
    for (int i = 0; i < 4; i++)
        x[i] = _mm256_add_ps(_mm256_blend_ps(s[i], s[i + 4], 0xf0),
                             _mm256_permute2f128_ps(s[i], s[i + 4], 0x21));
    UNROLL(2)
    for (int i = 0; i < 2; i++)
        y[i] = _mm256_add_ps(_mm256_blend_ps(x[i], x[i + 2], 0xcc),
                             _mm256_shuffle_ps(x[i], x[i + 2], 0x4e));
    return _mm256_add_ps(_mm256_blend_ps(y[0], y[1], 0xaa),
                         _mm256_permute_ps(_mm256_blend_ps(y[0], y[1], 0x55), 0xb1));
}

/* ---- plain C
 * ---------------------------------------------------------------------------------------- */
#else

typedef struct vf {
    float x[16];
} vf;
typedef struct vn {
    float x[8];
} vn;
enum { VN_LANES = 8 };

#define EACH(count, expr)                                                                          \
    for (int i = 0; i < (count); i++)                                                              \
        r.x[i] = (expr);                                                                           \
    return r
LANE_OP vf vf_set1(float x)
{
    vf r;
    EACH(16, x);
}
LANE_OP vf vf_load(const float *p)
{
    vf r;
    EACH(16, p[i]);
}
LANE_OP void vf_store(float *p, vf v)
{
    memcpy(p, v.x, sizeof v.x);
}
LANE_OP vf vf_add(vf a, vf b)
{
    vf r;
    EACH(16, a.x[i] + b.x[i]);
}
LANE_OP vf vf_sub(vf a, vf b)
{
    vf r;
    EACH(16, a.x[i] - b.x[i]);
}
LANE_OP vf vf_mul(vf a, vf b)
{
    vf r;
    EACH(16, a.x[i] * b.x[i]);
}
LANE_OP vf vf_div(vf a, vf b)
{
    vf r;
    EACH(16, a.x[i] / b.x[i]);
}
LANE_OP vf vf_max(vf a, vf b)
{
    vf r;
    EACH(16, a.x[i] > b.x[i] ? a.x[i] : b.x[i]);
}
LANE_OP vf vf_min(vf a, vf b)
{
    vf r;
    EACH(16, a.x[i] < b.x[i] ? a.x[i] : b.x[i]);
}
LANE_OP vf vf_fma(vf a, vf b, vf c)
{
    vf r;
    EACH(16, fmaf(a.x[i], b.x[i], c.x[i]));
}
LANE_OP vf vf_fnma(vf a, vf b, vf c)
{
    vf r;
    EACH(16, fmaf(-a.x[i], b.x[i], c.x[i]));
}
LANE_OP vf vf_keep_ge(vf a, vf x, vf limit)
{
    vf r;
    EACH(16, x.x[i] >= limit.x[i] ? a.x[i] : 0.0f);
}
LANE_OP vf vf_first(uint32_t n, vf a, vf b)
{
    vf r;
    EACH(16, (uint32_t)i < n ? a.x[i] : b.x[i]);
}
LANE_OP float scale2_lane(float y, float t)
{
    uint32_t a, b;
    memcpy(&a, &y, 4);
    memcpy(&b, &t, 4);
    a += b << 23;
    memcpy(&y, &a, 4);
    return y;
}
LANE_OP vf vf_scale2(vf y, vf t)
{
    vf r;
    EACH(16, scale2_lane(y.x[i], t.x[i]));
}
LANE_OP vf vf_bf16(const uint16_t *p)
{
    vf r;
    EACH(16, kern_bf16_to_f32(p[i]));
}
LANE_OP void vf_pair(const uint16_t *p, vf *low, vf *high)
{
    for (int i = 0; i < 16; i++) {
        low->x[i] = kern_bf16_to_f32(p[2 * i]);
        high->x[i] = kern_bf16_to_f32(p[2 * i + 1]);
    }
}
LANE_OP float vf_sum(vf v)
{
    for (int step = 8; step > 0; step /= 2)
        for (int i = 0; i < step; i++)
            v.x[i] += v.x[i + step];
    return v.x[0];
}
LANE_OP float vf_max_lane(vf v)
{
    float m = v.x[0];
    for (int i = 1; i < 16; i++)
        m = v.x[i] > m ? v.x[i] : m;
    return m;
}

LANE_OP vn vn_zero(void)
{
    return (vn){{0}};
}
LANE_OP vn vn_set1(float x)
{
    vn r;
    EACH(8, x);
}
LANE_OP vn vn_fma(vn a, vn b, vn c)
{
    vn r;
    EACH(8, fmaf(a.x[i], b.x[i], c.x[i]));
}
LANE_OP vn vn_load(const float *p)
{
    vn r;
    EACH(8, p[i]);
}
LANE_OP void vn_store(float *p, vn v)
{
    memcpy(p, v.x, sizeof v.x);
}
LANE_OP void vn_pair(const uint16_t *p, vn *low, vn *high)
{
    for (int i = 0; i < 8; i++) {
        low->x[i] = kern_bf16_to_f32(p[2 * i]);
        high->x[i] = kern_bf16_to_f32(p[2 * i + 1]);
    }
}
#endif

/* ---- for every level
 * --------------------------------------------------------------------------------- */

LANE_OP vf vf_zero(void)
{
    return vf_set1(0.0f);
}

/* The first n of sixteen, the rest zero: never reads beyond p[n - 1]. */
LANE_OP vf vf_load_n(const float *p, uint32_t n)
{
    float lanes[16] = {0};
    memcpy(lanes, p, n * sizeof lanes[0]);
    return vf_load(lanes);
}
LANE_OP void vf_store_n(float *p, vf v, uint32_t n)
{
    float lanes[16];
    vf_store(lanes, v);
    memcpy(p, lanes, n * sizeof lanes[0]);
}
LANE_OP vf vf_bf16_n(const uint16_t *p, uint32_t n)
{
    uint16_t lanes[16] = {0};
    memcpy(lanes, p, n * sizeof lanes[0]);
    return vf_bf16(lanes);
}

/* e^x for x <= 88.7, 0 below -87.3; relative error below 1e-7. x = n ln 2 + r with |r| <= ln 2 / 2
 * (Cody and Waite's two-part ln 2), e^r = 1 + r + r^2 q(r) with q of degree 4 interpolated at the
 * Chebyshev nodes. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. */
LANE_OP vf vf_exp(vf x)
{
    const vf magic = vf_set1(12582912.0f), least = vf_set1(-87.3f);
    const vf clipped = vf_min(vf_max(x, least), vf_set1(88.7f));
    const vf t = vf_fma(clipped, vf_set1(1.44269504f), magic);
    const vf n = vf_sub(t, magic);
    vf r = vf_fnma(n, vf_set1(0.693359375f), clipped);
    r = vf_fnma(n, vf_set1(-2.12194440e-4f), r);
    vf q = vf_set1(0x1.6d113cp-10f);
    q = vf_fma(q, r, vf_set1(0x1.120ba2p-7f));
    q = vf_fma(q, r, vf_set1(0x1.55551ap-5f));
    q = vf_fma(q, r, vf_set1(0x1.5554dcp-3f));
    q = vf_fma(q, r, vf_set1(0.5f));
    const vf y = vf_add(vf_fma(q, vf_mul(r, r), r), vf_set1(1.0f));
    return vf_keep_ge(vf_scale2(y, t), x, least);
}

#endif
