// Products under the BF16 contract with half the instructions: VDPBF16PS, fed with two k of one chain.
//
// The instruction adds the product of the high halves, then that of the low halves, one rounding each, FTZ
// and DAZ: two steps of one chain, where both halves belong to it. TDPBF16PS keeps a chain of the even k and
// one of the odd k, so a register here holds k in the high half and k + 2 in the low half: of weights two
// lines are blended, of activations a row is permuted as it is copied. Fed with k and k + 1, as it was meant,
// it would mix the chains and round otherwise. The start-up self-test compares it with plain FMAs
// (self_test.h). ADR 6 tells why this is trusted.
#pragma once
#include <utility>

#include "kernels/linear_float.h"

namespace penstock::PENSTOCK_ISA {

// 32 k x 16 columns as pairs: lines of 64 bytes (0, 2), (1, 3), (4, 6), (5, 7) ...; `second` follows `first`.
constexpr int64_t kPairTileBytes = 1024;

// Pairs (k, k + 2) and (k + 1, k + 3) of two lines as stored: (k, k + 1) and (k + 2, k + 3), low half first.
PENSTOCK_INLINE __m512i even_pairs(__m512i first, __m512i second) {
    return _mm512_mask_blend_epi16(0x55555555U, _mm512_slli_epi32(first, 16), second);
}
PENSTOCK_INLINE __m512i odd_pairs(__m512i first, __m512i second) {
    return _mm512_mask_blend_epi16(0x55555555U, first, _mm512_srli_epi32(second, 16));
}

// sum + w * the pair `kAt` floats after `rows`, in every lane. As text, because a compiler loads the pair
// into a register of its own, and with the offset written out, because otherwise it keeps an address for
// every row and pair.
template <int kAt, int kFloats>
PENSTOCK_INLINE void add_pair(__m512& sum, const float* rows, __m512i w) {
    __asm__("vdpbf16ps %c3(%2)%{1to16%}, %1, %0"
            : "+v"(sum)
            : "v"(w), "r"(rows), "i"(kAt * 4), "m"(*reinterpret_cast<const float(*)[kFloats]>(rows)));
}
template <int kRowChunk, int kAt, int R, std::size_t... r>
PENSTOCK_INLINE void add_pairs(__m512 (&sums)[R], const float* rows, __m512i w, std::index_sequence<r...>) {
    (add_pair<static_cast<int>(r) * kRowChunk + kAt, R * kRowChunk>(sums[r], rows, w), ...);
}

// Rows [row, row + count) of k [k, k + num_k) of a bf16 operand as [num_k / kChunk][count][kChunk / 2] pairs
// in the order of a tile's lines.
template <int64_t kChunk>
PENSTOCK_INLINE void copy_pairs(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k,
                                float* out) {
    alignas(64) static constexpr uint16_t kOrder[32] = {2,  0,  3,  1,  6,  4,  7,  5,  10, 8,  11,
                                                        9,  14, 12, 15, 13, 18, 16, 19, 17, 22, 20,
                                                        23, 21, 26, 24, 27, 25, 30, 28, 31, 29};
    const __m512i order = _mm512_load_si512(kOrder);
    for (int64_t i = 0; i < num_k; i += 32)  // sixteen rows lie side by side
        for (int64_t r = 0; r < count; ++r) {
            float* to = out + (i / kChunk * count + r) * (kChunk / 2) + i % kChunk / 2;
            const __m512i from = _mm512_loadu_si512(bfloat16_row(a, row + r, k + i));
            _mm512_storeu_si512(to, _mm512_permutexvar_epi16(order, from));
        }
}

// Both chains of R rows x 16 columns by two steps; `next` gives the pairs of weights, even and odd.
template <int R, int kRowChunk, int kPair, class Next>
PENSTOCK_INLINE void multiply_pair(const float* rows, __m512 (&even)[R], __m512 (&odd)[R], const Next& next) {
    __m512i w_even, w_odd;
    next(kPair, w_even, w_odd);
    add_pairs<kRowChunk, 2 * kPair>(even, rows, w_even, std::make_index_sequence<R>());
    add_pairs<kRowChunk, 2 * kPair + 1>(odd, rows, w_odd, std::make_index_sequence<R>());
}
template <int R, int kRowChunk, class Next, std::size_t... pair>
PENSTOCK_INLINE void multiply_pairs(const float* rows, __m512 (&even)[R], __m512 (&odd)[R], const Next& next,
                                    std::index_sequence<pair...>) {
    for (int r = 0; r < R; ++r) even[r] = odd[r] = _mm512_setzero_ps();
    (multiply_pair<R, kRowChunk, static_cast<int>(pair)>(rows, even, odd, next), ...);
}

// A block's share of the next chunk, on its way to L2 while tile after tile is multiplied.
class Ahead {
  public:
    explicit Ahead(const BlockArgs& args)
        : at_(args.ahead), bytes_(args.ahead_bytes), num_tiles_(args.num_k / 32 * 2) {}
    PENSTOCK_INLINE void prefetch(Ahead& self) {
        const int64_t end = self.bytes_ * ++self.tile_ / self.num_tiles_;
        for (; self.done_ < end; self.done_ += 64) __builtin_prefetch(self.at_ + self.done_, 0, 2);
    }

  private:
    const std::byte* at_;
    int64_t bytes_, num_tiles_, tile_ = 0, done_ = 0;
};

// The same of a tile that lies there as pairs.
template <int R, int kPairs, int kRowChunk>
PENSTOCK_INLINE void multiply_tile(const std::byte* tile, const float* rows, __m512 (&even)[R],
                                   __m512 (&odd)[R]) {
    const auto next = [&](int pair, __m512i& w_even, __m512i& w_odd) {
        w_even = _mm512_loadu_si512(tile + pair * 128);
        w_odd = _mm512_loadu_si512(tile + pair * 128 + 64);
    };
    multiply_pairs<R, kRowChunk>(rows, even, odd, next, std::make_index_sequence<kPairs>());
}

}  // namespace penstock::PENSTOCK_ISA
