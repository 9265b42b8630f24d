// y = W x with 4-bit weights, one fp16 scale per column and group of 32, 64 or 128 K: linear_integer.h has
// the contract.
//
// Codes stay unsigned (w + 8), the unsigned operand of VPDPBUSD and VPMADDUBSW; each group's sum starts at -8
// times the sum of the row's codes. A slice is 32 K: the low or the high nibbles of eight rows of 64 bytes.
#include "kernels/integer_blocks.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kStepBytes = 1024;  // 64 k x 32 columns

template <int G>
struct Int4 : BlockDriver<Int4<G>> {
    static int64_t block_bytes(const PackedWeight&) { return 2 * kStepBytes + kBlockK / G * 64; }

    // The groups of one block: `slices` of 32 K each, `scales` after the codes.
    struct Block {
        int64_t num_k, slices, groups;
        const std::byte *weights, *scales;

        Block(const BlockRun& at, int64_t k) {
            num_k = at.num_k - k < kBlockK ? at.num_k - k : kBlockK;
            slices = (G < num_k ? G : num_k) / 32;
            groups = num_k / 32 / slices;
            weights = at.weights + k / kBlockK * (2 * kStepBytes + kBlockK / G * 64);
            scales = weights + num_k * 16;
        }
    };

#if defined(__AVX512VNNI__)
    static constexpr int kMaxRows = 8;

    template <int R, bool kAhead, bool kHigh>
    PENSTOCK_INLINE void slice(const std::byte* weights, const int8_t* codes, __m512i (&c)[R][2]) {
        const __m512i mask = _mm512_set1_epi8(15);
#pragma GCC unroll 8
        for (int r = 0; r < 8; ++r) {
            const std::byte* row = weights + r * 64;
            if constexpr (kAhead && !kHigh) {
                _mm_prefetch(row + kAheadBytes, _MM_HINT_T0);
                _mm_prefetch(row + kAheadBytes + 512, _MM_HINT_T0);
            }
            __m512i w0 = _mm512_loadu_si512(row), w1 = _mm512_loadu_si512(row + 512);
            if constexpr (kHigh) {
                w0 = _mm512_srli_epi16(w0, 4);
                w1 = _mm512_srli_epi16(w1, 4);
            }
            w0 = _mm512_and_si512(w0, mask);
            w1 = _mm512_and_si512(w1, mask);
#pragma GCC unroll 8
            for (int m = 0; m < R; ++m) {
                const __m512i a = four_codes(codes + m * 64 + r * 4);
                c[m][0] = _mm512_dpbusd_epi32(c[m][0], w0, a);
                c[m][1] = _mm512_dpbusd_epi32(c[m][1], w1, a);
            }
        }
    }

    template <int R, bool kAhead>
    static void run(const BlockRun& at) noexcept {
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const Block block(at, k);
            const std::byte* weights = block.weights;
            const int8_t* codes = at.codes + k / 64 * kTileRows * 64;
            F16 v[R][2] = {};
            for (int64_t g = 0; g < block.groups; ++g) {
                alignas(64) int32_t start[kTileRows];
                const int64_t first = g * block.slices;
                start_values<8>(at.code_sums + (k / 32 + first) * 16, block.slices, start);
                __m512i c[R][2];
#pragma GCC unroll 8
                for (int m = 0; m < R; ++m) c[m][0] = c[m][1] = _mm512_set1_epi32(start[at.lane + m]);
                if constexpr (G == 32) {
                    if (g % 2 == 0) {
                        slice<R, kAhead, false>(weights, codes, c);
                    } else {
                        slice<R, kAhead, true>(weights, codes + 32, c);
                        weights += kStepBytes;
                        codes += kTileRows * 64;
                    }
                } else {
                    for (int64_t i = 0; i < block.slices; i += 2) {
                        slice<R, kAhead, false>(weights, codes, c);
                        slice<R, kAhead, true>(weights, codes + 32, c);
                        weights += kStepBytes;
                        codes += kTileRows * 64;
                    }
                }
                F16 scale[2];
                for (int t = 0; t < 2; ++t)
                    scale[t] = widen_fp16(reinterpret_cast<const uint16_t*>(block.scales + g * 64 + t * 32));
#pragma GCC unroll 8
                for (int m = 0; m < R; ++m)
                    for (int t = 0; t < 2; ++t) {
                        const F16 f = exact_float(c[m][t]);
                        v[m][t] = g == 0 ? f * scale[t] : fma(f, scale[t], v[m][t]);
                    }
            }
#pragma GCC unroll 8
            for (int m = 0; m < R; ++m) {
                const F16 scale = set1(at.scales[k / kBlockK * 16 + m]);
                float* const sums = at.sums + m * kPanel;
                for (int t = 0; t < 2; ++t) store(sums + 16 * t, fma(v[m][t], scale, load(sums + 16 * t)));
            }
        }
    }
