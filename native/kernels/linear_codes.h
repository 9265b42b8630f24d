// y = W x on integer codes under the BF16 contract: W = scale * code + offset per column and group of K.
//
//     for each group of K, ascending:
//         s = +0; for each 32 k of it, ascending:                  (groups of 16: each 16)
//             e, o = the even and the odd chain of linear_bfloat16.cpp over x[t, k] * code[n, k]
//             s = s + (e + o)                                      codes are exact in bf16
//         acc = fma(s, scale[n, group], acc)                       acc from +0
//         with offsets: acc = fma(x, offset[n, group], acc)        x: as s, every code being 1
//     one scale for all of K: acc = acc + (e + o), in the end acc * scale[n]
//     y[t, n] = acc
//
// So a group is one accumulator tile of TDPBF16PS, from zero. Cost: 0.5 or 1 byte of weights and a share of
// the trailer; 2 operations. Memory-bound up to two rows.
#pragma once
#include "kernels/code_lines.h"
#include "kernels/code_sums.h"

namespace penstock::PENSTOCK_ISA {

// kStepK: k of a pair of chains, 32 or 16. kIsLong: a group is several of them.
template <class Line, int kStepK, bool kIsLong>
struct CodesKernel : CodePanels {
    using Sums = CodeSums<kStepK, kIsLong>;
    using Place = typename Sums::Place;
    static constexpr int kBits = Line::kBits;
    static constexpr int64_t kChunk = 512;
    static constexpr int64_t kTileBytes = kBits * 128, kStepBytes = 2 * kTileBytes;  // of 64 k
#if defined(__AVX512F__)
    static constexpr int kMaxRows = 8, kTogether = 5;  // rows whose low and high nibbles go together
#elif defined(__AVX2__)
    static constexpr int kMaxRows = 4, kTogether = 1;
#else
    static constexpr int kMaxRows = 2, kTogether = 1;
#endif

    using CodePanels::CodePanels;
    void copy_rows(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k, float* out,
                   float* row_sums) const {
        copy_bfloat16_rows<kChunk>(a, row, count, k, num_k, out);
        if (!has_offset(coding)) return;
        for (int64_t i = 0; i < num_k; i += 32)
            for (int64_t r = 0; r < count; ++r) {
                const float* x = out + (i / kChunk * kChunk * count + r * kChunk + i % kChunk);
                float even = 0.0f, odd = 0.0f;
                for (int j = 0; j < 32; j += 2) {
                    even += x[j];
                    odd += x[j + 1];
                }
                row_sums[i / 32 * count + r] = even + odd;
            }
        add_up(k, num_k, count, row_sums);
    }

    template <int R, int i>
    PENSTOCK_INLINE void multiply(const Lanes& w, const float* x, Lanes (&even)[R], Lanes (&odd)[R]) {
        for (int r = 0; r < R; ++r) {
            Lanes& acc = i % 2 ? odd[r] : even[r];
            acc = lanes_fma(lanes_set1(x + r * kChunk), w, acc);
        }
    }

