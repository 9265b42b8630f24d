// Gumbel noise by (seed, output position, token id): what was drawn before, and by whom, is never asked.
//
// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): key = seed, counter =
// (position low, position high, block, 0). Token t takes word (t / 16) % 4 of block (t / 64) * 16 + t % 16,
// so that the 64 tokens of a group are four vectors without a shuffle. The twin is sampling/noise.py: equal
// words.
#pragma once
#include "elementary.h"
#if defined(__SSE2__)
#include <emmintrin.h>
#endif

namespace penstock::PENSTOCK_ISA {

// noise() lies in [-kNoiseLow, kNoiseHigh]: 32 ln 2 at word 0, -ln(24 ln 2) at word 2^32 - 1, rounded
// outwards.
constexpr float kNoiseHigh = 22.180712f;
constexpr float kNoiseLow = 2.811541f;

struct RoundKeys {
    uint64_t k[10][2];
};

PENSTOCK_INLINE RoundKeys round_keys(uint64_t seed) {
    RoundKeys keys;
    uint32_t a = static_cast<uint32_t>(seed), b = static_cast<uint32_t>(seed >> 32);
    for (auto& k : keys.k) {
        k[0] = a;
        k[1] = b;
        a += 0x9e3779b9U;
        b += 0xbb67ae85U;
    }
    return keys;
}

// As many 64-bit lanes as a register holds, and the product of their low halves.
#if defined(__AVX512F__)
constexpr int kWide = 8;
#elif defined(__AVX2__)
constexpr int kWide = 4;
#else
constexpr int kWide = 2;
#endif
typedef uint64_t Wide __attribute__((vector_size(kWide * 8)));

PENSTOCK_INLINE Wide multiply_low(Wide a, Wide b) {
#if defined(__AVX512F__)
    return reinterpret_cast<Wide>(
        _mm512_mul_epu32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
#elif defined(__AVX2__)
    return reinterpret_cast<Wide>(
        _mm256_mul_epu32(reinterpret_cast<__m256i>(a), reinterpret_cast<__m256i>(b)));
#elif defined(__SSE2__)
    return reinterpret_cast<Wide>(_mm_mul_epu32(reinterpret_cast<__m128i>(a), reinterpret_cast<__m128i>(b)));
#else
    return (a & 0xffffffffU) * (b & 0xffffffffU);
#endif
}

// words[16 * j + l] belongs to token 64 * group + 16 * j + l. Blocks of even and odd l run side by side, a
// block in the low half of a lane; the high halves hold what multiply_low ignores.
PENSTOCK_INLINE void philox(const RoundKeys& keys, uint64_t position, uint64_t group, uint32_t words[64]) {
    for (int first = 0; first < kLanes; first += 2 * kWide) {
        Wide c[2][4];
        for (int odd = 0; odd < 2; ++odd) {
            c[odd][0] = Wide{} + (position & 0xffffffffU);
            c[odd][1] = Wide{} + (position >> 32);
            for (int i = 0; i < kWide; ++i)
                c[odd][2][i] = group * 16 + static_cast<uint64_t>(first + 2 * i + odd);
            c[odd][3] = Wide{};
        }
        for (const auto& k : keys.k)
            for (auto& s : c) {
                const Wide p = multiply_low(s[0], Wide{} + 0xd2511f53U);
                const Wide q = multiply_low(s[2], Wide{} + 0xcd9e8d57U);
                s[0] = (q >> 32) ^ s[1] ^ (Wide{} + k[0]);
                s[1] = q;
                s[2] = (p >> 32) ^ s[3] ^ (Wide{} + k[1]);
                s[3] = p;
            }
        for (int j = 0; j < 4; ++j) {
            const Wide both = (c[0][j] & 0xffffffffU) | (c[1][j] << 32);
            std::memcpy(words + j * kLanes + first, &both, sizeof both);
        }
    }
}

// -ln(-ln(1 - v)), v = (word | 1) / 2^32 rounded to float32 and at most 1 - 2^-24: the midpoints of 2^31
// equal cells. Small v is large noise, and there the float32 is finest: tokens of probability 1e-9 keep their
// share.
PENSTOCK_INLINE F16 noise(U16 word) {
    const U16 w = word | 1U;
    const F16 whole = to_float(reinterpret_cast<I16>(w >> 16)) * 65536.0f +
                      to_float(reinterpret_cast<I16>(w & 0xffffU));  // both exact; the sum rounds once
    const F16 v = min(whole * 0x1p-32f, set1(1.0f - 0x1p-24f));
    const F16 u = 1.0f - v;
    const U16 ub = bits(u);
    I16 e = reinterpret_cast<I16>(ub >> 23) - 126;
    F16 m = from_bits((ub & 0x007fffffU) | 0x3f000000U);
    const I16 low = m < set1(0.707106781186547524f);
    m = select(low, m + m, m) - 1.0f;
    const F16 exponential = -log_reduced(select(v < set1(0.25f), -v, m), to_float(e + low));
    return -log(exponential);
}

}  // namespace penstock::PENSTOCK_ISA
