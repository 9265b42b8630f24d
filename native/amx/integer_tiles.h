// The INT linears on tiles: TDPBSSD over one group of K at a time, then the fp32 steps of linear_integer.h in
// the same order, so the bits are those of VNNI.
//
// A chunk of 512 K of one panel, as signed bytes (16 KB: L1), meets the rows in pairs of tiles:
//
//     tmm4, tmm5: A, 16 rows x 64 k each    tmm6, tmm7: B, 64 k x 16 columns each    tmm0 .. tmm3: C, 2 x 2
//
// A unit is one group of one pair. Its C goes to one of two buffers; the fp32 work of the unit before comes
// after this unit's products in program order, so that the two overlap.
#pragma once
#include "amx/tiles.h"
#include "kernels/linear_integer.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kChunkBlocks = 4;
constexpr int64_t kStepCodes = 2048;  // bytes of 64 k x 32 columns as signed bytes: [2 halves][16][64]

struct TileScratch {
    alignas(64) int32_t c[2][2][2][16 * 16];  // [buffer][row tile][half of the panel]
    alignas(64) float v[32][kPanel];          // groups of the block under way
    alignas(64) std::byte codes[kChunkBlocks * 2 * kStepCodes];
};

// The layout of a format's superblocks. Source derives from it and brings codes(work, block, blocks,
// scratch): the chunk as signed bytes, kBlockCodes from superblock to superblock, each kUnit times the code.
template <Format F>
struct IntegerSource {
    static constexpr Coding kCoding = coding_of(F);
    static constexpr Trailer T = kCoding.trailer;
    static constexpr int64_t G = kCoding.group == 0 ? kBlockK : kCoding.group;
    static constexpr int64_t kBlockBytes = superblock_bytes(kCoding, kBlockK);

    static const std::byte* trailer(const IntegerWork& work, int64_t block, int64_t num_k) {
        return work.panel + block * kBlockBytes + num_k * 4 * kCoding.bits;
    }
};

template <class Source>
struct IntegerTiles {
    static constexpr int64_t kRowGroup = 512;  // unpacking a panel is dear beside tiles
    static constexpr int64_t kTileK = Source::G < 64 ? Source::G : 64;  // k of one product

    static void accumulate(const IntegerWork& work) {
        auto* const scratch = reinterpret_cast<TileScratch*>(work.scratch);
        const int64_t tile_rows = work.rows < kTileRows ? work.rows : kTileRows;
        TileConfig config;
        for (int t = 0; t < 4; ++t) config.set(t, tile_rows, 64);
        for (int t = 4; t < 6; ++t) config.set(t, tile_rows, kTileK);
        for (int t = 6; t < 8; ++t) config.set(t, kTileK / 4, 64);
        configure(config);
        for (int64_t b = work.first_block; b < work.end_block; b += kChunkBlocks) {
            const int64_t left = work.end_block - b, blocks = left < kChunkBlocks ? left : kChunkBlocks;
            const std::byte* const codes = Source::codes(work, b, blocks, scratch->codes);
            for (int64_t row = 0; row < work.rows; row += 2 * kTileRows) {
                const int64_t rows = work.rows - row;
                if (rows > kTileRows) {
                    chunk<2>(work, codes, row, rows < 32 ? rows : 32, b, blocks, *scratch);
                } else {
                    chunk<1>(work, codes, row, rows, b, blocks, *scratch);
                }
            }
        }
    }

    template <int kTiles>
    static void chunk(const IntegerWork& work, const std::byte* codes, int64_t row, int64_t rows,
                      int64_t first, int64_t blocks, TileScratch& scratch) {
        int64_t unit = 0, last_block = 0, last_group = 0;
        for (int64_t b = first; b < first + blocks; ++b) {
            const int64_t num_k = work.block_k(b), group_k = Source::G < num_k ? Source::G : num_k;
            for (int64_t g = 0; g < num_k / group_k; ++g, ++unit) {
                multiply<kTiles>(work, codes, row, b, b - first, g * group_k, group_k, scratch.c[unit % 2]);
                if (unit > 0)
                    combine(work, row, rows, last_block, last_group, scratch.c[(unit + 1) % 2], scratch.v);
                last_block = b;
                last_group = g;
            }
        }
        combine(work, row, rows, last_block, last_group, scratch.c[(unit + 1) % 2], scratch.v);
    }

