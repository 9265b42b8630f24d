// y = W x under the BF16 contract: the arithmetic of TDPBF16PS, in fp32 FMAs.
//
//     for each 32 k, ascending:
//         e = +0; for k = 0, 2 .. 30: e = fma(x[t, k], w[n, k], e)      one rounding each, FTZ and DAZ
//         o = +0; for k = 1, 3 .. 31: o = fma(x[t, k], w[n, k], o)
//         acc = acc + (e + o)                                           acc from +0
//     y[t, n] = acc
//
// x and w are bf16, widened exactly. VDPBF16PS rounds otherwise, unless its
// pairs are two k of one chain: avx512bf16/pairs.h does that.
// Cost: 2*N*K bytes of weights, 2*T*N*K operations; memory-bound up to about four rows.
#include "kernels/linear_float.h"

namespace penstock::PENSTOCK_ISA {
namespace {

struct BFloat16Kernel {
    static constexpr int64_t kBytesPerK = 64, kAlign = 32;
    static constexpr int64_t kChunk = kChunkBytes / kBytesPerK;
#if defined(__AVX512F__)
    static constexpr int kMaxRows = 12;  // 24 sums, 2 weights, a mask
#elif defined(__AVX2__)
    static constexpr int kMaxRows = 6;  // 12 sums
#else
    static constexpr int kMaxRows = 4;
#endif

    explicit BFloat16Kernel(const PackedWeight&) {}
    static int64_t bytes(int64_t k) { return k * kBytesPerK; }
    static bool is_busy(int64_t num_rows) { return num_rows > 2; }
    static void copy_rows(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k, float* out,
                          float*) {
        copy_bfloat16_rows<kChunk>(a, row, count, k, num_k, out);
    }
    static void finish(const std::byte*, float*, int64_t) {}

    template <int R, bool kIsLone>
    static void block(const BlockArgs& args) noexcept {
        constexpr int kLocality = locality<kIsLone>();
        constexpr int kVectors = kWidth == 8 && R <= 3 ? 2 : 1;
        constexpr int64_t kColumns = kVectors * kWidth;
        const std::byte* weights = args.weights;
        const std::byte* ahead = args.ahead;
        const float* rows = args.rows;
        for (int64_t k = 0; k < args.num_k; k += 32, weights += 2048, rows += 32) {
            for (int64_t column = 0; column < kPanel; column += kColumns) {
                Lanes even[R][kVectors], odd[R][kVectors];
                for (int r = 0; r < R; ++r)
                    for (int v = 0; v < kVectors; ++v) even[r][v] = odd[r][v] = lanes_zero();
                for (int pair = 0; pair < 16; ++pair) {
                    Lanes w[kVectors];
                    const std::byte* line[kVectors];
                    for (int v = 0; v < kVectors; ++v) {
                        const int64_t at = column + v * kWidth;
                        line[v] = weights + (at / 16 * 1024 + at % 16 * 4) + pair * 64;
                        if (2 * R > 4 && at % 16 == 0)
                            __builtin_prefetch(ahead, 0, kLocality), ahead += args.ahead_step;
                        w[v] = lanes_even(line[v]);
                    }
                    for (int r = 0; r < R; ++r) {
                        const Lanes x = lanes_set1(rows + r * kChunk + 2 * pair);
                        for (int v = 0; v < kVectors; ++v) even[r][v] = lanes_fma(x, w[v], even[r][v]);
                    }
                    for (int v = 0; v < kVectors; ++v) w[v] = lanes_odd(line[v]);
                    for (int r = 0; r < R; ++r) {
                        const Lanes x = lanes_set1(rows + r * kChunk + 2 * pair + 1);
                        for (int v = 0; v < kVectors; ++v) odd[r][v] = lanes_fma(x, w[v], odd[r][v]);
                    }
                }
                for (int r = 0; r < R; ++r)
                    for (int v = 0; v < kVectors; ++v) {
                        float* sum = args.sums + r * kPanel + column + v * kWidth;
                        lanes_store(sum, lanes_add(lanes_load(sum), lanes_add(even[r][v], odd[r][v])));
                    }
            }
        }
    }
};

}  // namespace

void linear_bfloat16(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                     int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    LinearFloat<BFloat16Kernel>::run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
