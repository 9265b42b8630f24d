// Probability mass of tokens, and their order: by distance from the top, then by index.
//
// Mass is an integer, trunc(e^-d * 2^40): sums are exact in any order, so a cut never depends on how it is
// found.
#pragma once
#include "sampler_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr float kMassless = 28.0f;  // e^-28 < 2^-40; and beyond kNoiseLow + kNoiseHigh = 25: never drawn
static_assert(kNoiseLow + kNoiseHigh < kMassless);

// A token's place among all: its distance (never negative nor -0), then its index.
constexpr uint64_t kEverything = ~uint64_t{0};
PENSTOCK_INLINE uint32_t bits_1(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    return u;
}
PENSTOCK_INLINE float float_1(uint32_t u) {
    float x;
    std::memcpy(&x, &u, 4);
    return x;
}
PENSTOCK_INLINE uint64_t make_key(float d, int64_t i) {
    return uint64_t{bits_1(d)} << 32 | static_cast<uint64_t>(i);
}
PENSTOCK_INLINE float distance_of(uint64_t key) { return float_1(static_cast<uint32_t>(key >> 32)); }

// x <= 0 becomes e^x * 2^40, to be cut to an integer; NaN counts as far. Within 6e-7 (2^f: least relative
// error, our own fit). Several vectors in step: one alone waits for itself.
template <int kCount>
PENSTOCK_INLINE void masses_as_float(F16 (&x)[kCount]) {
    constexpr float kLog2E = 1.44269504088896341f;
    constexpr float kPolynomial[] = {0.0096715130f, 0.0555073358f, 0.2402224243f, 0.6931470037f, 1.0f};
    constexpr float kMagic = 12582912.0f + 40.0f;  // as in to_int_rne: n + 40 in the lowest bits
    F16 f[kCount], p[kCount], n[kCount];
    U16 scale[kCount];
    for (int i = 0; i < kCount; ++i) x[i] = higher(x[i], set1(-kMassless - 1.0f));
    for (int i = 0; i < kCount; ++i) {
        const F16 shifted = fma(x[i], set1(kLog2E), set1(kMagic));
        n[i] = shifted - kMagic;
        scale[i] = bits(shifted) << 23;
    }
    for (int i = 0; i < kCount; ++i) f[i] = fma(x[i], set1(kLog2E), -n[i]);
    for (int i = 0; i < kCount; ++i) p[i] = set1(0.0013264726f);
    for (const float coefficient : kPolynomial)
        for (int i = 0; i < kCount; ++i) p[i] = fma(p[i], f[i], set1(coefficient));
    for (int i = 0; i < kCount; ++i) x[i] = from_bits(bits(p[i]) + scale[i]);
}
PENSTOCK_INLINE F16 mass_as_float(F16 d) {
    F16 alone[1] = {-d};
    masses_as_float(alone);
    return alone[0];
}
typedef uint64_t W8 __attribute__((vector_size(64)));
struct Masses {
    W8 half[2];
};
PENSTOCK_INLINE Masses as_integers(F16 mass) {
    Masses m;
#if defined(__AVX512DQ__)
    const __m512 v = reinterpret_cast<__m512>(mass);
    m.half[0] = reinterpret_cast<W8>(_mm512_cvttps_epi64(_mm512_castps512_ps256(v)));
    m.half[1] = reinterpret_cast<W8>(_mm512_cvttps_epi64(_mm512_extractf32x8_ps(v, 1)));
#else
    for (int i = 0; i < kLanes; ++i)
        m.half[i / 8][i % 8] = static_cast<uint64_t>(static_cast<int64_t>(mass[i]));
#endif
    return m;
}
// a + b in the lanes whose bit is set.
PENSTOCK_INLINE W8 add_where(W8 a, uint32_t lanes, W8 b) {
#if defined(__AVX512F__)
    const __m512i x = reinterpret_cast<__m512i>(a), y = reinterpret_cast<__m512i>(b);
    return reinterpret_cast<W8>(_mm512_mask_add_epi64(x, static_cast<__mmask8>(lanes), x, y));
#else
    for (int i = 0; i < 8; ++i) a[i] += lanes >> i & 1U ? b[i] : 0;
    return a;
#endif
}
PENSTOCK_INLINE uint64_t sum_masses(W8 a, W8 b) {
    uint64_t total = 0;
    for (int i = 0; i < 8; ++i) total += a[i] + b[i];
    return total;
}

