// Integer codes under the INT contract (linear_integer.h) without tiles, for every format that has them.
//
// A slice is 32 K of 16 columns (groups of 16: 16 K): eight lines of 64 bytes; of 4-bit codes their low or
// their high nibbles. AVX-512 VNNI multiplies unsigned by signed: four bits lie as code + bias, bytes become
// code + 128 by flipping their sign bit, and each group's sum starts at -bias times the sum of the row's
// codes. AVX2 gives the signs of bytes to the row's codes; eight products of at most 2 * 15 * 127, or one of
// 2 * 128 * 127, are what 16 bits hold.
#pragma once
#include "kernels/integer_blocks.h"

namespace penstock::PENSTOCK_ISA {

template <Format F>
struct IntegerCodes : BlockDriver<IntegerCodes<F>> {
    static constexpr Coding kCoding = coding_of(F);
    static constexpr Trailer T = kCoding.trailer;
    static constexpr int kBits = kCoding.bits;
    static constexpr int G = kCoding.group == 0 ? 128 : kCoding.group;
    static constexpr int kGroups = kBlockK / G;
    static constexpr int kSlice = G < 32 ? G : 32, kLines = kSlice / 4;
    static constexpr int64_t kStepBytes = kBits * 256, kHalfBytes = kStepBytes / 2;  // of 64 k; of 16 columns
    static constexpr int64_t kBlockBytes = superblock_bytes(kCoding, kBlockK);
    static int64_t block_bytes(const PackedWeight&) { return kBlockBytes; }

    static constexpr int64_t groups(int64_t steps) { return steps * 64 < G ? 1 : steps * 64 / G; }
    // The line of 64 bytes with the first codes of `k`, counted from the step's first; only low nibbles
    // count.
    static constexpr int64_t line(int64_t k) { return kBits == 4 ? k % 32 / 4 : k / 4; }

    // What a group's offset is multiplied by: the sums of the rows' codes, for all 16 rows of a tile.
    PENSTOCK_INLINE void sum_codes(const BlockRun& at, int64_t k, int64_t steps, float (*out)[kTileRows]) {
        constexpr int64_t kParts = G / kSlice;
        if constexpr (has_offset(T))
            for (int64_t i = 0; i < 2 * steps; i += kParts) {
                const int64_t parts = kParts < 2 * steps ? kParts : 2 * steps;
                store(out[i / kParts], to_float(add_sums(at.code_sums + (k / 32 + i) * kTileRows, parts)));
            }
    }

#if defined(__AVX512VNNI__)
    // Few enough rows for the sums of all groups of a block, 16 registers; what is left holds weights.
    // Groups of 32 end so often that sums which do not fit beside the group's cost more than unpacking twice.
    static constexpr int kStreamRows = kBits == 4 ? 2 : G / 16, kBlockRows = G > 32 ? 8 : 5;
    static constexpr int32_t kBias = kBits == 4 ? kCoding.bias : 128;

    struct Block {
        const BlockRun& at;
        const std::byte* trailer;
        int64_t groups;
        int32_t (*starts)[kTileRows];  // [groups][16]
        float (*code_sums)[kTileRows];
    };

