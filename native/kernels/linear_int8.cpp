// y = W x with int8 weights, one scale per output column: linear_integer.h has the contract.
//
// AVX-512 VNNI multiplies unsigned by signed: weights become unsigned by flipping their sign bit (+128), and
// each sum starts at -128 times the sum of the row's codes. AVX2 gives the weights' signs to the codes;
// |w| * |a| of two neighbours is at most 2 * 128 * 127, which 16 bits hold.
#include "kernels/integer_blocks.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kStepBytes = 2048;  // 64 k x 32 columns
constexpr int64_t kHalfBytes = 1024;  // 16 of the columns

struct Int8 : BlockDriver<Int8> {
    static int64_t block_bytes(const PackedWeight&) { return 2 * kStepBytes; }

#if defined(__AVX512VNNI__)
    static constexpr int64_t kStreamRows = 8, kBlockRows = 8;

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        constexpr int kTiles = kStream ? 1 : 2;  // halves of the panel at a time
        const __m512i flip = _mm512_set1_epi8(-128);
        const std::byte* weights = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2;
            alignas(64) int32_t start[kTileRows];
            start_values<128>(at.code_sums + k / 32 * 16, steps * 2, start);
            __m512i c[R][2];
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) c[m][0] = c[m][1] = _mm512_set1_epi32(start[at.lane + m]);
            for (int64_t step = 0; step < steps; ++step, weights += kStepBytes, codes += kTileRows * 64) {
                if constexpr (!kStream) prefetch_lines<R>(at, k / 64 + step, codes);
#pragma GCC unroll 2
                for (int first = 0; first < 2; first += kTiles) {
                    const int8_t* const here = reload(codes);
#pragma GCC unroll 16
                    for (int r = 0; r < 16; ++r) {
                        const std::byte* row = weights + first * kHalfBytes + r * 64;
                        __m512i w[kTiles];
                        for (int t = 0; t < kTiles; ++t)
                            w[t] = _mm512_xor_si512(_mm512_loadu_si512(row + t * kHalfBytes), flip);
#pragma GCC unroll 16
                        for (int m = 0; m < R; ++m) {
                            const __m512i a = four_codes(here + m * 64 + r * 4);
                            for (int t = 0; t < kTiles; ++t)
                                c[m][first + t] = _mm512_dpbusd_epi32(c[m][first + t], w[t], a);
                        }
                    }
                }
            }
#pragma GCC unroll 16
            for (int m = 0; m < R; ++m) {
                const F16 scale = set1(at.scales[k / kBlockK * 16 + m]);
                float* const sums = at.sums + m * kPanel;
                for (int t = 0; t < 2; ++t)
                    store(sums + 16 * t, fma(exact_float(c[m][t]), scale, load(sums + 16 * t)));
            }
        }
    }
#elif defined(__AVX2__)
    static constexpr int64_t kStreamRows = 4, kBlockRows = 4;

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        const __m256i ones = _mm256_set1_epi16(1);
        const std::byte* weights = at.weights;
        const int8_t* codes = at.codes;
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const int64_t steps = at.num_k - k < kBlockK ? 1 : 2;
            __m256i c[R][4];
            for (int m = 0; m < R; ++m) c[m][0] = c[m][1] = c[m][2] = c[m][3] = _mm256_setzero_si256();
            for (int64_t step = 0; step < steps; ++step, weights += kStepBytes, codes += kTileRows * 64)
#pragma GCC unroll 2
                for (int t = 0; t < 4; t += 2)
                    for (int r = 0; r < 16; ++r) {
                        const auto* row =
                            reinterpret_cast<const __m256i*>(weights + t / 2 * kHalfBytes + r * 64);
                        const __m256i w0 = _mm256_loadu_si256(row), w1 = _mm256_loadu_si256(row + 1);
                        const __m256i p0 = _mm256_abs_epi8(w0), p1 = _mm256_abs_epi8(w1);
#pragma GCC unroll 4
                        for (int m = 0; m < R; ++m) {
                            const __m256i a = four_codes(codes + m * 64 + r * 4);
                            const __m256i d0 = _mm256_maddubs_epi16(p0, _mm256_sign_epi8(a, w0));
                            const __m256i d1 = _mm256_maddubs_epi16(p1, _mm256_sign_epi8(a, w1));
                            c[m][t] = _mm256_add_epi32(c[m][t], _mm256_madd_epi16(d0, ones));
                            c[m][t + 1] = _mm256_add_epi32(c[m][t + 1], _mm256_madd_epi16(d1, ones));
                        }
                    }
            for (int m = 0; m < R; ++m) {
                const __m256 scale = _mm256_set1_ps(at.scales[k / kBlockK * 16 + m]);
                float* const sums = at.sums + m * kPanel;
                for (int t = 0; t < 4; ++t)
                    _mm256_storeu_ps(sums + 8 * t, _mm256_fmadd_ps(_mm256_cvtepi32_ps(c[m][t]), scale,
                                                                   _mm256_loadu_ps(sums + 8 * t)));
            }
        }
    }
#else
    static constexpr int64_t kStreamRows = 1, kBlockRows = 1;

    template <int R, bool kStream>
    static void run(const BlockRun& at) noexcept {
        for (int64_t k = 0; k < at.num_k; k += kBlockK) {
            const int64_t end = at.num_k - k < kBlockK ? at.num_k : k + kBlockK;
            int32_t c[kPanel] = {};
            for (int64_t i = k; i < end; i += 4) {
                const int8_t* a = at.codes + i / 64 * kTileRows * 64 + i % 64;
                const auto* row =
                    reinterpret_cast<const int8_t*>(at.weights) + i / 64 * kStepBytes + i % 64 * 16;
                for (int j = 0; j < kPanel; ++j) {
                    const int8_t* w = row + j / 16 * kHalfBytes + j % 16 * 4;
                    c[j] += w[0] * a[0] + w[1] * a[1] + w[2] * a[2] + w[3] * a[3];
                }
            }
            for (int j = 0; j < kPanel; ++j)
                at.sums[j] =
                    __builtin_fmaf(static_cast<float>(c[j]), at.scales[k / kBlockK * 16], at.sums[j]);
        }
    }
#endif
};

}  // namespace

void linear_int8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    run_integer<Int8>(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
