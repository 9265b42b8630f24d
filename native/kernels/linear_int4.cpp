// y = W x with 4-bit weights, one fp16 scale per column and group of 32, 64 or 128 K: linear_integer.h has
// the contract.
//
// Codes stay unsigned (w + 8), the unsigned operand of VPDPBUSD and VPMADDUBSW; each group's sum starts at -8
// times the sum of the row's codes. A slice is 32 K: the low or the high nibbles of eight rows of 64 bytes.
#include "kernels/integer_blocks.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kStepBytes = 1024;  // 64 k x 32 columns
constexpr int64_t kHalfBytes = 512;   // 16 of the columns

template <int G>
struct Int4 : BlockDriver<Int4<G>> {
    static constexpr int64_t kBlockBytes = 2 * kStepBytes + kBlockK / G * 64;
    static constexpr int kSlices = G / 32;  // of a group, but for one that K cuts short
    static constexpr int kGroups = kBlockK / G;
    static int64_t block_bytes(const PackedWeight&) { return kBlockBytes; }

    static constexpr bool begins_group(int64_t slice) { return slice % kSlices == 0; }
    static constexpr bool ends_group(int64_t slice, int64_t slices) {
        return (slice + 1) % kSlices == 0 || slice + 1 == slices;
    }

#if defined(__AVX512VNNI__)
    // Groups of 32 end so often that sums which do not fit beside the group's cost more than unpacking twice.
    static constexpr int64_t kStreamRows = 2, kBlockRows = G == 32 ? 5 : 8;