    PENSTOCK_INLINE __m512i flipped(const std::byte* p) {
        return _mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128));
    }
    PENSTOCK_INLINE __m512i nibbles(__m512i v, bool is_high) {
        return _mm512_and_si512(is_high ? _mm512_srli_epi16(v, 4) : v, _mm512_set1_epi8(15));
    }

    // kSlice k from kFirst on, counted from the step's first, onto c.
    template <int R, int kFirst>
    PENSTOCK_INLINE void slice(const std::byte* step, const int8_t* codes, __m512i (&c)[R][2]) {
#pragma GCC unroll 8
        for (int r = 0; r < kLines; ++r) {
            __m512i w[2];
            for (int t = 0; t < 2; ++t) {
                const std::byte* const at = step + t * kHalfBytes + (line(kFirst) + r) * 64;
                w[t] = kBits == 8 ? flipped(at) : nibbles(_mm512_loadu_si512(at), kFirst == 32);
            }
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) {
                const __m512i a = four_codes(codes + m * 64 + kFirst + r * 4);
                for (int t = 0; t < 2; ++t) c[m][t] = _mm512_dpbusd_epi32(c[m][t], w[t], a);
            }
        }
    }

    // 64 k of the panel onto the sums of their groups, line by line.
    template <int R, int kStep>
    PENSTOCK_INLINE void stream_step(const std::byte* step, const int8_t* codes,
                                     __m512i (&c)[kGroups][R][2]) {
#pragma GCC unroll 2
        for (int t = 0; t < 2; ++t) {
            const int8_t* const here = reload(codes);
#pragma GCC unroll 16
            for (int r = 0; r < kHalfBytes / 64; ++r) {
                const std::byte* const at = step + t * kHalfBytes + r * 64;
                if constexpr (kBits == 8) {
                    const __m512i w = flipped(at);
                    const int g = (kStep * 64 + 4 * r) / G;
                    for (int m = 0; m < R; ++m)
                        c[g][m][t] = _mm512_dpbusd_epi32(c[g][m][t], w, four_codes(here + m * 64 + r * 4));
                } else {
                    constexpr int kLow = kStep * 64 / G, kHigh = (kStep * 64 + 32) / G;
                    const __m512i w = _mm512_loadu_si512(at), low = nibbles(w, false),
                                  high = nibbles(w, true);
                    for (int m = 0; m < R; ++m) {
                        const int8_t* const a = here + m * 64 + r * 4;
                        c[kLow][m][t] = _mm512_dpbusd_epi32(c[kLow][m][t], low, four_codes(a));
                        c[kHigh][m][t] = _mm512_dpbusd_epi32(c[kHigh][m][t], high, four_codes(a + 32));
                    }
                }
            }
        }
    }

    template <int R>
    PENSTOCK_INLINE void begin(const Block& b, int64_t g, __m512i (&c)[R][2]) {
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m)
            for (int t = 0; t < 2; ++t)
                c[m][t] = kBias == 0 ? _mm512_setzero_si512() : _mm512_set1_epi32(b.starts[g][b.at.lane + m]);
    }

    template <int R>
    PENSTOCK_INLINE void end(const Block& b, int64_t g, const __m512i (&c)[R][2], F16 (&v)[R][2]) {
        for (int t = 0; t < 2; ++t) {
            const F16 scale = group_scale<T>(b.trailer, b.groups, g, t * kLanes);
            const F16 offset = group_offset<T>(b.trailer, b.groups, g, t * kLanes);
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) {
                const float x = has_offset(T) ? b.code_sums[g][b.at.lane + m] : 0.0f;
                v[m][t] = add_group<T>(v[m][t], reinterpret_cast<I16>(c[m][t]), scale, offset, x, g == 0);
            }
        }
    }

    template <int R>
    PENSTOCK_INLINE void start_groups(const BlockRun& at, int64_t k, int64_t steps, const int8_t* codes,
                                      int32_t (*starts)[kTileRows]) {
        if constexpr (kBias == 0) {
            return;
        } else if constexpr (G < 32) {
            start_sixteens<kBias, R>(codes, at.lane, steps, starts);
        } else {
            constexpr int64_t kParts = G / 32;
            for (int64_t i = 0; i < 2 * steps; i += kParts)
                start_values<kBias>(at.code_sums + (k / 32 + i) * kTileRows,
                                    kParts < 2 * steps ? kParts : 2 * steps, starts[i / kParts]);
        }
    }

    // A block of weights that comes from memory. Scales are read after all codes of it, where they lie: to
    // fetch a group's as it ends is a jump ahead, and back, that costs a quarter of the rate at groups of 32.
    template <int R>
    PENSTOCK_INLINE void stream(const Block& b, int64_t steps, const std::byte* block, const int8_t* codes,
                                F16 (&v)[R][2]) {
        __m512i c[kGroups][R][2];
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g) begin<R>(b, g, c[g]);
        stream_step<R, 0>(block, codes, c);
        if (steps > 1) stream_step<R, 1>(block + kStepBytes, codes + kTileRows * 64, c);
