// y = W x under the FP32 contract, for fp32 weights and for fp16 weights widened exactly in the kernel.
//
//     acc = +0; for k ascending: acc = fma(x[t, k], w[n, k], acc)       one rounding each, FTZ and DAZ
//     y[t, n] = acc
//
// One accumulator per output and columns in lanes: no reduction over lanes. Rows and vectors in flight hide
// the latency. Cost: 4*N*K (fp16: 2*N*K) bytes of weights, 2*T*N*K operations.
#include "kernels/linear_float.h"

namespace penstock::PENSTOCK_ISA {
namespace {

struct WeightFloat32 {
    static constexpr int64_t kBytes = 4;
    PENSTOCK_INLINE Lanes load_lanes(const std::byte* p) {
        return lanes_load(reinterpret_cast<const float*>(p));
    }
};
struct WeightFloat16 {
    static constexpr int64_t kBytes = 2;
    PENSTOCK_INLINE Lanes load_lanes(const std::byte* p) { return lanes_fp16(p); }
};

template <class Weight>
struct Float32Kernel {
    static constexpr int64_t kBytesPerK = kPanel * Weight::kBytes, kAlign = 32;
    static constexpr int64_t kChunk = kChunkBytes / kBytesPerK;
#if defined(__AVX512F__)
    static constexpr int kMaxRows = 12;  // 24 sums, 2 weights
#elif defined(__AVX2__)
    static constexpr int kMaxRows = 6;  // 12 sums, 2 weights
#else
    static constexpr int kMaxRows = 4;
#endif

    explicit Float32Kernel(const PackedWeight&) {}
    static int64_t bytes(int64_t k) { return k * kBytesPerK; }
    static bool is_busy(int64_t num_rows) { return num_rows * 128 > 4 * kBytesPerK; }
    static void finish(const std::byte*, float*, int64_t) {}

    // Rows [row, row + count) of k [k, k + num_k) as [num_k / kChunk][count][kChunk]: no stride of a power of
    // two.
    static void copy_rows(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k, float* out,
                          float*) {
        for (int64_t r = 0; r < count; ++r) {
            const float* from = static_cast<const float*>(a.data) + (row + r) * a.k_padded + k;
            for (int64_t i = 0; i < num_k; i += kLanes)
                store(out + (i / kChunk * kChunk * count + r * kChunk + i % kChunk), load(from + i));
        }
    }

    template <int R, bool kIsLone>
    static void block(const BlockArgs& args) noexcept {
        constexpr int kLocality = locality<kIsLone>();
        constexpr int kVectors = R <= 2 || kWidth == 16 ? kPanel / kWidth : 2;
        constexpr int64_t kColumns = kVectors * kWidth;
        const std::byte* ahead = args.ahead;
        for (int64_t column = 0; column < kPanel; column += kColumns) {
            const std::byte* weights = args.weights + column * Weight::kBytes;
            const float* rows = args.rows;
            Lanes acc[R][kVectors];
            for (int r = 0; r < R; ++r)
                for (int v = 0; v < kVectors; ++v)
                    acc[r][v] = lanes_load(args.sums + r * kPanel + column + v * kWidth);
            for (int64_t k = 0; k < args.num_k; ++k, weights += kBytesPerK, ++rows) {
                for (int64_t byte = 0; byte < kColumns * Weight::kBytes; byte += 64)
                    if (R > 1) __builtin_prefetch(ahead, 0, kLocality), ahead += args.ahead_step;
                Lanes w[kVectors];
                for (int v = 0; v < kVectors; ++v)
                    w[v] = Weight::load_lanes(weights + v * kWidth * Weight::kBytes);
                for (int r = 0; r < R; ++r) {
                    const Lanes x = lanes_set1(rows + r * kChunk);
                    for (int v = 0; v < kVectors; ++v) acc[r][v] = lanes_fma(x, w[v], acc[r][v]);
                }
            }
            for (int r = 0; r < R; ++r)
                for (int v = 0; v < kVectors; ++v)
                    lanes_store(args.sums + r * kPanel + column + v * kWidth, acc[r][v]);
        }
    }
};

}  // namespace

void linear_float32(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                    int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    LinearFloat<Float32Kernel<WeightFloat32>>::run(w, a, rows, out, panel_begin, panel_end, scratch);
}

void linear_float16(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                    int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    LinearFloat<Float32Kernel<WeightFloat16>>::run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
