// What the INT linears share: where things lie, the outer loops, the last step.
//
//     for each block b of 128 k, ascending (the last may hold 64):
//         c_g = sum over the k of group g of a[t, k] * code[n, k]        int32, exact
//         v = f32(c_0) * scale[n, 0], then v = fma(f32(c_g), scale[n, g], v) for the groups of b, ascending
//         where codes have offsets, after each of those: v = fma(f32(x_g), offset[n, g], v)
//                                                x_g: the sum of a[t, k] over the same k, int32
//         one scale for all of K: v = f32(c)
//         acc = fma(v, a_scale[t, b], acc)                    from +0
//     y[t, n] = acc (one scale for all of K: * scale[n])  (+ bias[n])  (addend[t, n] + that)
//
// All of these f32() are exact: |c| <= 128 * 128 * 127 < 2^24. The x_g are what the quantizer of a row has
// added up, 32 by 32 (Operand::sum), so a zero point or a minimum costs one FMA for a group.
//
// A format brings accumulate(IntegerWork): blocks onto fp32 sums. Sums wait as fp32 in scratch, which changes
// no bit, so the order of panels, rows and chunks of K is about speed alone.
#pragma once
#include "kernels/codes.h"
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

// Calls run.operator()<F>() for the format `f`, one of 4-bit codes, or of 8-bit codes.
template <class Run>
PENSTOCK_INLINE void with_int4(Format f, const Run& run) {
    switch (f) {
        case Format::kInt4G32:
            return run.template operator()<Format::kInt4G32>();
        case Format::kInt4G64:
            return run.template operator()<Format::kInt4G64>();
        case Format::kInt4G32Zero:
            return run.template operator()<Format::kInt4G32Zero>();
        case Format::kInt4G64Zero:
            return run.template operator()<Format::kInt4G64Zero>();
        case Format::kInt4G128Zero:
            return run.template operator()<Format::kInt4G128Zero>();
        case Format::kInt4G32Min:
            return run.template operator()<Format::kInt4G32Min>();
        case Format::kInt4Super:
            return run.template operator()<Format::kInt4Super>();
        default:
            return run.template operator()<Format::kInt4G128>();
    }
}
template <class Run>
PENSTOCK_INLINE void with_int8(Format f, const Run& run) {
    switch (f) {
        case Format::kInt8G32:
            return run.template operator()<Format::kInt8G32>();
        case Format::kInt8G64:
            return run.template operator()<Format::kInt8G64>();
        case Format::kInt8G128:
            return run.template operator()<Format::kInt8G128>();
        case Format::kInt8G32Zero:
            return run.template operator()<Format::kInt8G32Zero>();
        case Format::kInt8G64Zero:
            return run.template operator()<Format::kInt8G64Zero>();
        case Format::kInt8G128Zero:
            return run.template operator()<Format::kInt8G128Zero>();
        case Format::kInt8G32Min:
            return run.template operator()<Format::kInt8G32Min>();
        case Format::kInt8Super:
            return run.template operator()<Format::kInt8Super>();
        case Format::kInt8Super16:
            return run.template operator()<Format::kInt8Super16>();
        default:
            return run.template operator()<Format::kInt8>();
    }
}

// A group's exact sums of sixteen columns onto v; `x`: what the offsets are multiplied by.
template <Trailer T>
PENSTOCK_INLINE F16 add_group(F16 v, I16 c, F16 scale, F16 offset, float x, bool is_first) {
    const F16 f = to_float(c);
    if constexpr (T == Trailer::kChannel) return f;
    v = is_first ? f * scale : fma(f, scale, v);
    if constexpr (has_offset(T)) v = fma(set1(x), offset, v);
    return v;
}

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