#pragma GCC unroll 8
        for (int g = 0; g < kGroups; ++g)
            if (g == 0 || g * G < steps * 64) end<R>(b, g, c[g], v);
    }

    // A step of 64 k from kFirst on, with the groups that begin and end in it; `g` is that of its first.
    template <int R, int kFirst>
    PENSTOCK_INLINE void slices(const Block& b, const std::byte* step, const int8_t* codes, int64_t g,
                                __m512i (&c)[R][2], F16 (&v)[R][2]) {
        constexpr int kNext = kFirst + kSlice;
        if constexpr (G < 128 && kFirst % G == 0) begin<R>(b, g + kFirst / G, c);
        slice<R, kFirst>(step, codes, c);
        if constexpr (G < 128 && kNext % G == 0) end<R>(b, g + kFirst / G, c, v);
        if constexpr (kNext < 64) slices<R, kNext>(b, step, codes, g, c, v);
    }

    // A block of weights that comes from a cache.
    template <int R>
    PENSTOCK_INLINE void meet(const Block& b, int64_t k, int64_t steps, const std::byte* block,
                              const int8_t* codes, F16 (&v)[R][2]) {
        __m512i c[R][2];
        if constexpr (G == 128) begin<R>(b, 0, c);
        for (int64_t step = 0; step < steps; ++step, codes += kTileRows * 64) {
            prefetch_lines<R>(b.at, k / 64 + step, codes);
            slices<R, 0>(b, block + step * kStepBytes, codes, step * 64 / G, c, v);
        }
        if constexpr (G == 128) end<R>(b, 0, c, v);
    }

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        const std::byte* block = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK, block += kBlockBytes) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2;
            alignas(64) int32_t starts[kGroups][kTileRows];
            alignas(64) float code_sums[kGroups][kTileRows];
            start_groups<R>(at, k, steps, codes, starts);
            sum_codes(at, k, steps, code_sums);
            const Block b{at, block + steps * kStepBytes, groups(steps), starts, code_sums};
            F16 v[R][2];
            if constexpr (kStream) {
                stream<R>(b, steps, block, codes, v);
            } else {
                meet<R>(b, k, steps, block, codes, v);
            }
            codes += steps * kTileRows * 64;
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) {
                const F16 scale = set1(at.scales[k / kBlockK * 16 + m]);
                float* const sums = at.sums + m * kPanel;
                for (int t = 0; t < 2; ++t) store(sums + 16 * t, fma(v[m][t], scale, load(sums + 16 * t)));
            }
        }
    }
#elif defined(__AVX2__)
    static constexpr int kStreamRows = 4, kBlockRows = 4;

    // kSlice k of 16 columns onto c; `k` is counted from the step's first.
    template <int R>
    PENSTOCK_INLINE void slice(const std::byte* half, int64_t k, const int8_t* codes, __m256i (&c)[R][2]) {
        const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
        const __m128i shift = _mm_cvtsi32_si128(k < 32 ? 0 : 4);
        __m256i d[R][2];
        for (int m = 0; m < R; ++m) d[m][0] = d[m][1] = _mm256_setzero_si256();
        for (int r = 0; r < kLines; ++r)
            for (int t = 0; t < 2; ++t) {
                const std::byte* const at = half + (line(k) + r) * 64 + t * 32;
                const __m256i w = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
                if constexpr (kBits == 4) {
                    const __m256i u = _mm256_and_si256(_mm256_srl_epi16(w, shift), mask);
#pragma GCC unroll 4
                    for (int m = 0; m < R; ++m)
                        d[m][t] = _mm256_add_epi16(
                            d[m][t], _mm256_maddubs_epi16(u, four_codes(codes + m * 64 + k + r * 4)));
                } else {
                    const __m256i u = _mm256_abs_epi8(w);
#pragma GCC unroll 4
                    for (int m = 0; m < R; ++m) {
                        const __m256i a = _mm256_sign_epi8(four_codes(codes + m * 64 + k + r * 4), w);
                        c[m][t] =
                            _mm256_add_epi32(c[m][t], _mm256_madd_epi16(_mm256_maddubs_epi16(u, a), ones));
                    }
                }
            }
        if constexpr (kBits == 4)
            for (int m = 0; m < R; ++m)
                for (int t = 0; t < 2; ++t)
                    c[m][t] = _mm256_add_epi32(c[m][t], _mm256_madd_epi16(d[m][t], ones));
    }

    // A group's sums, to which 4-bit codes have added their bias, `first` of its `slices` being at k.
    template <int R>
    PENSTOCK_INLINE void begin(const BlockRun& at, int64_t k, int64_t steps, __m256i (&c)[R][2]) {
        constexpr int64_t kParts = G < 32 ? 1 : G / 32;
        const int64_t parts = kParts < 2 * steps ? kParts : 2 * steps;
        for (int m = 0; m < R; ++m) {
            int32_t total = 0;
            if constexpr (kBits == 4 && kCoding.bias != 0)
                for (int64_t i = 0; i < parts; ++i)
                    total += at.code_sums[(k / 32 + i) * kTileRows + at.lane + m];
            c[m][0] = c[m][1] = _mm256_set1_epi32(-kCoding.bias * total);
        }
    }

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        const std::byte* block = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK, block += kBlockBytes) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2, length = steps * 64;
            const std::byte* const trailer = block + steps * kStepBytes;
            alignas(64) float code_sums[kGroups][kTileRows];
            sum_codes(at, k, steps, code_sums);
            __m256i c[2][R][2];
            F16 v[R][2];
            for (int64_t step = 0; step < steps; ++step, codes += kTileRows * 64)
                for (int half = 0; half < 2; ++half)
                    for (int64_t i = 0; i < 64; i += kSlice) {
                        const int64_t inside = step * 64 + i, end = inside + kSlice, g = inside / G;
                        if (inside % G == 0) begin<R>(at, k + inside, steps, c[half]);
                        slice<R>(block + step * kStepBytes + half * kHalfBytes, i, codes, c[half]);
                        if (end % G != 0 && end != length) continue;
                        const F16 scale = group_scale<T>(trailer, groups(steps), g, half * kLanes);
                        const F16 offset = group_offset<T>(trailer, groups(steps), g, half * kLanes);
                        for (int m = 0; m < R; ++m) {
                            I16 exact;
                            std::memcpy(&exact, c[half][m], 64);
                            const float x = has_offset(T) ? code_sums[g][at.lane + m] : 0.0f;
                            v[m][half] = add_group<T>(v[m][half], exact, scale, offset, x, g == 0);
                        }
                    }
            for (int m = 0; m < R; ++m) {
                const F16 scale = set1(at.scales[k / kBlockK * 16 + m]);
                float* const sums = at.sums + m * kPanel;
                for (int t = 0; t < 2; ++t) store(sums + 16 * t, fma(v[m][t], scale, load(sums + 16 * t)));
            }
        }
    }