    // c = the products over k [begin, begin + count) of block b.
    template <int kTiles>
    PENSTOCK_INLINE void multiply(const IntegerWork& work, const std::byte* codes, int64_t row, int64_t b,
                                  int64_t block_in_chunk, int64_t begin, int64_t count,
                                  int32_t (*c)[2][16 * 16]) {
        PENSTOCK_TILE_ZERO(0);
        PENSTOCK_TILE_ZERO(1);
        if constexpr (kTiles == 2) {
            PENSTOCK_TILE_ZERO(2);
            PENSTOCK_TILE_ZERO(3);
        }
        for (int64_t k = begin; k < begin + count; k += kTileK) {
            const int64_t step = k / 64, inside = k % 64;
            const std::byte* const w =
                codes + block_in_chunk * Source::kBlockCodes + step * kStepCodes + inside * 16;
            PENSTOCK_TILE_LOAD(6, w, 64);
            PENSTOCK_TILE_LOAD(7, w + kStepCodes / 2, 64);
            PENSTOCK_TILE_LOAD(4, work.codes(row, b) + step * kTileRows * 64 + inside, 64);
            PENSTOCK_TILE_DPBSSD(0, 4, 6);
            PENSTOCK_TILE_DPBSSD(1, 4, 7);
            if constexpr (kTiles == 2) {
                PENSTOCK_TILE_LOAD(5, work.codes(row + 16, b) + step * kTileRows * 64 + inside, 64);
                PENSTOCK_TILE_DPBSSD(2, 5, 6);
                PENSTOCK_TILE_DPBSSD(3, 5, 7);
            }
        }
        PENSTOCK_TILE_STORE(0, c[0][0], 64);
        PENSTOCK_TILE_STORE(1, c[0][1], 64);
        if constexpr (kTiles == 2) {
            PENSTOCK_TILE_STORE(2, c[1][0], 64);
            PENSTOCK_TILE_STORE(3, c[1][1], 64);
        }
    }

    // The fp32 steps of one group, and of its block when it is the last.
    PENSTOCK_INLINE void combine(const IntegerWork& work, int64_t row, int64_t rows, int64_t b, int64_t g,
                                 const int32_t (*c)[2][16 * 16], float (*v)[kPanel]) {
        constexpr Trailer T = Source::T;
        constexpr float kInverse = 1.0f / Source::kUnit;  // of a power of two: exact
        const int64_t num_k = work.block_k(b), groups = num_k < Source::G ? 1 : num_k / Source::G;
        const bool is_first = g == 0, is_last = g + 1 == groups;
        const std::byte* const trailer = Source::trailer(work, b, num_k);
        F16 scale[2], offset[2];
        for (int t = 0; t < 2; ++t) {
            scale[t] = group_scale<T>(trailer, groups, g, t * kLanes) * kInverse;
            offset[t] = group_offset<T>(trailer, groups, g, t * kLanes);
        }
        for (int64_t m = 0; m < rows; ++m) {
            float* const sums = work.sums + (row + m) * kPanel;
            const F16 row_scale = set1(*work.scales(row + m, b));
            const float x = has_offset(T) ? sum_of_codes(work, row + m, b, g, num_k / groups) : 0.0f;
            for (int t = 0; t < 2; ++t) {
                I16 exact;
                std::memcpy(&exact, c[m / 16][t] + m % 16 * 16, 64);
                const F16 value =
                    add_group<T>(load(v[m] + t * kLanes), exact, scale[t], offset[t], x, is_first);
                if (is_last) {
                    store(sums + t * kLanes, fma(value, row_scale, load(sums + t * kLanes)));
                } else {
                    store(v[m] + t * kLanes, value);
                }
            }
        }
    }

    // Over the `count` k of group g of block b: whole 32s, where there are offsets.
    PENSTOCK_INLINE float sum_of_codes(const IntegerWork& work, int64_t row, int64_t b, int64_t g,
                                       int64_t count) {
        const int32_t* const sums = work.code_sums(row, b) + g * (count / 32) * kTileRows;
        int32_t total = 0;
        for (int64_t i = 0; i < count / 32; ++i) total += sums[i * kTileRows];
        return static_cast<float>(total);
    }
};

}  // namespace penstock::PENSTOCK_ISA
