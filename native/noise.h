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

// The words of one seed and position. Of the first two rounds half is the same for every block: it is done
// here.
struct NoiseStream {
    static constexpr uint64_t kP = 0xd2511f53U, kQ = 0xcd9e8d57U, kLow = 0xffffffffU;
    uint64_t k[10][2];
    uint64_t first0;            // of round 1, word 0: what the block's product meets
    uint64_t second0, second1;  // of round 2, words 0 and 1
    uint64_t second2;           // and word 2: what the block's product meets
};

PENSTOCK_INLINE NoiseStream noise_stream(uint64_t seed, uint64_t position) {
    NoiseStream s;
    uint32_t a = static_cast<uint32_t>(seed), b = static_cast<uint32_t>(seed >> 32);
    for (auto& k : s.k) {
        k[0] = a;
        k[1] = b;
        a += 0x9e3779b9U;
        b += 0xbb67ae85U;
    }
    const uint64_t p = (position & s.kLow) * s.kP;
    const uint64_t q = ((p >> 32) ^ s.k[0][1]) * s.kQ;
    s.first0 = (position >> 32) ^ s.k[0][0];
    s.second0 = (q >> 32) ^ s.k[1][0];
    s.second1 = q & s.kLow;
    s.second2 = (p & s.kLow) ^ s.k[1][1];
    return s;
}

PENSTOCK_INLINE Wide high_half(Wide a) {  // in the low half; anything in the high one
#if defined(__AVX512F__)
    return reinterpret_cast<Wide>(_mm512_shuffle_epi32(reinterpret_cast<__m512i>(a), _MM_PERM_DDBB));
#elif defined(__AVX2__)
    return reinterpret_cast<Wide>(_mm256_shuffle_epi32(reinterpret_cast<__m256i>(a), 0xf5));
#else
    return a >> 32;
#endif
}

PENSTOCK_INLINE Wide join_low_halves(Wide low, Wide high) {
#if defined(__AVX512F__)
    return reinterpret_cast<Wide>(_mm512_mask_shuffle_epi32(reinterpret_cast<__m512i>(low), 0xaaaa,
                                                            reinterpret_cast<__m512i>(high), _MM_PERM_CCAA));
#else
    return (low & 0xffffffffU) | (high << 32);
#endif
}

// words[4 * g + j][l] belongs to token 64 * (group + g) + 16 * j + l. Blocks of even and odd l and of two
// groups run side by side, one in the low half of a lane; the high halves hold what multiply_low ignores.
// Each operation is done for all four before the next: a scheduler does not see far enough to mix them.
PENSTOCK_INLINE void philox(const NoiseStream& stream, uint64_t group, U16 words[8]) {
    constexpr int kChains = 4;
    uint32_t out[8][kLanes];
    const Wide p_factor = Wide{} + stream.kP, q_factor = Wide{} + stream.kQ;
    for (int first = 0; first < kLanes; first += 2 * kWide) {
        Wide c[4][kChains], p[kChains], q[kChains];
        for (int s = 0; s < kChains; ++s) {
            Wide lane;
            for (int i = 0; i < kWide; ++i)
                lane[i] = static_cast<uint64_t>(first + 2 * i + s % 2 + s / 2 * kLanes);
            q[s] = multiply_low(lane + group * 16, q_factor);
        }
        for (int s = 0; s < kChains; ++s)
            p[s] = multiply_low(high_half(q[s]) ^ (Wide{} + stream.first0), p_factor);
        for (int s = 0; s < kChains; ++s) {
            c[0][s] = q[s] ^ (Wide{} + stream.second0);
            c[1][s] = Wide{} + stream.second1;
            c[2][s] = high_half(p[s]) ^ (Wide{} + stream.second2);
            c[3][s] = p[s];
        }
        for (int round = 2; round < 10; ++round) {
            const Wide k0 = Wide{} + stream.k[round][0], k1 = Wide{} + stream.k[round][1];
            for (int s = 0; s < kChains; ++s) q[s] = multiply_low(c[2][s], q_factor);
            for (int s = 0; s < kChains; ++s) p[s] = multiply_low(c[0][s], p_factor);
            for (int s = 0; s < kChains; ++s) c[0][s] = high_half(q[s]) ^ c[1][s] ^ k0;
            for (int s = 0; s < kChains; ++s) c[2][s] = high_half(p[s]) ^ c[3][s] ^ k1;
            for (int s = 0; s < kChains; ++s) c[1][s] = q[s];
            for (int s = 0; s < kChains; ++s) c[3][s] = p[s];
        }
        for (int j = 0; j < 8; ++j) {
            const Wide both = join_low_halves(c[j % 4][j / 4 * 2], c[j % 4][j / 4 * 2 + 1]);
            std::memcpy(&out[j][first], &both, sizeof both);
        }
    }
    std::memcpy(words, out, sizeof out);
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
