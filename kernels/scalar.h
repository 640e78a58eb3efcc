/* kernels/scalar.h - exp, log and softplus of one number, with the same bits wherever they are
 * compiled.
 *
 * libm may round differently from one version or processor to the next, so results that are kept or
 * compared across machines come from here. Plain double arithmetic without fma, good to about
 * 1e-15. Series: e^r by Taylor to degree 13 on |r| <= ln 2 / 2; ln m = 2 atanh((m - 1) / (m + 1)).
 */
#ifndef KERNELS_SCALAR_H
#define KERNELS_SCALAR_H

#include <math.h>
#include <stdint.h>
#include <string.h>

static inline double scalar_two_to(int n)
{
    const uint64_t bits = (uint64_t)(n + 1023) << 52;
    double x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* e^x; 0 below -700, e^700 above 700. */
static inline double kern_exp(double x)
{
    if (!(x >= -700.0)) return 0.0;
    if (x > 700.0) x = 700.0;
    const double n = floor(x * 1.4426950408889634 + 0.5);
    const double r = (x - n * 6.93147180369123816490e-01) - n * 1.90821492927058770002e-10;
    double sum = 1.0;
    for (int i = 13; i > 0; i--)
        sum = 1.0 + sum * r / i;
    return sum * scalar_two_to((int)n);
}

/* ln x for normal positive x; -inf for 0 and below. */
static inline double kern_log(double x)
{
    if (!(x > 0.0)) return -INFINITY;
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    int exponent = (int)(bits >> 52) - 1023;
    bits = (bits & 0x000fffffffffffffULL) | 0x3ff0000000000000ULL;
    double m;
    memcpy(&m, &bits, sizeof m);
    if (m > 1.4142135623730951) {
        m *= 0.5;
        exponent++;
    }
    const double s = (m - 1.0) / (m + 1.0), s2 = s * s;
    double series = 0.0;
    for (int i = 23; i > 0; i -= 2)
        series = 1.0 / i + series * s2;
    return exponent * 0.69314718055994531 + 2.0 * s * series;
}

/* ln(1 + e^x), x itself beyond 20 as the reference model has it (NOSA, arXiv 2510.13602, released
 * code). */
static inline double kern_softplus(double x)
{
    if (x > 20.0) return x;
    const double e = kern_exp(-fabs(x)), s = e / (2.0 + e), s2 = s * s;
    double series = 0.0;
    for (int i = 33; i > 0; i -= 2)
        series = 1.0 / i + series * s2;
    return (x > 0.0 ? x : 0.0) + 2.0 * s * series;
}

#endif
