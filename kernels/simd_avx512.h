/* kernels/simd_avx512.h - AVX-512: sixteen lanes are one register. Included by kernels/simd.h,
 * which says what every function means. */
#ifndef KERNELS_SIMD_AVX512_H
#define KERNELS_SIMD_AVX512_H

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

#endif
