// exp, log and what is made of them for sixteen lanes: own polynomials, one order of operations, so that
// every ISA gives the same bits. No libm anywhere in a hot path or a table. Coefficients: Cephes expf and
// logf (S. Moshier).
#pragma once
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

// e^x: relative error < 2e-7 for -87.3 <= x <= 88.7; +0 below (-inf included), e^88.7 above. NaN stays NaN.
PENSTOCK_INLINE F16 exp(F16 x) {
    I16 under = x < set1(-87.3f);
    F16 clamped = max(min(set1(88.7f), x), set1(-87.3f));  // min and max give the second operand on NaN
    I16 n = to_int_rne(clamped * 1.44269504088896341f);
    F16 nf = to_float(n);
    F16 f = fma(nf, set1(-0.693359375f), clamped);
    f = fma(nf, set1(2.12194440e-4f), f);
    F16 p = set1(1.9875691500e-4f);
    p = fma(p, f, set1(1.3981999507e-3f));
    p = fma(p, f, set1(8.3334519073e-3f));
    p = fma(p, f, set1(4.1665795894e-2f));
    p = fma(p, f, set1(1.6666665459e-1f));
    p = fma(p, f, set1(5.0000001201e-1f));
    p = fma(p, f * f, f) + 1.0f;
    I16 half = n >> 1;  // 2^n in two exact factors, so that n = 128 does not overflow the exponent field
    F16 a = from_bits(reinterpret_cast<U16>((half + 127) << 23));
    F16 b = from_bits(reinterpret_cast<U16>((n - half + 127) << 23));
    F16 y = (p * a) * b;
    y = select(under, zero(), y);
    return select(x == x, y, x);
}

// ln(1 + m) + e ln 2 for m in [sqrt(1/2) - 1, sqrt(2) - 1): exact to 2e-7 of itself, tiny m included.
PENSTOCK_INLINE F16 log_reduced(F16 m, F16 e) {
    F16 z = m * m;
    F16 p = set1(7.0376836292e-2f);
    p = fma(p, m, set1(-1.1514610310e-1f));
    p = fma(p, m, set1(1.1676998740e-1f));
    p = fma(p, m, set1(-1.2420140846e-1f));
    p = fma(p, m, set1(1.4249322787e-1f));
    p = fma(p, m, set1(-1.6668057665e-1f));
    p = fma(p, m, set1(2.0000714765e-1f));
    p = fma(p, m, set1(-2.4999993993e-1f));
    p = fma(p, m, set1(3.3333331174e-1f));
    F16 y = p * m * z;
    y = fma(e, set1(-2.12194440e-4f), y);
    y = fma(z, set1(-0.5f), y);
    y = m + y;
    return fma(e, set1(0.693359375f), y);
}

// ln x for normal x > 0: relative error < 2e-7. The callers never pass anything else.
PENSTOCK_INLINE F16 log(F16 x) {
    U16 u = bits(x);
    I16 e = reinterpret_cast<I16>(u >> 23) - 126;
    F16 m = from_bits((u & 0x007fffffU) | 0x3f000000U);  // in [0.5, 1)
    I16 low = m < set1(0.707106781186547524f);
    e = e + low;  // mask lanes are -1
    return log_reduced(select(low, m + m, m) - 1.0f, to_float(e));
}

// tanh: Cephes tanhf below 0.625, else 1 - 2 / (e^2|x| + 1).
PENSTOCK_INLINE F16 tanh(F16 x) {
    F16 size = abs(x), z = x * x;
    F16 p = set1(-5.70498872745e-3f);
    p = fma(p, z, set1(2.06390887954e-2f));
    p = fma(p, z, set1(-5.37397155531e-2f));
    p = fma(p, z, set1(1.33314422036e-1f));
    p = fma(p, z, set1(-3.33332819422e-1f));
    F16 small = fma(p * z, x, x);
    F16 large = set1(1.0f) - set1(2.0f) / (exp(size + size) + 1.0f);
    large = select(x < zero(), -large, large);
    return select(size < 0.625f, small, large);
}

// x / (1 + e^-x).
PENSTOCK_INLINE F16 silu(F16 x) { return x / (exp(zero() - x) + 1.0f); }

// ln(1 + e^x) = max(x, 0) + ln(1 + u), u = e^-|x|: relative error < 4e-7.
PENSTOCK_INLINE F16 softplus(F16 x) {
    F16 u = exp(zero() - abs(x));
    I16 is_small = u < set1(0.41421356f);
    F16 halved = (u - 1.0f) * 0.5f;  // ln(1 + u) = ln 2 + ln(1 + (u - 1) / 2)
    F16 e = select(is_small, zero(), set1(1.0f));
    F16 y = max(zero(), x) + log_reduced(select(is_small, u, halved), e);
    return select(x == x, y, x);
}

PENSTOCK_INLINE float exp_1(float x) { return exp(set1(x))[0]; }
PENSTOCK_INLINE float log_1(float x) { return log(set1(x))[0]; }

}  // namespace penstock::PENSTOCK_ISA
