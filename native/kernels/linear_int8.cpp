// y = W x with int8 weights, one scale per output column: linear_integer.h has the contract.
//
// AVX-512 VNNI multiplies unsigned by signed: weights become unsigned by flipping their sign bit (+128), and
// each sum starts at -128 times the sum of the row's codes. AVX2 gives the weights' signs to the codes;
// |w| * |a| of two neighbours is at most 2 * 128 * 127, which 16 bits hold.
#include "kernels/integer_blocks.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kStepBytes = 2048;  // 64 k x 32 columns

struct Int8 : BlockDriver<Int8> {
    static int64_t block_bytes(const PackedWeight&) { return 2 * kStepBytes; }

#if defined(__AVX512VNNI__)
    static constexpr int kMaxRows = 8;

    template <int R, bool kAhead>
    static void run(const BlockRun& at) noexcept {
        const __m512i flip = _mm512_set1_epi8(-128);
        const std::byte* weights = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2;
            alignas(64) int32_t start[kTileRows];
            start_values<128>(at.code_sums + k / 32 * 16, steps * 2, start);
            __m512i c[R][2];
#pragma GCC unroll 8
            for (int m = 0; m < R; ++m) c[m][0] = c[m][1] = _mm512_set1_epi32(start[at.lane + m]);
            for (int64_t step = 0; step < steps; ++step, weights += kStepBytes, codes += kTileRows * 64) {
#pragma GCC unroll 2
                for (int r = 0; r < 16; ++r) {
                    const std::byte* row = weights + r * 64;
                    if constexpr (kAhead) {
                        _mm_prefetch(row + kAheadBytes, _MM_HINT_T0);
                        _mm_prefetch(row + kAheadBytes + 1024, _MM_HINT_T0);
                    }
                    const __m512i w0 = _mm512_xor_si512(_mm512_loadu_si512(row), flip);
                    const __m512i w1 = _mm512_xor_si512(_mm512_loadu_si512(row + 1024), flip);
#pragma GCC unroll 8
                    for (int m = 0; m < R; ++m) {
                        const __m512i a = four_codes(codes + m * 64 + r * 4);
                        c[m][0] = _mm512_dpbusd_epi32(c[m][0], w0, a);
                        c[m][1] = _mm512_dpbusd_epi32(c[m][1], w1, a);
                    }
                }
            }
#pragma GCC unroll 8
            for (int m = 0; m < R; ++m) {
                const F16 scale = set1(at.scales[k / kBlockK * 16 + m]);
                float* const sums = at.sums + m * kPanel;
                for (int t = 0; t < 2; ++t)
                    store(sums + 16 * t, fma(exact_float(c[m][t]), scale, load(sums + 16 * t)));
            }
        }
    }
#elif defined(__AVX2__)
    static constexpr int kMaxRows = 4;

    template <int R, bool kAhead>
    static void run(const BlockRun& at) noexcept {
        const __m256i ones = _mm256_set1_epi16(1);
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2;
            for (int half = 0; half < 2; ++half) {  // 16 columns in two registers
                const std::byte* weights = at.weights + k / 64 * kStepBytes + half * 1024;
                const int8_t* codes = at.codes + k / 64 * kTileRows * 64;
                __m256i c[R][2];
                for (int m = 0; m < R; ++m) c[m][0] = c[m][1] = _mm256_setzero_si256();
                for (int64_t step = 0; step < steps; ++step, weights += kStepBytes, codes += kTileRows * 64)
                    for (int r = 0; r < 16; ++r) {
                        const std::byte* row = weights + r * 64;
                        if constexpr (kAhead) _mm_prefetch(row + kAheadBytes, _MM_HINT_T0);
                        const __m256i w0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row));
                        const __m256i w1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(row + 32));
                        const __m256i p0 = _mm256_abs_epi8(w0), p1 = _mm256_abs_epi8(w1);
#pragma GCC unroll 4
                        for (int m = 0; m < R; ++m) {
                            int32_t four;
                            std::memcpy(&four, codes + m * 64 + r * 4, 4);
                            const __m256i a = _mm256_set1_epi32(four);
                            const __m256i d0 = _mm256_maddubs_epi16(p0, _mm256_sign_epi8(a, w0));
                            const __m256i d1 = _mm256_maddubs_epi16(p1, _mm256_sign_epi8(a, w1));
                            c[m][0] = _mm256_add_epi32(c[m][0], _mm256_madd_epi16(d0, ones));
                            c[m][1] = _mm256_add_epi32(c[m][1], _mm256_madd_epi16(d1, ones));
                        }
                    }
                for (int m = 0; m < R; ++m) {
                    const __m256 scale = _mm256_set1_ps(at.scales[k / kBlockK * 16 + m]);
                    float* const sums = at.sums + m * kPanel + half * 16;
                    for (int t = 0; t < 2; ++t)
                        _mm256_storeu_ps(sums + 8 * t, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c[m][t]), scale,
                                                                       _mm256_loadu_ps(sums + 8 * t)));
                }
            }
        }
    }
#else
    static constexpr int kMaxRows = 4;

    template <int R, bool kAhead>
    static void run(const BlockRun& at) noexcept {
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const int64_t end = at.num_k - k < kBlockK ? at.num_k : k + kBlockK;
            for (int m = 0; m < R; ++m) {
                int32_t c[kPanel] = {};
                for (int64_t i = k; i < end; i += 4) {
                    const int8_t* a = at.codes + i / 64 * kTileRows * 64 + m * 64 + i % 64;
                    const auto* row =
                        reinterpret_cast<const int8_t*>(at.weights) + i / 64 * kStepBytes + i % 64 * 16;
                    for (int j = 0; j < kPanel; ++j) {
                        const int8_t* w = row + j / 16 * 1024 + j % 16 * 4;
                        c[j] += w[0] * a[0] + w[1] * a[1] + w[2] * a[2] + w[3] * a[3];
                    }
                }
                const float scale = at.scales[k / kBlockK * 16 + m];
                float* const sums = at.sums + m * kPanel;
                for (int j = 0; j < kPanel; ++j)
                    sums[j] = __builtin_fmaf(static_cast<float>(c[j]), scale, sums[j]);
            }
        }
    }
#endif
    static constexpr int64_t kStreamRows = kMaxRows;
};

}  // namespace

void linear_int8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    run_integer<Int8>(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
