// The sampler's view of one row of logits: cleaned, edited, in chunks with the maxima of their lanes.
#pragma once
#include "../kernels.h"
#include "../noise.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kChunk = 256;
constexpr int64_t kVectors = kChunk / kLanes;
constexpr float kInfinity = __builtin_inff();
constexpr float kCeiling = 1e30f;

// Comparisons of vectors as bit masks, one bit a lane.
PENSTOCK_INLINE uint32_t lanes_of(I16 mask) {
#if defined(__AVX512F__)
    return _mm512_movepi32_mask(reinterpret_cast<__m512i>(mask));
#elif defined(__AVX2__)
    __m256 h[2];
    std::memcpy(h, &mask, 64);
    return static_cast<uint32_t>(_mm256_movemask_ps(h[0]) | _mm256_movemask_ps(h[1]) << 8);
#else
    uint32_t r = 0;
    for (int i = 0; i < kLanes; ++i) r |= (static_cast<uint32_t>(mask[i]) & 1U) << i;
    return r;
#endif
}
// Larger and smaller; b where either is NaN. GCC takes a comparison of 64 bytes apart lane by lane without
// AVX-512.
PENSTOCK_INLINE F16 higher(F16 a, F16 b) {
#if defined(__AVX512F__)
    return reinterpret_cast<F16>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
    __m256 x[2], y[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int h = 0; h < 2; ++h) x[h] = _mm256_max_ps(x[h], y[h]);
    std::memcpy(&a, x, 64);
    return a;
#else
    return max(a, b);
#endif
}
PENSTOCK_INLINE F16 lower(F16 a, F16 b) {
#if defined(__AVX512F__)
    return reinterpret_cast<F16>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#elif defined(__AVX2__)
    __m256 x[2], y[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    for (int h = 0; h < 2; ++h) x[h] = _mm256_min_ps(x[h], y[h]);
    std::memcpy(&a, x, 64);
    return a;
#else
    return min(a, b);
#endif
}
// NaN and what is below -1e30 count as -inf, what is above 1e30 as 1e30: no later sum or quotient overflows.
PENSTOCK_INLINE F16 clean(F16 x) {
#if defined(__AVX512F__)
    const __m512 v = reinterpret_cast<__m512>(x), ceiling = _mm512_set1_ps(kCeiling);
    const __mmask16 is_number = _mm512_cmp_ps_mask(v, _mm512_set1_ps(-kCeiling), _CMP_GE_OQ);
    return reinterpret_cast<F16>(_mm512_mask_min_ps(_mm512_set1_ps(-kInfinity), is_number, v, ceiling));
#else
    return select(x >= set1(-kCeiling), min(x, set1(kCeiling)), set1(-kInfinity));
#endif
}
PENSTOCK_INLINE float clean_1(float x) { return clean(set1(x))[0]; }
PENSTOCK_INLINE U16 iota() { return U16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

// A row seen in chunks of 256 logits; the last is a copy, padded with -inf.
struct Row {
    const float* x;
    int64_t vocab, num_chunks;
    float* tail;
    float* maxima;  // [num_chunks][16]: of each lane of a chunk
    float highest;
    float temperature, top;  // top = highest / temperature

    const float* chunk(int64_t c) const { return (c + 1) * kChunk <= vocab ? x + c * kChunk : tail; }
    F16 distance(F16 logits) const { return top - (temperature == 1.0f ? logits : logits / temperature); }
};

Row make_row(const float* x, int64_t vocab, float temperature, float* tail, float* maxima) {
    Row row{x, vocab, (vocab + kChunk - 1) / kChunk, tail, maxima, -kInfinity, temperature, 0.0f};
    for (int64_t i = vocab / kChunk * kChunk; i < row.num_chunks * kChunk; ++i)
        tail[i % kChunk] = i < vocab ? x[i] : -kInfinity;
    F16 highest = set1(-kInfinity);
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const float* p = row.chunk(c);
        F16 m[4] = {set1(-kInfinity), set1(-kInfinity), set1(-kInfinity), set1(-kInfinity)};
        for (int64_t v = 0; v < kVectors; v += 4)
            for (int64_t j = 0; j < 4; ++j) m[j] = higher(load(p + (v + j) * kLanes), m[j]);  // NaN loses
        const F16 all = clean(higher(higher(m[0], m[1]), higher(m[2], m[3])));
        store(maxima + c * kLanes, all);
        highest = higher(highest, all);
    }
    row.highest = max_lane(highest) + 0.0f;  // never -0: then no distance is, and its bits compare as it does
    row.top = row.highest / temperature;
    return row;
}

int32_t first_highest(const Row& row) {
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        if (!lanes_of(load(row.maxima + c * kLanes) >= set1(row.highest))) continue;
        for (int64_t v = 0; v < kVectors; ++v) {
            const uint32_t hit = lanes_of(clean(load(row.chunk(c) + v * kLanes)) >= set1(row.highest));
            if (hit) return static_cast<int32_t>(c * kChunk + v * kLanes + __builtin_ctz(hit));
        }
    }
    return 0;
}

