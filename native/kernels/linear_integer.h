// What the INT linears share: where things lie, the outer loops, the last step.
//
//     for each block b of 128 k, ascending (the last may hold 64):
//         c = sum over k of a[t, k] * w[n, k]                 int32, exact, per group of K
//         int8:  v = f32(c)
//         int4:  v = f32(c_0) * s_0, then v = fma(f32(c_g), s_g, v) for the groups of b, ascending
//         acc = fma(v, a_scale[t, b], acc)                    from +0
//     y[t, n] = acc (int8: * scale[n])  (+ bias[n])  (addend[t, n] + that)
//
// A format brings accumulate(IntegerWork): blocks onto fp32 sums. Sums wait as fp32 in scratch, which changes
// no bit, so the order of panels, rows and chunks of K is about speed alone.
#pragma once
#include "kernels/linear_out.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kBlockK = 128;

struct IntegerWork {
    const PackedWeight& w;
    const Operand& a;
    int64_t first_row, rows;  // first_row is a multiple of 16
    const std::byte* panel;
    int64_t first_block, end_block;
    float* sums;         // [rows][32], added onto
    std::byte* scratch;  // what is left of it, 64-byte aligned

    // Of the tile with row `row` (counted from first_row) and its lane: the arrays are [block][16 rows].
    const int8_t* codes(int64_t row, int64_t block) const {
        const int64_t at = first_row + row, steps = a.k_padded / 64;
        return static_cast<const int8_t*>(a.data) + ((at / 16 * steps + block * 2) * 16 + at % 16) * 64;
    }
    const float* scales(int64_t row, int64_t block) const {
        const int64_t at = first_row + row, blocks = (a.k_padded + kBlockK - 1) / kBlockK;
        return a.scale + (at / 16 * blocks + block) * 16 + at % 16;
    }
    const int32_t* code_sums(int64_t row, int64_t block) const {
        const int64_t at = first_row + row, thirty_twos = a.k_padded / 32;
        return a.sum + (at / 16 * thirty_twos + block * 4) * 16 + at % 16;
    }
    int64_t block_k(int64_t block) const {
        const int64_t left = a.k_padded - block * kBlockK;
        return left < kBlockK ? left : kBlockK;
    }
};

// Kernel brings accumulate(IntegerWork) and kRowGroup: rows that meet a panel before the next one does.
template <class Kernel>
PENSTOCK_INLINE void run_integer(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) {
    float* const sums = reinterpret_cast<float*>(scratch);
    float* const halves = sums + Kernel::kRowGroup * kPanel;
    std::byte* const rest = reinterpret_cast<std::byte*>(halves + Kernel::kRowGroup * kPanel);
    const int64_t blocks = (w.k_padded + kBlockK - 1) / kBlockK;
    for (int64_t row = 0; row < rows; row += Kernel::kRowGroup) {
        const int64_t left = rows - row, count = left < Kernel::kRowGroup ? left : Kernel::kRowGroup;
        const int64_t floats = count * kPanel;
        for (int64_t p = panel_begin; p < panel_end; ++p) {
            const std::byte* const panel = w.data + p * w.panel_bytes;
            std::memset(sums, 0, static_cast<std::size_t>(floats) * 4);
            IntegerWork work{w, a, row, count, panel, 0, blocks, sums, rest};
            if (g_break_invariance == 1 && rows > 1) {  // two halves of K, added at the end
                work.end_block = blocks / 2;
                Kernel::accumulate(work);
                std::memcpy(halves, sums, static_cast<std::size_t>(floats) * 4);
                std::memset(sums, 0, static_cast<std::size_t>(floats) * 4);
                work.first_block = blocks / 2;
                work.end_block = blocks;
                Kernel::accumulate(work);
                for (int64_t i = 0; i < floats; i += kLanes)
                    store(sums + i, load(halves + i) + load(sums + i));
            } else {
                Kernel::accumulate(work);
            }
            if (w.format == Format::kInt8) {
                const auto* scales = reinterpret_cast<const float*>(panel + w.k_padded * kPanel);
                for (int64_t i = 0; i < floats; i += kLanes)
                    store(sums + i, load(sums + i) * load(scales + i % kPanel));
            }
            write_rows(sums, count, w.n, p * kPanel, out, row);
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