    // 64 k of kWidth columns, 4-bit codes: low nibbles are the first 32.
    template <int R, int kLocality>
    PENSTOCK_INLINE void step4(const Place& at, int64_t step, const std::byte* lines, Line& line,
                               const std::byte*& ahead) {
        constexpr int kPasses = R <= kTogether ? 1 : 2;
        const float* const x = at.args.rows + at.k + step * 64;
        Lanes even[2][R], odd[2][R];
        for (int half = 0; half < 2; ++half)
            for (int r = 0; r < R; ++r) even[half][r] = odd[half][r] = lanes_zero();
        for (int pass = 0; pass < kPasses; ++pass) {
            const bool low = kPasses == 1 || pass == 0, high = kPasses == 1 || pass == 1;
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                if (low && at.column % 16 == 0)
                    __builtin_prefetch(ahead, 0, kLocality), ahead += at.args.ahead_step;
                Line::read(line, lines + i * 64);
                if (low) {
                    multiply<R, 0>(Line::template code<0>(line), x + 4 * i, even[0], odd[0]);
                    multiply<R, 1>(Line::template code<2>(line), x + 4 * i + 1, even[0], odd[0]);
                    multiply<R, 0>(Line::template code<4>(line), x + 4 * i + 2, even[0], odd[0]);
                    multiply<R, 1>(Line::template code<6>(line), x + 4 * i + 3, even[0], odd[0]);
                }
                if (high) {
                    const float* y = x + 32 + 4 * i;
                    multiply<R, 0>(Line::template code<1>(line), y, even[1], odd[1]);
                    multiply<R, 1>(Line::template code<3>(line), y + 1, even[1], odd[1]);
                    multiply<R, 0>(Line::template code<5>(line), y + 2, even[1], odd[1]);
                    multiply<R, 1>(Line::template code<7>(line), y + 3, even[1], odd[1]);
                }
            }
            if (low) Sums::template add<R>(at, step * 64, even[0], odd[0]);
            if (high) Sums::template add<R>(at, step * 64 + 32, even[1], odd[1]);
        }
    }

    // 64 k of kWidth columns, 8-bit codes.
    template <int R, int kLocality>
    PENSTOCK_INLINE void step8(const Place& at, int64_t step, const std::byte* lines, Line& line,
                               const std::byte*& ahead) {
        for (int part = 0; part < 64; part += kStepK) {
            const float* const x = at.args.rows + at.k + step * 64 + part;
            Lanes even[R], odd[R];
            for (int r = 0; r < R; ++r) even[r] = odd[r] = lanes_zero();
#pragma GCC unroll 8
            for (int i = 0; i < kStepK / 4; ++i) {
                if (at.column % 16 == 0) __builtin_prefetch(ahead, 0, kLocality), ahead += at.args.ahead_step;
                Line::read(line, lines + (part / 4 + i) * 64);
                multiply<R, 0>(Line::template code<0>(line), x + 4 * i, even, odd);
                multiply<R, 1>(Line::template code<1>(line), x + 4 * i + 1, even, odd);
                multiply<R, 0>(Line::template code<2>(line), x + 4 * i + 2, even, odd);
                multiply<R, 1>(Line::template code<3>(line), x + 4 * i + 3, even, odd);
            }
            Sums::template add<R>(at, step * 64 + part, even, odd);
        }
    }

    template <int R, bool kIsLone>
    static void block(const BlockArgs& args) noexcept {
        constexpr int kLocality = locality<kIsLone>();
        const Coding coding = args.coding;
        Line line(coding.bias);
        GroupScales scales;
        alignas(64) float parts[R][kPanel] = {};
        const std::byte *weights = args.weights, *ahead = args.ahead;
        for (int64_t k = 0; k < args.num_k; k += kSuperblockK) {
            const int64_t length = args.num_k - k < kSuperblockK ? args.num_k - k : kSuperblockK;
            const std::byte* const trailer = weights + length * 4 * kBits;
            read_trailer(coding, trailer, length, scales);
            for (int64_t step = 0; step < length / 64; ++step)
                for (int64_t column = 0; column < kPanel; column += kWidth) {
                    const Place at{args, scales, k, length, column, parts};
                    const std::byte* const lines =
                        weights + step * kStepBytes + column / 16 * kTileBytes + column % 16 * 4;
                    if constexpr (kBits == 4) {
                        step4<R, kLocality>(at, step, lines, line, ahead);
                    } else {
                        step8<R, kLocality>(at, step, lines, line, ahead);
                    }
                }
            const int64_t bytes = trailer_bytes(coding, length);
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i, 0, kLocality);
            ahead += bytes / 64 * args.ahead_step;
            weights = trailer + bytes;
        }
    }
};

}  // namespace penstock::PENSTOCK_ISA