#elif defined(__AVX2__)
    static constexpr int kMaxRows = 4;

    // 32 K of 16 columns: eight products of at most 2 * 15 * 127 fit 16 bits.
    template <int R, bool kAhead>
    PENSTOCK_INLINE void slice(const std::byte* weights, bool is_high, const int8_t* codes,
                               __m256i (&c)[R][2]) {
        const __m256i mask = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1);
        const __m128i shift = _mm_cvtsi32_si128(is_high ? 4 : 0);
        __m256i d[R][2];
        for (int m = 0; m < R; ++m) d[m][0] = d[m][1] = _mm256_setzero_si256();
        for (int r = 0; r < 8; ++r) {
            const auto* row = reinterpret_cast<const __m256i*>(weights + r * 64);
            if constexpr (kAhead) _mm_prefetch(weights + r * 64 + kAheadBytes, _MM_HINT_T0);
            const __m256i w0 = _mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256(row), shift), mask);
            const __m256i w1 = _mm256_and_si256(_mm256_srl_epi16(_mm256_loadu_si256(row + 1), shift), mask);
#pragma GCC unroll 4
            for (int m = 0; m < R; ++m) {
                int32_t four;
                std::memcpy(&four, codes + m * 64 + r * 4, 4);
                const __m256i a = _mm256_set1_epi32(four);
                d[m][0] = _mm256_add_epi16(d[m][0], _mm256_maddubs_epi16(w0, a));
                d[m][1] = _mm256_add_epi16(d[m][1], _mm256_maddubs_epi16(w1, a));
            }
        }
        for (int m = 0; m < R; ++m)
            for (int t = 0; t < 2; ++t) c[m][t] = _mm256_add_epi32(c[m][t], _mm256_madd_epi16(d[m][t], ones));
    }

    template <int R, bool kAhead>
    static void run(const BlockRun& at) noexcept {
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const Block block(at, k);
            for (int half = 0; half < 2; ++half) {
                __m256 v[R][2] = {};
                for (int64_t g = 0; g < block.groups; ++g) {
                    __m256i c[R][2];
                    for (int m = 0; m < R; ++m) {
                        int32_t total = 0;
                        for (int64_t i = 0; i < block.slices; ++i)
                            total += at.code_sums[(k / 32 + g * block.slices + i) * 16 + at.lane + m];
                        c[m][0] = c[m][1] = _mm256_set1_epi32(-8 * total);
                    }
                    for (int64_t i = g * block.slices; i < (g + 1) * block.slices; ++i)
                        slice<R, kAhead>(block.weights + i / 2 * kStepBytes + half * 512, i % 2 == 1,
                                         at.codes + (k / 64 + i / 2) * kTileRows * 64 + i % 2 * 32, c);
                    for (int t = 0; t < 2; ++t) {
                        const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(
                            reinterpret_cast<const __m128i*>(block.scales + g * 64 + half * 32 + t * 16)));
                        for (int m = 0; m < R; ++m) {
                            const __m256 f = _mm256_cvtepi32_ps(c[m][t]);
                            v[m][t] = g == 0 ? _mm256_mul_ps(f, scale) : _mm256_fmadd_ps(f, scale, v[m][t]);
                        }
                    }
                }
                for (int m = 0; m < R; ++m) {
                    const __m256 scale = _mm256_set1_ps(at.scales[k / kBlockK * 16 + m]);
                    float* const sums = at.sums + m * kPanel + half * 16;
                    for (int t = 0; t < 2; ++t)
                        _mm256_storeu_ps(sums + 8 * t,
                                         _mm256_fmadd_ps(v[m][t], scale, _mm256_loadu_ps(sums + 8 * t)));
                }
            }
        }
    }
#else
    static constexpr int kMaxRows = 4;

    template <int R, bool kAhead>
    static void run(const BlockRun& at) noexcept {
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const Block block(at, k);
            for (int m = 0; m < R; ++m) {
                float v[kPanel] = {};
                for (int64_t g = 0; g < block.groups; ++g) {
                    int32_t c[kPanel] = {};
                    for (int64_t i = g * block.slices * 32; i < (g + 1) * block.slices * 32; ++i) {
                        const int32_t a = at.codes[((k + i) / 64 * kTileRows + m) * 64 + i % 64];
                        const auto* row = reinterpret_cast<const uint8_t*>(block.weights) +
                                          i / 64 * kStepBytes + i % 32 / 4 * 64 + i % 4;
                        const int shift = i % 64 < 32 ? 0 : 4;
                        for (int j = 0; j < kPanel; ++j)
                            c[j] += a * ((row[j / 16 * 512 + j % 16 * 4] >> shift & 15) - 8);
                    }
                    for (int half = 0; half < 2; ++half) {
                        const F16 scale =
                            widen_fp16(reinterpret_cast<const uint16_t*>(block.scales + g * 64 + half * 32));
                        for (int j = half * 16; j < half * 16 + 16; ++j) {
                            const float f = static_cast<float>(c[j]), s = scale[j % 16];
                            v[j] = g == 0 ? f * s : __builtin_fmaf(f, s, v[j]);
                        }
                    }
                }
                const float scale = at.scales[k / kBlockK * 16 + m];
                float* const sums = at.sums + m * kPanel;
                for (int j = 0; j < kPanel; ++j) sums[j] = __builtin_fmaf(v[j], scale, sums[j]);
            }
        }
    }
#endif
    static constexpr int64_t kStreamRows = kMaxRows;
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
