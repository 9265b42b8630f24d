// Cuts: top-k, top-p, min-p as one last key in the order of (distance, index); typical-p as a smaller row.
//
// Mass is an integer, trunc(e^-d * 2^40): sums are exact in any order, so a cut never depends on how it is
// found.
#pragma once
#include "sampler_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr float kMassless = 28.0f;  // e^-28 < 2^-40; and beyond kNoiseLow + kNoiseHigh = 25: never drawn
static_assert(kNoiseLow + kNoiseHigh < kMassless);
constexpr int kRadixBits = 11, kRadix = 1 << kRadixBits;

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

// e^-d * 2^40, cut to an integer below 2^63; the polynomial of elementary.h without what [0, 29] cannot need.
PENSTOCK_INLINE F16 mass_as_float(F16 d) {
    const F16 x = -lower(d, set1(kMassless + 1.0f));
    const I16 n = to_int_rne(x * 1.44269504088896341f);
    const F16 nf = to_float(n);
    F16 f = fma(nf, set1(-0.693359375f), x);
    f = fma(nf, set1(2.12194440e-4f), f);
    F16 p = set1(1.9875691500e-4f);
    p = fma(p, f, set1(1.3981999507e-3f));
    p = fma(p, f, set1(8.3334519073e-3f));
    p = fma(p, f, set1(4.1665795894e-2f));
    p = fma(p, f, set1(1.6666665459e-1f));
    p = fma(p, f, set1(5.0000001201e-1f));
    p = fma(p, f * f, f) + 1.0f;
    return from_bits(bits(p) + reinterpret_cast<U16>((n + 40) << 23));
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
PENSTOCK_INLINE uint64_t sum_masses(W8 a, W8 b) {
    uint64_t total = 0;
    for (int i = 0; i < 8; ++i) total += a[i] + b[i];
    return total;
}

// The mass of the whole row, and of what comes before `key`.
struct RowMass {
    uint64_t total, before;
};
RowMass mass_of(const Row& row, uint64_t key) {
    const F16 d_key = set1(distance_of(key));
    const int64_t i_key = static_cast<int64_t>(key & 0xffffffffU);
    W8 total[2] = {}, before[2] = {};
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const F16 nearest = row.distance(load(row.maxima + c * kLanes));
        if (!lanes_of(nearest <= set1(kMassless))) continue;
        const bool some_before = lanes_of(nearest <= d_key) != 0;
        const float* p = row.chunk(c);
        for (int64_t v = 0; v < kVectors; ++v) {
            const F16 d = row.distance(clean(load(p + v * kLanes)));
            const F16 mass = mass_as_float(d);
            const Masses m = as_integers(mass);
            for (int h = 0; h < 2; ++h) total[h] += m.half[h];
            if (!some_before) continue;
            const I16 earlier = reinterpret_cast<I16>(iota()) <
                                set1i(static_cast<int32_t>(i_key - (c * kChunk + v * kLanes)));
            const Masses n = as_integers(select((d < d_key) | ((d == d_key) & earlier), mass, zero()));
            for (int h = 0; h < 2; ++h) before[h] += n.half[h];
        }
    }
    return {sum_masses(total[0], total[1]), sum_masses(before[0], before[1])};
}

// Keys of all tokens at most `farthest` <= kMassless away, by index. Returns their number.
int64_t collect(const Row& row, float farthest, uint64_t* keys) {
    int64_t n = 0;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        if (!lanes_of(row.distance(load(row.maxima + c * kLanes)) <= set1(farthest))) continue;
        const float* p = row.chunk(c);
        for (int64_t v = 0; v < kVectors; ++v) {
            const F16 d = row.distance(clean(load(p + v * kLanes)));
            for (uint32_t hit = lanes_of(d <= set1(farthest)); hit; hit &= hit - 1) {
                const int lane = __builtin_ctz(hit);
                keys[n++] = make_key(d[lane], c * kChunk + v * kLanes + lane);
            }
        }
    }
    return n;
}

// Stable counting sort by the distance, three digits of 11 bits; a digit in which all agree is skipped.
// Returns where the sorted keys are: `a` or `b`.
uint64_t* sort(uint64_t* a, uint64_t* b, int64_t n, uint32_t* histogram) {
    uint64_t differing = 0;
    for (int64_t i = 0; i < n; ++i) differing |= a[i] ^ a[0];
    for (int shift = 32; shift < 64; shift += kRadixBits) {
        if (!(differing >> shift & (kRadix - 1))) continue;
        std::memset(histogram, 0, kRadix * sizeof(uint32_t));
        for (int64_t i = 0; i < n; ++i) ++histogram[a[i] >> shift & (kRadix - 1)];
        uint32_t start = 0;
        for (int i = 0; i < kRadix; ++i) {
            const uint32_t count = histogram[i];
            histogram[i] = start;
            start += count;
        }
        for (int64_t i = 0; i < n; ++i) b[histogram[a[i] >> shift & (kRadix - 1)]++] = a[i];
        uint64_t* t = a;
        a = b;
        b = t;
    }
    return a;
}

// A distance within which k tokens lie, or all that have mass: the upper edge of the bucket that holds the
// k-th of the maxima.
float reach_of_top_k(const Row& row, int64_t k, uint32_t* histogram) {
    const int64_t n = row.num_chunks * kLanes;
    if (n < k) return kMassless;
    std::memset(histogram, 0, kRadix * sizeof(uint32_t));
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const U16 bucket = bits(row.distance(load(row.maxima + c * kLanes))) >> (31 - kRadixBits);
        for (int i = 0; i < kLanes; ++i) ++histogram[bucket[i]];
    }
    int64_t count = 0;
    uint32_t bucket = 0;
    while ((count += histogram[bucket]) < k) ++bucket;
    const uint32_t edge = ((bucket + 1) << (31 - kRadixBits)) - 1;
    return edge < bits_1(kMassless) ? float_1(edge) : kMassless;
}