PENSTOCK_INLINE bool is_allowed(const uint32_t* allowed, int64_t i) {
    return !allowed || (allowed[i / 32] >> (i % 32) & 1U);
}

// Where no logit is left above -inf: the lowest index neither mask nor bias forbids, else the lowest of the
// mask.
int32_t lowest_allowed(const SampleArgs& a, int64_t r, const uint32_t* allowed) {
    for (int heed_bias = 1; heed_bias >= 0; --heed_bias)
        for (int64_t i = 0; i < a.vocab; ++i) {
            bool good = is_allowed(allowed, i);
            for (int64_t b = a.bias_start[r]; good && heed_bias && b < a.bias_start[r + 1]; ++b)
                good = a.bias_token[b] != i || a.bias_value[b] != -kInfinity;
            if (good) return static_cast<int32_t>(i);
        }
    return 0;
}

void edit(const SampleArgs& a, int64_t r, const float* x, const uint32_t* allowed, float* w) {
    const int64_t whole = a.vocab / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) store(w + i, clean(load(x + i)));
    for (int64_t i = whole; i < a.vocab; ++i) w[i] = clean_1(x[i]);
    const float repetition = a.repetition_penalty[r], presence = a.presence_penalty[r],
                frequency = a.frequency_penalty[r];
    if (repetition != 1.0f || presence != 0.0f || frequency != 0.0f)
        for (int64_t h = a.history_start[r]; h < a.history_start[r + 1]; ++h) {
            const int64_t t = a.history_token[h];
            if (t < 0 || t >= a.vocab) continue;
            float y = w[t] > 0.0f ? w[t] / repetition : w[t] * repetition;
            if (a.history_count[h] > 0) {
                y = y - frequency * static_cast<float>(a.history_count[h]);
                y = y - presence;
            }
            w[t] = clean_1(y);
        }
    for (int64_t b = a.bias_start[r]; b < a.bias_start[r + 1]; ++b) {
        const int64_t t = a.bias_token[b];
        if (t >= 0 && t < a.vocab) w[t] = clean_1(w[t] + a.bias_value[b]);
    }
    if (!allowed) return;
    for (int64_t i = 0; i < whole; i += kLanes) {
        const U16 word = U16{} + (allowed[i / 32] >> (i % 32));
        const I16 good = reinterpret_cast<I16>(((word >> iota()) & 1U) != U16{});
        store(w + i, select(good, load(w + i), set1(-kInfinity)));
    }
    for (int64_t i = whole; i < a.vocab; ++i)
        if (!is_allowed(allowed, i)) w[i] = -kInfinity;
}

}  // namespace
}  // namespace penstock::PENSTOCK_ISA
