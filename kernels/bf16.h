/* kernels/bf16.h - part of kernels.h: a bf16 is a uint16_t, the upper half of a float. Pure. */
#ifndef KERNELS_BF16_H
#define KERNELS_BF16_H

#include <stdint.h>

/* Exact. */ /* clang-format off */
static inline float kern_bf16_to_f32(uint16_t b)
{
    union { uint32_t u; float f; } x = {.u = (uint32_t)b << 16};
    return x.f;
}

/* Nearest, ties to even; NaN stays NaN. */
static inline uint16_t kern_f32_to_bf16(float f)
{
    union { float f; uint32_t u; } x = {.f = f};
    if ((x.u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((x.u >> 16) | 0x40u);
    return (uint16_t)((x.u + 0x7fffu + ((x.u >> 16) & 1u)) >> 16);
}
/* clang-format on */

#endif