struct CutSpace {
    uint64_t *a, *b;
    uint32_t* histogram;  // [kRadix]
};

// Keys before which less than share * total lies. `keys` are sorted; at least the first stays.
uint64_t last_of_share(const uint64_t* keys, int64_t n, float share, uint64_t total) {
    const double limit = static_cast<double>(share) * static_cast<double>(total);
    uint64_t before = 0, last = keys[0];
    for (int64_t i = 0; i < n; i += kLanes) {
        float d[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) d[j] = i + j < n ? distance_of(keys[i + j]) : kInfinity;
        const Masses m = as_integers(mass_as_float(load(d)));
        for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
            if (!(static_cast<double>(before) < limit)) return last;
            last = keys[i + j];
            before += m.half[j / 8][j % 8];
        }
    }
    return last;
}

uint64_t mass_of_keys(const uint64_t* keys, int64_t n) {
    W8 total[2] = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        float d[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) d[j] = i + j < n ? distance_of(keys[i + j]) : kInfinity;
        const Masses m = as_integers(mass_as_float(load(d)));
        for (int h = 0; h < 2; ++h) total[h] += m.half[h];
    }
    return sum_masses(total[0], total[1]);
}

uint64_t last_of_min_p(float min_p) {
    return min_p > 0.0f ? make_key(min_p < 1.0f ? -log_1(min_p) : 0.0f, 0xffffffff) : kEverything;
}

// Top-k, then top-p of what that leaves.
uint64_t last_of_top_k(const Row& row, int64_t k, float top_p, const CutSpace& space) {
    int64_t n = collect(row, reach_of_top_k(row, k, space.histogram), space.a);
    const uint64_t* keys = sort(space.a, space.b, n, space.histogram);
    n = n < k ? n : k;
    return top_p < 1.0f ? last_of_share(keys, n, top_p, mass_of_keys(keys, n)) : keys[n - 1];
}

// Top-p alone. Few tokens hold most of the mass, so the nearest are tried first.
uint64_t last_of_top_p(const Row& row, float top_p, uint64_t total, const CutSpace& space) {
    constexpr float kReaches[] = {2.0f, 4.0f, 6.0f, 9.0f, 12.0f, 16.0f, kMassless};
    const double limit = static_cast<double>(top_p) * static_cast<double>(total);
    for (const float reach : kReaches) {
        const int64_t n = collect(row, reach, space.a);
        if (static_cast<double>(mass_of_keys(space.a, n)) < limit && reach < kMassless) continue;
        return last_of_share(sort(space.a, space.b, n, space.histogram), n, top_p, total);
    }
    return kEverything;
}

// Typical decoding (Meister et al. 2022, arXiv:2202.00666) among the tokens up to `last`: copies to `out` the
// logits that stay, -inf elsewhere. |-ln p - entropy| of a token is |d - mean d|: the normaliser cancels.
void keep_typical(const Row& row, float typical_p, uint64_t last, const CutSpace& space, float* out) {
    const float reach = lower(set1(kMassless), set1(last == kEverything ? kInfinity : distance_of(last)))[0];
    int64_t n = 0;
    double weight = 0.0, moment = 0.0;
    for (int64_t i = 0, m = collect(row, reach, space.a); i < m; ++i)
        if (space.a[i] <= last) space.a[n++] = space.a[i];
    for (int64_t i = 0; i < n; i += kLanes) {
        float d[kLanes], e[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) d[j] = i + j < n ? distance_of(space.a[i + j]) : kInfinity;
        store(e, mass_as_float(load(d)));
        for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
            weight += static_cast<double>(e[j]);
            moment += static_cast<double>(e[j]) * static_cast<double>(d[j]);
        }
    }
    const float mean = static_cast<float>(moment / weight);
    const uint64_t total = mass_of_keys(space.a, n);
    for (int64_t i = 0; i < n; ++i) {
        const float surprise = distance_of(space.a[i]) - mean;
        space.a[i] =
            make_key(surprise < 0.0f ? -surprise : surprise, static_cast<int64_t>(space.a[i] & 0xffffffffU));
    }
    const uint64_t* keys = sort(space.a, space.b, n, space.histogram);
    const double limit = static_cast<double>(typical_p) * static_cast<double>(total);
    // `out` may be row.x itself, so the logits that stay wait in the other key array, as distances do.
    uint64_t* spare = keys == space.a ? space.b : space.a;
    int64_t kept = 0;
    uint64_t before = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
        float x[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) x[j] = i + j < n ? row.x[keys[i + j] & 0xffffffffU] : -kInfinity;
        const Masses m = as_integers(mass_as_float(row.distance(clean(load(x)))));
        for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
            if (kept > 0 && !(static_cast<double>(before) < limit)) break;
            spare[kept++] = make_key(x[j], static_cast<int64_t>(keys[i + j] & 0xffffffffU));
            before += m.half[j / 8][j % 8];
        }
    }
    for (int64_t i = 0; i < row.vocab; ++i) out[i] = -kInfinity;
    for (int64_t i = 0; i < kept; ++i) out[spare[i] & 0xffffffffU] = distance_of(spare[i]);
}

}  // namespace
}  // namespace penstock::PENSTOCK_ISA
