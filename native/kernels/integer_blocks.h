// Rows in register blocks, K in blocks of 128: the inner loops' driver for the INT linears without tiles.
//
// Few rows (one register block): every weight is read once, strictly in the order it lies in, because
// hardware prefetchers follow that and little else (Zen 4: 33 GB/s; 12 where the panel's two halves
// alternate). More rows: a chunk of 512 K of one panel (16 KB of int8) meets all rows while the next chunk is
// on its way to L2.
#pragma once
#include "kernels/linear_integer.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kChunkBlocks = 4;
// R rows of one tile x 32 columns over `num_k` k (a multiple of 64), onto sums[R][32].
struct BlockRun {
    const std::byte* weights;
    const int8_t* codes;       // [num_k / 64][16 rows][64]; the first row
    const float* scales;       // [blocks][16]; the first row
    const int32_t* code_sums;  // [num_k / 32][16]; row 0 of the tile
    int64_t lane;              // of the first row in the tile
    float* sums;
    int64_t num_k;
    const std::byte* ahead;  // weights that will be wanted: this many lines of 64 bytes per 64 k
    int64_t ahead_lines;
};

// Kernel brings block_bytes(w) and run<R, kStream>(const BlockRun&): kStream for up to kStreamRows rows and
// weights that come from memory, else up to kBlockRows rows and weights from a cache.
template <class Kernel>
struct BlockDriver {
    static constexpr int64_t kRowGroup = 128;  // their codes stay in L2 from panel to panel
    using Run = void(const BlockRun&) noexcept;

    template <int R, bool kStream>
    static Run* run_of(int64_t rows) {
        if constexpr (R == 0) {
            return nullptr;
        } else {
            return rows == R ? &Kernel::template run<R, kStream> : run_of<R - 1, kStream>(rows);
        }
    }

    static BlockRun run_at(const IntegerWork& work, int64_t row, int64_t block, int64_t blocks) {
        const int64_t lane = row % kTileRows;
        int64_t num_k = blocks * kBlockK;
        if (num_k > work.a.k_padded - block * kBlockK) num_k = work.a.k_padded - block * kBlockK;
        return {work.panel + block * Kernel::block_bytes(work.w),
                work.codes(row, block),
                work.scales(row, block),
                work.code_sums(row - lane, block),
                lane,
                work.sums + row * kPanel,
                num_k,
                nullptr,
                0};
    }

    static void accumulate(const IntegerWork& work) {
        if (work.rows <= Kernel::kStreamRows) {
            run_of<Kernel::kStreamRows, true>(work.rows)(
                run_at(work, 0, work.first_block, work.end_block - work.first_block));
            return;
        }
        const int64_t chunk_lines = kChunkBlocks * Kernel::block_bytes(work.w) / 64;
        const int64_t runs = (work.rows + Kernel::kBlockRows - 1) / Kernel::kBlockRows;
        const int64_t lines = (chunk_lines + runs * kChunkBlocks * 2 - 1) / (runs * kChunkBlocks * 2);
        for (int64_t b = work.first_block; b < work.end_block; b += kChunkBlocks) {
            const int64_t left = work.end_block - b, blocks = left < kChunkBlocks ? left : kChunkBlocks;
            const std::byte* ahead = work.panel + b * Kernel::block_bytes(work.w) + chunk_lines * 64;
            for (int64_t tile = 0; tile < work.rows; tile += kTileRows) {
                const int64_t count = work.rows - tile < kTileRows ? work.rows - tile : kTileRows;
                const int64_t parts = (count + Kernel::kBlockRows - 1) / Kernel::kBlockRows;
                for (int64_t part = 0; part < parts; ++part) {
                    const int64_t begin = count * part / parts, end = count * (part + 1) / parts;
                    BlockRun run = run_at(work, tile + begin, b, blocks);
                    run.ahead = ahead;
                    run.ahead_lines = lines;
                    run_of<Kernel::kBlockRows, false>(end - begin)(run);
                    ahead += lines * 64 * (run.num_k / 64);
                }
            }
        }
    }
};

// Before step `step` of 64 k, whose codes these are: weights on their way to L2, and the codes of the step
// after the next to L1: rows lie in pieces of 64 bytes a step, and no hardware prefetcher follows those.
template <int R>
PENSTOCK_INLINE void prefetch_lines(const BlockRun& at, int64_t step, const int8_t* codes) {
    const std::byte* line = at.ahead + step * at.ahead_lines * 64;
    for (int64_t i = 0; i < at.ahead_lines; ++i) __builtin_prefetch(line + i * 64, 0, 2);
    for (int m = 0; m < R; ++m) __builtin_prefetch(codes + (2 * kTileRows + m) * 64);
}

// The sums of `parts` times 32 of K, for all 16 rows of a tile.
PENSTOCK_INLINE I16 add_sums(const int32_t* code_sums, int64_t parts) {
    U16 total{}, part;  // unsigned: lanes of rows that nobody wrote may overflow
    for (int64_t i = 0; i < parts; ++i) {
        std::memcpy(&part, code_sums + i * kTileRows, 64);
        total += part;
    }
    return reinterpret_cast<I16>(total);
}

#if defined(__AVX512F__)
// -kBias * the sum of the codes of `parts` times 32 of K, for all 16 rows of a tile.
template <int kBias>
PENSTOCK_INLINE void start_values(const int32_t* code_sums, int64_t parts, int32_t* start) {
    const U16 total =
        (U16{} - reinterpret_cast<U16>(add_sums(code_sums, parts))) * static_cast<uint32_t>(kBias);
    std::memcpy(start, &total, 64);
}
// The same of each 16 of K, of which nobody has the sums: from R rows' codes, start[group][lane + row].
template <int kBias, int R>
PENSTOCK_INLINE void start_sixteens(const int8_t* codes, int64_t lane, int64_t steps,
                                    int32_t (*start)[kTileRows]) {
    const __m512i bias = _mm512_set1_epi8(static_cast<char>(kBias));
    for (int64_t step = 0; step < steps; ++step)
        for (int m = 0; m < R; ++m) {
            const __m512i row = _mm512_loadu_si512(codes + (step * kTileRows + m) * 64);
            __m512i four = _mm512_dpbusd_epi32(_mm512_setzero_si512(), bias, row);
            four = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_CDAB));
            four = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_BADC));
            int32_t total[kTileRows];
            std::memcpy(total, &four, 64);
            for (int g = 0; g < 4; ++g) start[4 * step + g][lane + m] = -total[4 * g];
        }
}
PENSTOCK_INLINE __m512i four_codes(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm512_set1_epi32(four);
}
// The same pointer, as far as the compiler knows another one: else it keeps every broadcast of the panel's
// first half for the second, on the stack, where a load would do.
PENSTOCK_INLINE const int8_t* reload(const int8_t* codes) {
    asm volatile("" : "+r"(codes));
    return codes;
}
#elif defined(__AVX2__)
PENSTOCK_INLINE __m256i four_codes(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, 4);
    return _mm256_set1_epi32(four);
}
#endif

}  // namespace penstock::PENSTOCK_ISA