// The mass of the whole row, and of what comes before `key`.
struct RowMass {
    uint64_t total, before;
};
template <bool kSplits>
RowMass mass_around(const Row& row, uint64_t key) {
    constexpr int kTogether = 4;
    const float d_key = distance_of(key);
    const auto i_key = static_cast<int64_t>(key & 0xffffffffU);
    // As far as the key is before it in vectors before its own: below the next larger float (denormals are
    // zero).
    const float below[2] = {-d_key, -(d_key > 0.0f ? float_1(bits_1(d_key) + 1) : 0x1p-126f)};
    W8 total[2] = {}, before[2] = {};
    const auto add = [&](const float* const(&vectors)[kTogether], const float(&limit)[kTogether]) {
        F16 x[kTogether];
        uint32_t is_before[kTogether];
        for (int i = 0; i < kTogether; ++i) x[i] = load(vectors[i]) - row.highest;
        if (row.highest == kCeiling)                                         // nothing is above it
            for (int i = 0; i < kTogether; ++i) x[i] = lower(zero(), x[i]);  // NaN stays
        if (row.rate != 1.0f)
            for (int i = 0; i < kTogether; ++i) x[i] = x[i] * row.rate;
        if (kSplits)
            for (int i = 0; i < kTogether; ++i) is_before[i] = lanes_lt(set1(limit[i]), x[i]);
        masses_as_float(x);
        for (int i = 0; i < kTogether; ++i) {
            const Masses m = as_integers(x[i]);
            for (int h = 0; h < 2; ++h) {
                total[h] += m.half[h];
                if (kSplits) before[h] = add_where(before[h], is_before[i] >> (8 * h), m.half[h]);
            }
        }
    };
    const float* pending[kTogether];
    float limits[kTogether];
    int count = 0;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        uint32_t massive = lanes_le(row.nearest(c), set1(kMassless));
        const float* const p = row.chunks[c];
        if (massive == 0xffff && c != i_key / kChunk) {  // all of it, and on one side of the key
            const float limit = below[c < i_key / kChunk];
            for (int64_t i = 0; i < kChunk; i += kTogether * kLanes)
                add({p + i, p + i + kLanes, p + i + 2 * kLanes, p + i + 3 * kLanes},
                    {limit, limit, limit, limit});
            continue;
        }
        for (; massive; massive &= massive - 1) {
            const int64_t v = __builtin_ctz(massive);
            pending[count] = p + v * kLanes;
            limits[count] = below[c * kChunk + (v + 1) * kLanes <= i_key];
            if (++count < kTogether) continue;
            add(pending, limits);
            count = 0;
        }
    }
    if (count > 0) {
        for (; count < kTogether; ++count) {
            pending[count] = kNothing;
            limits[count] = 0.0f;
        }
        add(pending, limits);
    }
    return {sum_masses(total[0], total[1]), sum_masses(before[0], before[1])};
}
RowMass mass_of(const Row& row, uint64_t key) {
    const auto i_key = static_cast<int64_t>(key & 0xffffffffU);
    const float d_key = distance_of(key);
    RowMass mass = mass_around<true>(row, key);
    const F16 own = row.distance(clean(load(row.chunks[i_key / kChunk] + i_key % kChunk / kLanes * kLanes)));
    const Masses of_own = as_integers(mass_as_float(own));
    for (int lane = 0; lane < i_key % kLanes; ++lane)
        if (own[lane] == d_key) mass.before += of_own.half[lane / 8][lane % 8];
    return mass;
}
// The same from a coarse exponential, in a third of the time: most cuts are not near.
struct CoarseMass {
    float total, before;
    // Each within 3.1 % of the exact one, sums included; truncation takes 2^-23 of a total of at least 1.
    bool is_surely_below(float share) const { return before * 1.035f < share * (total * 0.965f); }
};
PENSTOCK_INLINE F16 add_where_less(F16 sum, F16 limit, F16 x, F16 y) {  // sum + y where limit < x
#if defined(__AVX512F__)
    const __m512 s = reinterpret_cast<__m512>(sum);
    return reinterpret_cast<F16>(
        _mm512_mask_add_ps(s, static_cast<__mmask16>(lanes_lt(limit, x)), s, reinterpret_cast<__m512>(y)));
#else
    return sum + select(limit < x, y, zero());
#endif
}
CoarseMass share_before(const Row& row, uint64_t key) {
    constexpr float kSlope = 1.44269504088896341f * 0x1p23f;
    constexpr float kBias = (127.0f - 0.0430357f) * 0x1p23f;  // 2^f as 1 + f: 6.1 % wide, centred
    if (row.highest == kCeiling) return {0.0f, 1.0f};         // logits may be above it
    const float d_key = distance_of(key);
    const auto i_key = static_cast<int64_t>(key & 0xffffffffU);
    const float below[2] = {-d_key, -(d_key > 0.0f ? float_1(bits_1(d_key) + 1) : 0x1p-126f)};
    F16 total[2] = {}, before[2] = {};
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const bool is_earlier = (c + 1) * kChunk <= i_key;  // all of the chunk
        for (uint32_t massive = lanes_le(row.nearest(c), set1(kMassless)); massive; massive &= massive - 1) {
            const int64_t v = __builtin_ctz(massive);
            F16 x = load(row.chunks[c] + v * kLanes) - row.highest;
            if (row.rate != 1.0f) x = x * row.rate;
            const F16 limit = set1(below[is_earlier || c * kChunk + (v + 1) * kLanes <= i_key]);
            const F16 power = fma(higher(x, set1(-kMassless - 1.0f)), set1(kSlope), set1(kBias));
            const F16 mass = from_bits(reinterpret_cast<U16>(__builtin_convertvector(power, I16)));
            total[v % 2] = total[v % 2] + mass;
            before[v % 2] = add_where_less(before[v % 2], limit, x, mass);
        }
    }
    const F16 own = row.distance(clean(load(row.chunks[i_key / kChunk] + i_key % kChunk / kLanes * kLanes)));
    int equals = 0;
    for (int lane = 0; lane < i_key % kLanes; ++lane) equals += own[lane] == d_key;
    return {sum(total[0] + total[1]),
            sum(before[0] + before[1]) + static_cast<float>(equals) * exp_1(-d_key)};
}
uint64_t mass_of_all(const Row& row) { return mass_around<false>(row, 0).total; }

}  // namespace
}  // namespace penstock::PENSTOCK_ISA