    // 32 K of the panel onto c.
    template <int R, bool kHigh>
    PENSTOCK_INLINE void slice(const std::byte* weights, const int8_t* codes, __m512i (&c)[R][2]) {
        const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
            __m512i w[2];
            for (int t = 0; t < 2; ++t) {
                w[t] = _mm512_loadu_si512(weights + t * kHalfBytes + r * 64);
                w[t] = _mm512_and_si512(kHigh ? _mm512_srli_epi16(w[t], 4) : w[t], mask);
            }
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) {
                const __m512i a = four_codes(codes + m * 64 + r * 4);
                for (int t = 0; t < 2; ++t) c[m][t] = _mm512_dpbusd_epi32(c[m][t], w[t], a);
            }
        }
    }

    template <int R>
    PENSTOCK_INLINE void begin(const int32_t* start, __m512i (&c)[R][2]) {
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m)
            for (int t = 0; t < 2; ++t) c[m][t] = _mm512_set1_epi32(start[m]);
    }

    template <int R>
    PENSTOCK_INLINE void end(const std::byte* scales, const __m512i (&c)[R][2], F16 (&v)[R][2],
                             bool is_first) {
        for (int t = 0; t < 2; ++t) {
            const F16 scale = widen_fp16(reinterpret_cast<const uint16_t*>(scales + t * 32));
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) {
                const F16 f = exact_float(c[m][t]);
                v[m][t] = is_first ? f * scale : fma(f, scale, v[m][t]);
            }
        }
    }

    // 64 k of the panel onto the sums of their groups, line by line.
    template <int R, int kStep>
    PENSTOCK_INLINE void stream_step(const std::byte* weights, const int8_t* codes,
                                     __m512i (&c)[kGroups][R][2]) {
        constexpr int kLow = kStep * 64 / G, kHigh = (kStep * 64 + 32) / G;
        const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 2
        for (int t = 0; t < 2; ++t) {
            const int8_t* const here = reload(codes);
#pragma GCC unroll 8
            for (int r = 0; r < 8; ++r) {
                const __m512i w = _mm512_loadu_si512(weights + t * kHalfBytes + r * 64);
                const __m512i low = _mm512_and_si512(w, mask);
                const __m512i high = _mm512_and_si512(_mm512_srli_epi16(w, 4), mask);
                for (int m = 0; m < R; ++m) {
                    const int8_t* const a = here + m * 64 + r * 4;
                    c[kLow][m][t] = _mm512_dpbusd_epi32(c[kLow][m][t], low, four_codes(a));
                    c[kHigh][m][t] = _mm512_dpbusd_epi32(c[kHigh][m][t], high, four_codes(a + 32));
                }
            }
        }
    }

    // Scales are read after all codes of the block, where they lie: to fetch a group's as it ends is a jump
    // ahead, and back, that costs a quarter of the rate at groups of 32.
    template <int R>
    static void stream(const BlockRun& at) noexcept {
        const std::byte* block = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK, block += kBlockBytes) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2;
            alignas(64) int32_t starts[kGroups][kTileRows];
            group_starts(at, k, steps, starts);
            __m512i c[kGroups][R][2];
            for (int g = 0; g < kGroups; ++g) begin<R>(starts[g] + at.lane, c[g]);
            stream_step<R, 0>(block, codes, c);
            if (steps > 1) stream_step<R, 1>(block + kStepBytes, codes + kTileRows * 64, c);
            codes += steps * kTileRows * 64;
            const std::byte* const scales = block + steps * kStepBytes;
            F16 v[R][2];
            for (int g = 0; g < kGroups; ++g)
                if (g == 0 || g * G < steps * 64) end<R>(scales + g * 64, c[g], v, g == 0);
            add_block<R>(at, k, v);
        }
    }

    // -8 times the row's codes, for every group of the block.
    PENSTOCK_INLINE void group_starts(const BlockRun& at, int64_t k, int64_t steps,
                                      int32_t (&starts)[kGroups][kTileRows]) {
        for (int64_t i = 0; i < 2 * steps; i += kSlices)
            start_values<8>(at.code_sums + (k / 32 + i) * 16, kSlices < 2 * steps ? kSlices : 2 * steps,
                            starts[i / kSlices]);
    }

    template <int R>
    PENSTOCK_INLINE void add_block(const BlockRun& at, int64_t k, const F16 (&v)[R][2]) {
#pragma GCC unroll 16
        for (int m = 0; m < R; ++m) {
            const F16 scale = set1(at.scales[k / kBlockK * 16 + m]);
            float* const sums = at.sums + m * kPanel;
            for (int t = 0; t < 2; ++t) store(sums + 16 * t, fma(v[m][t], scale, load(sums + 16 * t)));
        }
    }

    template <int R>
    static void block(const BlockRun& at) noexcept {
        const std::byte* block = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK, block += kBlockBytes) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2;
            const std::byte* const scales = block + steps * kStepBytes;
            alignas(64) int32_t starts[kGroups][kTileRows];
            group_starts(at, k, steps, starts);
            __m512i c[R][2];
            F16 v[R][2];
            if constexpr (G == 128) begin<R>(starts[0] + at.lane, c);
            for (int64_t step = 0; step < steps; ++step, codes += kTileRows * 64) {
                const std::byte* const weights = block + step * kStepBytes;
                prefetch_lines<R>(at, k / 64 + step, codes);
                if constexpr (G < 128) begin<R>(starts[step * 64 / G] + at.lane, c);
                slice<R, false>(weights, codes, c);
                if constexpr (G == 32) {
                    end<R>(scales + step * 128, c, v, step == 0);
                    begin<R>(starts[step * 2 + 1] + at.lane, c);
                }
                slice<R, true>(weights, codes + 32, c);
                if constexpr (G == 32) end<R>(scales + step * 128 + 64, c, v, false);
                if constexpr (G == 64) end<R>(scales + step * 64, c, v, step == 0);
            }
            if constexpr (G == 128) end<R>(scales, c, v, true);
            add_block<R>(at, k, v);
        }
    }

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        if constexpr (kStream)
            stream<R>(at);
        else
            block<R>(at);
    }
#elif defined(__AVX2__)
    static constexpr int64_t kStreamRows = 4, kBlockRows = 4;

    // 32 K of 16 columns onto c; eight products of at most 2 * 15 * 127 fit 16 bits.
    template <int R>
    PENSTOCK_INLINE void slice(const std::byte* weights, bool is_high, const int8_t* codes, __m256i (*c)[4]) {
        const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
        const __m128i shift = _mm_cvtsi32_si128(is_high ? 4 : 0);
        __m256i d[R][2];
        for (int m = 0; m < R; ++m) d[m][0] = d[m][1] = _mm256_setzero_si256();
        for (int r = 0; r < 8; ++r) {
            const auto* row = reinterpret_cast<const __m256i*>(weights + r * 64);
            const __m256i w0 = _mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256(row), shift), mask);
            const __m256i w1 = _mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256(row + 1), shift), mask);
