// y = W x under the BF16 contract (kernels/linear_bfloat16.cpp) with half the instructions: VDPBF16PS.
//
// The instruction adds the product of the high halves, then that of the low halves, one rounding each, FTZ
// and DAZ: two steps of one chain, where both halves belong to it. TDPBF16PS keeps a chain of the even k and
// one of the odd k, so a register here holds k in the high half and k + 2 in the low half: of weights two
// lines are blended, of activations a row is permuted as it is copied. Fed with k and k + 1, as it was meant,
// it would mix the chains and round otherwise. The start-up self-test compares it with plain FMAs
// (self_test.h).
#include "kernels/linear_float.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// sum + w * the pair at `x`, in every lane. As text: compilers load the pair into a register of its own.
PENSTOCK_INLINE __m512 add_pairs(__m512 sum, const float* x, __m512i w) {
    __asm__("vdpbf16ps %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(w), "m"(*x));
    return sum;
}

struct PairKernel {
    static constexpr int64_t kBytesPerK = 64, kAlign = 32;
    static constexpr int64_t kChunk = kChunkBytes / kBytesPerK;
    static constexpr int kMaxRows = 12;  // 24 sums, 2 weights

    explicit PairKernel(const PackedWeight&) {}
    static int64_t bytes(int64_t k) { return k * kBytesPerK; }
    static bool is_busy(int64_t num_rows) { return num_rows > 4; }

    // As copy_bfloat16_rows, but 16 pairs for 32 k: (0, 2), (1, 3), (4, 6) ..., the first of each on top.
    static void copy_rows(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k, float* out,
                          float*) {
        alignas(64) static constexpr uint16_t kOrder[32] = {2,  0,  3,  1,  6,  4,  7,  5,  10, 8,  11,
                                                            9,  14, 12, 15, 13, 18, 16, 19, 17, 22, 20,
                                                            23, 21, 26, 24, 27, 25, 30, 28, 31, 29};
        const __m512i order = _mm512_load_si512(kOrder);
        const uint16_t* const data = static_cast<const uint16_t*>(a.data);
        for (int64_t r = 0; r < count; ++r) {
            const int64_t tile = (row + r) / kTileRows * (a.k_padded / 32), line = (row + r) % kTileRows;
            for (int64_t i = 0; i < num_k; i += 32) {
                const uint16_t* from = data + ((tile + (k + i) / 32) * kTileRows + line) * 32;
                float* to = out + (i / kChunk * kChunk * count + r * kChunk + i % kChunk / 2);
                _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, _mm512_loadu_si512(from)));
            }
        }
    }
    static void finish(const std::byte*, float*, int64_t) {}

    template <int R, int kLocality>
    static void block(const BlockArgs& args) noexcept {
        const std::byte* weights = args.weights;
        const std::byte* ahead = args.ahead;
        const float* rows = args.rows;
        for (int64_t k = 0; k < args.num_k; k += 32, weights += 2048, rows += 16) {
            for (int64_t half = 0; half < 2; ++half) {
                const std::byte* line = weights + half * 1024;
                __m512 even[R], odd[R];
                for (int r = 0; r < R; ++r) even[r] = odd[r] = _mm512_setzero_ps();
                for (int pair = 0; pair < 16; pair += 2, line += 128) {
                    if (R > 4 && kLocality == 2) {
                        __builtin_prefetch(ahead, 0, kLocality), ahead += args.ahead_step;
                        __builtin_prefetch(ahead, 0, kLocality), ahead += args.ahead_step;
                    }
                    const __m512i first = _mm512_loadu_si512(line), second = _mm512_loadu_si512(line + 64);
                    const __m512i w_even =
                        _mm512_mask_blend_epi16(0x55555555U, _mm512_slli_epi32(first, 16), second);
                    const __m512i w_odd =
                        _mm512_mask_blend_epi16(0x55555555U, first, _mm512_srli_epi32(second, 16));
                    for (int r = 0; r < R; ++r)
                        even[r] = add_pairs(even[r], rows + r * kChunk + pair, w_even);
                    for (int r = 0; r < R; ++r)
                        odd[r] = add_pairs(odd[r], rows + r * kChunk + pair + 1, w_odd);
                }
                for (int r = 0; r < R; ++r) {
                    float* sum = args.sums + r * kPanel + half * kLanes;
                    _mm512_storeu_ps(sum,
                                     _mm512_add_ps(_mm512_loadu_ps(sum), _mm512_add_ps(even[r], odd[r])));
                }
            }
        }
    }
};

}  // namespace

void linear_bfloat16(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                     int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    LinearFloat<PairKernel>::run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