#else
    static constexpr int kStreamRows = 1, kBlockRows = 1;

    // The 32 products of one k onto c.
    PENSTOCK_INLINE void multiply(const std::byte* block, int64_t k, int32_t a, int32_t* c) {
        const std::byte* const first = block + k / 64 * kStepBytes + line(k % 64) * 64 + k % 4;
        const int shift = k % 64 < 32 ? 0 : 4;
        for (int j = 0; j < kPanel; ++j) {
            const auto byte = static_cast<uint8_t>(first[j / 16 * kHalfBytes + j % 16 * 4]);
            c[j] += a * (kBits == 8 ? static_cast<int8_t>(byte) : (byte >> shift & 15) - kCoding.bias);
        }
    }

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        const std::byte* block = at.weights;
        for (int64_t k = 0; k < at.num_k; k += kBlockK, block += kBlockBytes) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2, group = G < steps * 64 ? G : steps * 64;
            const std::byte* const trailer = block + steps * kStepBytes;
            alignas(64) float code_sums[kGroups][kTileRows];
            sum_codes(at, k, steps, code_sums);
            F16 v[2] = {};
            for (int64_t g = 0; g < groups(steps); ++g) {
                int32_t c[kPanel] = {};
                for (int64_t i = g * group; i < (g + 1) * group; ++i)
                    multiply(block, i, at.codes[(k + i) / 64 * kTileRows * 64 + i % 64], c);
                for (int t = 0; t < 2; ++t) {
                    I16 exact;
                    std::memcpy(&exact, c + t * kLanes, 64);
                    const float x = has_offset(T) ? code_sums[g][at.lane] : 0.0f;
                    v[t] = add_group<T>(v[t], exact, group_scale<T>(trailer, groups(steps), g, t * kLanes),
                                        group_offset<T>(trailer, groups(steps), g, t * kLanes), x, g == 0);
                }
            }
            const F16 scale = set1(at.scales[k / kBlockK * 16]);
            for (int t = 0; t < 2; ++t) store(at.sums + 16 * t, fma(v[t], scale, load(at.sums + 16 * t)));
        }
    }
#endif
};

}  // namespace penstock::PENSTOCK_ISA
