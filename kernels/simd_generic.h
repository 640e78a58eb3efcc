/* kernels/simd_generic.h - plain C: sixteen lanes are an array. Included by kernels/simd.h, which
 * says what every function means. */
#ifndef KERNELS_SIMD_GENERIC_H
#define KERNELS_SIMD_GENERIC_H

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
        low->x[i] = kern_bf16_to_f32(p[(ptrdiff_t)2 * i]);
        high->x[i] = kern_bf16_to_f32(p[(ptrdiff_t)2 * i + 1]);
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
        low->x[i] = kern_bf16_to_f32(p[(ptrdiff_t)2 * i]);
        high->x[i] = kern_bf16_to_f32(p[(ptrdiff_t)2 * i + 1]);
    }
}

#endif
