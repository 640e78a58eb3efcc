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

#if defined(__AVX512F__)
#include "kernels/simd_avx512.h"
#elif defined(__AVX2__)
#include "kernels/simd_avx2.h"
#else
#include "kernels/simd_generic.h"
#endif

/* ---- for every level ------------------------------------------------------------------------- */

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
