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

// Comparisons of vectors as bit masks, one bit a lane. With AVX-512 they name the instruction: GCC would make
// a vector of the mask and a mask of the vector.
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
#if defined(__AVX512F__)
#define PENSTOCK_COMPARE(name, op, predicate)                                                           \
    PENSTOCK_INLINE uint32_t name(F16 a, F16 b) {                                                       \
        return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), predicate); \
    }                                                                                                   \
    PENSTOCK_INLINE uint32_t name(I16 a, I16 b) {                                                       \
        return _mm512_cmp_epi32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),        \
                                     (predicate) & 7);                                                  \
    }                                                                                                   \
    PENSTOCK_INLINE uint32_t name(U16 a, U16 b) {                                                       \
        return _mm512_cmp_epu32_mask(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b),        \
                                     (predicate) & 7);                                                  \
    }
#else
#define PENSTOCK_COMPARE(name, op, predicate)                                \
    PENSTOCK_INLINE uint32_t name(F16 a, F16 b) { return lanes_of(a op b); } \
    PENSTOCK_INLINE uint32_t name(I16 a, I16 b) { return lanes_of(a op b); } \
    PENSTOCK_INLINE uint32_t name(U16 a, U16 b) { return lanes_of(reinterpret_cast<I16>(a op b)); }
#endif
PENSTOCK_COMPARE(lanes_eq, ==, _CMP_EQ_OQ)
PENSTOCK_COMPARE(lanes_lt, <, _CMP_LT_OQ)
PENSTOCK_COMPARE(lanes_le, <=, _CMP_LE_OQ)
#undef PENSTOCK_COMPARE
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
PENSTOCK_INLINE float highest_lane(F16 v) {  // no lane is NaN
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
    return max_lane(v);
#endif
}
PENSTOCK_INLINE float clean_1(float x) { return clean(set1(x))[0]; }
PENSTOCK_INLINE U16 iota() { return U16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15}; }

constexpr float kNothing[kLanes] = {-kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity,
                                    -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity, -kInfinity,
                                    -kInfinity, -kInfinity, -kInfinity, -kInfinity};

// A row seen in chunks of 256 logits, which may lie anywhere.
struct Row {
    int64_t vocab, num_chunks;
    const float** chunks;  // [num_chunks]; the last is padded with -inf
    float* maxima;         // [num_chunks][16]: of each vector of a chunk, cleaned
    float highest;         // never -0: then no distance is, and its bits compare as it does
    float rate;            // 1 / temperature
    bool is_far = false;   // nobody has read its logits yet, and most will be wanted after the draw

    F16 distance(F16 logits) const { return (highest - logits) * rate; }
    F16 nearest(int64_t c) const { return distance(load(maxima + c * kLanes)); }  // of each vector
    float at(int64_t i) const { return chunks[i / kChunk][i % kChunk]; }
};

// Calls visit(index of the first logit, cleaned logits) for the vectors of chunk c that `wanted` has a bit
// for.
template <class Visit>
PENSTOCK_INLINE void for_vectors(const Row& row, int64_t c, uint32_t wanted, const Visit& visit) {
    const float* p = row.chunks[c];
    if (wanted == 0xffff)
        for (int64_t v = 0; v < kVectors; ++v) visit(c * kChunk + v * kLanes, clean(load(p + v * kLanes)));
    else
        for (; wanted; wanted &= wanted - 1) {
            const int64_t v = __builtin_ctz(wanted);
            visit(c * kChunk + v * kLanes, clean(load(p + v * kLanes)));
        }
}

// The largest of each of 16 vectors, cleaned, in the order of the vectors: every round halves what is left of
// each and joins two.
F16 maxima_of(const float* p) {
    F16 m[kVectors], pairs[8], fours[4], eights[2];
    for (int64_t v = 0; v < kVectors; ++v)
        m[v] = higher(load(p + v * kLanes), set1(-kInfinity));  // NaN loses
    for (int i = 0; i < 8; ++i) {
        const F16 a = m[2 * i], b = m[2 * i + 1];
        pairs[i] =
            higher(__builtin_shufflevector(a, b, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29),
                   __builtin_shufflevector(a, b, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31));
    }
    for (int i = 0; i < 4; ++i) {
        const F16 a = pairs[2 * i], b = pairs[2 * i + 1];
        fours[i] =
            higher(__builtin_shufflevector(a, b, 0, 1, 16, 17, 4, 5, 20, 21, 8, 9, 24, 25, 12, 13, 28, 29),
                   __builtin_shufflevector(a, b, 2, 3, 18, 19, 6, 7, 22, 23, 10, 11, 26, 27, 14, 15, 30, 31));
    }
    const auto join = [](F16 a, F16 b) {
        return higher(
            __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11, 16, 17, 18, 19, 24, 25, 26, 27),
            __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15, 20, 21, 22, 23, 28, 29, 30, 31));
    };
    for (int i = 0; i < 2; ++i) eights[i] = join(fours[2 * i], fours[2 * i + 1]);
    return clean(join(eights[0], eights[1]));
}

// After its chunks and maxima have changed.
void find_highest(Row& row) {
    F16 highest = set1(-kInfinity);
    for (int64_t c = 0; c < row.num_chunks; ++c) highest = higher(highest, load(row.maxima + c * kLanes));
    row.highest = highest_lane(highest) + 0.0f;
}

// `chunks` has room for the row, `tail` for a chunk, `maxima` for all chunks. `knows_maxima`: those of whole
// vectors are there, as a linear keeps them.
Row make_row(const float* x, int64_t vocab, bool knows_maxima, const float** chunks, float* maxima,
             float* tail) {
    static_assert(kMaximaOf == kLanes && kChunk == 256);
    Row row{vocab, (vocab + kChunk - 1) / kChunk, chunks, maxima, -kInfinity, 1.0f};
    for (int64_t c = 0; c < row.num_chunks; ++c) chunks[c] = x + c * kChunk;
    if (const int64_t whole = vocab / kChunk * kChunk; whole < vocab) {
        for (int64_t i = 0; i < kChunk; ++i) tail[i] = whole + i < vocab ? x[whole + i] : -kInfinity;
        chunks[row.num_chunks - 1] = tail;
    }
    const int64_t num_known = knows_maxima ? vocab / kChunk : 0;
    for (int64_t c = 0; c < num_known; ++c) store(maxima + c * kLanes, clean(load(maxima + c * kLanes)));
    for (int64_t c = num_known; c < row.num_chunks; ++c) {
        for (int64_t i = 0; i < kChunk; i += kLanes) __builtin_prefetch(chunks[c] + 4 * kChunk + i);
        store(maxima + c * kLanes, maxima_of(chunks[c]));
    }
    find_highest(row);
    return row;
}

int32_t first_highest(const Row& row) {
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const uint32_t equal = lanes_le(set1(row.highest), load(row.maxima + c * kLanes));
        if (!equal) continue;
        const int64_t v = __builtin_ctz(equal);
        const F16 x = clean(load(row.chunks[c] + v * kLanes));
        return static_cast<int32_t>(c * kChunk + v * kLanes + __builtin_ctz(lanes_le(set1(row.highest), x)));
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

}  // namespace
}  // namespace penstock::PENSTOCK_ISA