#pragma GCC unroll 4
            for (int m = 0; m < R; ++m) {
                const __m256i a = four_codes(codes + m * 64 + r * 4);
                d[m][0] = _mm256_add_epi16(d[m][0], _mm256_maddubs_epi16(w0, a));
                d[m][1] = _mm256_add_epi16(d[m][1], _mm256_maddubs_epi16(w1, a));
            }
        }
        for (int m = 0; m < R; ++m)
            for (int t = 0; t < 2; ++t) c[m][t] = _mm256_add_epi32(c[m][t], _mm256_madd_epi16(d[m][t], ones));
    }

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        const std::byte* block = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK, block += kBlockBytes) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2, slices = 2 * steps;
            __m256i c[R][4] = {};
            __m256 v[R][4] = {};
            for (int64_t step = 0; step < steps; ++step, codes += kTileRows * 64)
                for (int half = 0; half < 4; half += 2)
                    for (int64_t i = 2 * step; i < 2 * step + 2; ++i) {
                        const int64_t group = i / kSlices;
                        if (begins_group(i))
                            for (int m = 0; m < R; ++m) {
                                int32_t total = 0;
                                for (int64_t s = i; s < i + kSlices && s < slices; ++s)
                                    total += at.code_sums[(k / 32 + s) * 16 + at.lane + m];
                                c[m][half] = c[m][half + 1] = _mm256_set1_epi32(-8 * total);
                            }
                        __m256i(*const columns)[4] = reinterpret_cast<__m256i(*)[4]>(&c[0][half]);
                        slice<R>(block + step * kStepBytes + half / 2 * kHalfBytes, i % 2 == 1,
                                 codes + i % 2 * 32, columns);
                        if (!ends_group(i, slices)) continue;
                        const std::byte* scales = block + steps * kStepBytes + group * 64;
                        for (int t = half; t < half + 2; ++t) {
                            const __m256 scale = _mm256_cvtph_ps(
                                _mm_loadu_si128(reinterpret_cast<const __m128i*>(scales + t * 16)));
                            for (int m = 0; m < R; ++m) {
                                const __m256 f = _mm256_cvtepi32_ps(c[m][t]);
                                v[m][t] =
                                    group == 0 ? _mm256_mul_ps(f, scale) : _mm256_fmadd_ps(f, scale, v[m][t]);
                            }
                        }
                    }
            for (int m = 0; m < R; ++m) {
                const __m256 scale = _mm256_set1_ps(at.scales[k / kBlockK * 16 + m]);
                float* const sums = at.sums + m * kPanel;
                for (int t = 0; t < 4; ++t)
                    _mm256_storeu_ps(sums + 8 * t,
                                     _mm256_fmadd_ps(v[m][t], scale, _mm256_loadu_ps(sums + 8 * t)));
            }
        }
    }
#else
    static constexpr int64_t kStreamRows = 1, kBlockRows = 1;

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        const std::byte* block = at.weights;
        for (int64_t k = 0; k < at.num_k; k += kBlockK, block += kBlockBytes) {
            const int64_t here = at.num_k - k < kBlockK ? at.num_k - k : kBlockK, group = G < here ? G : here;
            float v[kPanel] = {};
            for (int64_t g = 0; g < here / group; ++g) {
                int32_t c[kPanel] = {};
                for (int64_t i = g * group; i < (g + 1) * group; ++i) {
                    const int32_t a = at.codes[(k + i) / 64 * kTileRows * 64 + i % 64];
                    const auto* row = reinterpret_cast<const uint8_t*>(block) + i / 64 * kStepBytes +
                                      i % 32 / 4 * 64 + i % 4;
                    const int shift = i % 64 < 32 ? 0 : 4;
                    for (int j = 0; j < kPanel; ++j)
                        c[j] += a * ((row[j / 16 * kHalfBytes + j % 16 * 4] >> shift & 15) - 8);
                }
                for (int t = 0; t < 2; ++t) {
                    const std::byte* scales = block + here * 16 + g * 64 + t * 32;
                    const F16 scale = widen_fp16(reinterpret_cast<const uint16_t*>(scales));
                    for (int j = 16 * t; j < 16 * t + 16; ++j) {
                        const float f = static_cast<float>(c[j]), s = scale[j % 16];
                        v[j] = g == 0 ? f * s : __builtin_fmaf(f, s, v[j]);
                    }
                }
            }
            for (int j = 0; j < kPanel; ++j)
                at.sums[j] = __builtin_fmaf(v[j], at.scales[k / kBlockK * 16], at.sums[j]);
        }
    }
#endif
};

}  // namespace

void linear_int4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    switch (w.format) {
        case Format::kInt4G32:
            return run_integer<Int4<32>>(w, a, rows, out, panel_begin, panel_end, scratch);
        case Format::kInt4G64:
            return run_integer<Int4<64>>(w, a, rows, out, panel_begin, panel_end, scratch);
        default:
            return run_integer<Int4<128>>(w, a, rows, out, panel_begin, panel_end, scratch);
    }
}

}  // namespace penstock::PENSTOCK_ISA
