// Rows in register blocks, K in blocks of 128: the inner loops' driver for the INT linears without tiles.
//
// Few rows (one register block): four panels take turns block by block, so that DRAM sees four streams, and
// every weight is read once. More rows: a chunk of 512 K of one panel (16 KB of int8: L1) meets all rows
// before the next chunk is read.
#pragma once
#include "kernels/linear_integer.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kChunkBlocks = 4;
constexpr int64_t kAheadBytes = 4096;  // prefetch distance within a panel's stream

// R rows of one tile x 32 columns over `num_k` k (a multiple of 64), onto sums[R][32].
struct BlockRun {
    const std::byte* weights;
    const int8_t* codes;       // [num_k / 64][16 rows][64]; the first row
    const float* scales;       // [blocks][16]; the first row
    const int32_t* code_sums;  // [num_k / 32][16]; row 0 of the tile
    int64_t lane;              // of the first row in the tile
    float* sums;
    int64_t num_k;
};

// Kernel brings kMaxRows, block_bytes(w) and run<R, kAhead>(const BlockRun&); kAhead: prefetch what comes
// later.
template <class Kernel>
struct BlockDriver {
    using Run = void(const BlockRun&) noexcept;

    template <int R, bool kAhead>
    static Run* run_of(int64_t rows) {
        if constexpr (R == 0) {
            return nullptr;
        } else {
            return rows == R ? &Kernel::template run<R, kAhead> : run_of<R - 1, kAhead>(rows);
        }
    }

    static BlockRun run_at(const IntegerWork& work, int64_t panel, int64_t row, int64_t block,
                           int64_t blocks) {
        const int64_t lane = row % kTileRows;
        int64_t num_k = blocks * kBlockK;
        if (num_k > work.a.k_padded - block * kBlockK) num_k = work.a.k_padded - block * kBlockK;
        return {work.panel(panel) + block * Kernel::block_bytes(work.w),
                work.codes(row, block),
                work.scales(row, block),
                work.code_sums(row - lane, block),
                lane,
                work.sums + (panel * work.rows + row) * kPanel,
                num_k};
    }

    static void accumulate(const IntegerWork& work) {
        if (work.rows <= Kernel::kMaxRows) {
            Run* const run = run_of<Kernel::kMaxRows, true>(work.rows);
            for (int64_t b = work.first_block; b < work.end_block; ++b)
                for (int64_t p = 0; p < work.panels; ++p) run(run_at(work, p, 0, b, 1));
            return;
        }
        for (int64_t p = 0; p < work.panels; ++p)
            for (int64_t b = work.first_block; b < work.end_block; b += kChunkBlocks) {
                const int64_t left = work.end_block - b, blocks = left < kChunkBlocks ? left : kChunkBlocks;
                for (int64_t tile = 0; tile < work.rows; tile += kTileRows) {
                    const int64_t count = work.rows - tile < kTileRows ? work.rows - tile : kTileRows;
                    const int64_t parts = (count + Kernel::kMaxRows - 1) / Kernel::kMaxRows;
                    for (int64_t part = 0; part < parts; ++part) {
                        const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
                        Run* const run = tile + part == 0 ? run_of<Kernel::kMaxRows, true>(end - begin)
                                                          : run_of<Kernel::kMaxRows, false>(end - begin);
                        run(run_at(work, p, tile + begin, b, blocks));
                    }
                }
            }
    }
};

#if defined(__AVX512F__)
// -kBias * the sum of the codes of `groups` times 32 of K, for all 16 rows of a tile.
template <int kBias>
PENSTOCK_INLINE void start_values(const int32_t* code_sums, int64_t groups, int32_t* start) {
    I16 total{}, part;
    for (int64_t i = 0; i < groups; ++i) {
        std::memcpy(&part, code_sums + i * kTileRows, 64);
        total += part;
    }
    total *= -kBias;
    std::memcpy(start, &total, 64);
}
PENSTOCK_INLINE __m512i four_codes(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
PENSTOCK_INLINE F16 exact_float(__m512i c) { return to_float(reinterpret_cast<I16>(c)); }
#endif

}  // namespace penstock::PENSTOCK_ISA
