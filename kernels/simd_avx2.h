/* kernels/simd_avx2.h - AVX2: sixteen lanes are two registers of eight. Included by kernels/simd.h,
 * which says what every function means. */
#ifndef KERNELS_SIMD_AVX2_H
#define KERNELS_SIMD_AVX2_H

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

#endif
