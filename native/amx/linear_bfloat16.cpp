// The BF16 contract on tiles (kernels/linear_bfloat16.cpp states it): TDPBF16PS itself, C from +0.
//
// Blocks of up to 32 rows: two tiles of rows times the two tiles of a panel. One block: C stays in tiles over
// all of K, weights come from DRAM. More: 256 k at a time (16 KB of weights, L1) for all blocks, C stored and
// reloaded in between, which changes no bit. Rows that pad the last tile are computed and never written.
#include "amx/tiles.h"
#include "kernels/linear_out.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kStep = 32;           // k of a tile
constexpr int64_t kTileElements = 512;  // of A: 16 rows x 32
constexpr int64_t kStepBytes = 2048;    // of a panel's weights: two tiles
constexpr int64_t kChunk = 256;         // k of a pass over several blocks
constexpr int64_t kAheadBytes = 8192;   // a lone block prefetches every line this early
constexpr int64_t kRowGroup = 512;      // rows whose sums wait in scratch
constexpr int64_t kSumsBytes = kRowGroup * kPanel * 4;
static_assert(2 * kSumsBytes <= kScratchBytes);

// One panel, one block: where step k of A and of B are, and the sums of the block's first row.
struct TileBlock {
    const uint16_t* a;
    int64_t a_next;  // elements from the first tile of rows to the second
    const std::byte* b;
    int64_t num_steps;
    float* sums;
};

void configure_rows(int64_t rows) {
    TileConfig config;
    for (int tile = 0; tile < 6; ++tile) config.set(tile, rows < kTileRows ? rows : kTileRows, 64);
    config.set(6, 16, 64);
    config.set(7, 16, 64);
    configure(config);
}

template <bool kIsTall>
void load_sums(const float* sums, bool is_first) {
    if (is_first) {
        PENSTOCK_TILE_ZERO(0);
        PENSTOCK_TILE_ZERO(1);
        PENSTOCK_TILE_ZERO(2);
        PENSTOCK_TILE_ZERO(3);
        return;
    }
    PENSTOCK_TILE_LOAD(0, sums, kPanel * 4);
    PENSTOCK_TILE_LOAD(1, sums + 16, kPanel * 4);
    if constexpr (kIsTall) {
        PENSTOCK_TILE_LOAD(2, sums + kTileRows * kPanel, kPanel * 4);
        PENSTOCK_TILE_LOAD(3, sums + kTileRows * kPanel + 16, kPanel * 4);
    }
}

template <bool kIsTall, bool kIsLone>
void multiply(const TileBlock& block, bool is_first) {
    load_sums<kIsTall>(block.sums, is_first);
    const uint16_t* a = block.a;
    const std::byte* b = block.b;
    for (int64_t step = 0; step < block.num_steps; ++step, a += kTileElements, b += kStepBytes) {
        if constexpr (kIsLone)
            for (int64_t line = 0; line < kStepBytes; line += 64)
                __builtin_prefetch(b + kAheadBytes + line, 0, 3);
        PENSTOCK_TILE_LOAD(4, a, 64);
        PENSTOCK_TILE_LOAD(6, b, 64);
        PENSTOCK_TILE_DPBF16PS(0, 4, 6);
        PENSTOCK_TILE_LOAD(7, b + kStepBytes / 2, 64);
        PENSTOCK_TILE_DPBF16PS(1, 4, 7);
        if constexpr (kIsTall) {
            PENSTOCK_TILE_LOAD(5, a + block.a_next, 64);
            PENSTOCK_TILE_DPBF16PS(2, 5, 6);
            PENSTOCK_TILE_DPBF16PS(3, 5, 7);
        }
    }
    PENSTOCK_TILE_STORE(0, block.sums, kPanel * 4);
    PENSTOCK_TILE_STORE(1, block.sums + 16, kPanel * 4);
    if constexpr (kIsTall) {
        PENSTOCK_TILE_STORE(2, block.sums + kTileRows * kPanel, kPanel * 4);
        PENSTOCK_TILE_STORE(3, block.sums + kTileRows * kPanel + 16, kPanel * 4);
    }
}

// sums[rows][32] of one panel over k_begin .. k_end, from +0. `row` is a multiple of 16.
void sum_panel(const std::byte* panel, const Operand& a, int64_t row, int64_t rows, int64_t k_begin,
               int64_t k_end, float* sums) {
    const int64_t a_next = a.k_padded / kStep * kTileElements;
    const bool is_lone = rows <= 2 * kTileRows;
    const int64_t chunk = is_lone ? k_end - k_begin : kChunk;
    for (int64_t k = k_begin; k < k_end; k += chunk) {
        const int64_t here = k_end - k < chunk ? k_end - k : chunk;
        for (int64_t r = 0; r < rows; r += 2 * kTileRows) {
            const uint16_t* tile = static_cast<const uint16_t*>(a.data) + (row + r) / kTileRows * a_next;
            const TileBlock block = {tile + k / kStep * kTileElements, a_next, panel + k / kStep * kStepBytes,
                                     here / kStep, sums + r * kPanel};
            const bool is_tall = rows - r > kTileRows, is_first = k == k_begin;
            if (is_lone)
                is_tall ? multiply<true, true>(block, is_first) : multiply<false, true>(block, is_first);
            else
                is_tall ? multiply<true, false>(block, is_first) : multiply<false, false>(block, is_first);
        }
    }
}

}  // namespace

void linear_bfloat16(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                     int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    float* const sums = reinterpret_cast<float*>(scratch);
    float* const second = sums + kSumsBytes / 4;
    const int64_t half = g_break_invariance == 1 && rows > 1 ? w.k_padded / 2 : 0;
    configure_rows(rows);
    for (int64_t row = 0; row < rows; row += kRowGroup) {
        const int64_t count = rows - row < kRowGroup ? rows - row : kRowGroup;
        for (int64_t p = panel_begin; p < panel_end; ++p) {
            const std::byte* panel = w.data + p * w.panel_bytes;
            sum_panel(panel, a, row, count, half, w.k_padded, sums);
            if (half > 0) {
                sum_panel(panel, a, row, count, 0, half, second);
                for (int64_t i = 0; i < count * kPanel; i += kLanes)
                    store(sums + i, load(second + i) + load(sums + i));
            }
            write_rows(sums, count, w.n, p * kPanel, out, row);
        }
    }
    release();
}

}  // namespace penstock::PENSTOCK_ISA
