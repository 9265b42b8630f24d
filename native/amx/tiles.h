// The tile registers of AMX, thinly: eight tiles of at most 16 rows x 64 bytes, numbered by literals.
//
//     TileConfig config;                      // every tile used needs rows and bytes per row
//     config.set(0, rows, 64);                // C [rows][16] fp32 or int32
//     config.set(4, rows, 64);                // A [rows][64 bytes]
//     config.set(6, 16, 64);                  // B [16 rows = A's bytes / 4][64 bytes]
//     configure(config);                      // zeroes all tiles; each kernel does it once
//     PENSTOCK_TILE_ZERO(0);
//     PENSTOCK_TILE_LOAD(4, a, stride_bytes); PENSTOCK_TILE_LOAD(6, b, 64);
//     PENSTOCK_TILE_DPBF16PS(0, 4, 6);        // or _DPBSSD
//     PENSTOCK_TILE_STORE(0, c, stride_bytes);
//     release();
//
// Two builds of the same kernels: real instructions, and with PENSTOCK_EMULATED_TILES the same arithmetic
// over AVX512, for machines without AMX. The emulation traps where the hardware would raise #UD. Its
// TDPBF16PS needs FTZ and DAZ set, as every worker has them.
#pragma once
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t colsb[16] = {};  // bytes per row
    uint8_t rows[16] = {};

    void set(int tile, int64_t num_rows, int64_t row_bytes) {
        rows[tile] = static_cast<uint8_t>(num_rows);
        colsb[tile] = static_cast<uint16_t>(row_bytes);
    }
};
static_assert(sizeof(TileConfig) == 64);

#if !defined(PENSTOCK_EMULATED_TILES)

// Own wrappers: GCC 12's intrinsics name too little memory, and stores to the config or to scratch move past
// them.
PENSTOCK_INLINE void configure(const TileConfig& config) {
    asm volatile("ldtilecfg %0" ::"m"(config) : "memory");
}
PENSTOCK_INLINE void release() { asm volatile("tilerelease" ::: "memory"); }

#define PENSTOCK_TILE_LOAD(t, pointer, stride)                                             \
    asm volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(static_cast<const void*>(pointer)), \
                 "r"(static_cast<int64_t>(stride))                                         \
                 : "memory")
#define PENSTOCK_TILE_STORE(t, pointer, stride)                                          \
    asm volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(static_cast<void*>(pointer)), \
                 "r"(static_cast<int64_t>(stride))                                       \
                 : "memory")
#define PENSTOCK_TILE_ZERO(t) asm volatile("tilezero %%tmm" #t ::: "memory")
#define PENSTOCK_TILE_DPBF16PS(c, a, b) \
    asm volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")
#define PENSTOCK_TILE_DPBSSD(c, a, b) asm volatile("tdpbssd %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::: "memory")

#else

struct alignas(64) EmulatedTile {
    uint8_t byte[16][64];
};
struct EmulatedTiles {
    TileConfig config;
    EmulatedTile tile[8];
};
inline thread_local EmulatedTiles emulated_tiles{};  // one state for all kernels, as in hardware

PENSTOCK_INLINE void require(bool holds) {
    if (!holds) __builtin_trap();
}

PENSTOCK_INLINE void configure(const TileConfig& config) {
    require(config.palette == 1 && config.start_row == 0);
    for (int t = 0; t < 8; ++t) {
        require(config.rows[t] <= 16 && config.colsb[t] <= 64);
        require((config.rows[t] == 0) == (config.colsb[t] == 0));
    }
    emulated_tiles = EmulatedTiles{};
    emulated_tiles.config = config;
}
PENSTOCK_INLINE void release() { emulated_tiles.config = TileConfig{}; }

PENSTOCK_INLINE void emulated_zero(int t) {
    require(emulated_tiles.config.rows[t] > 0);
    emulated_tiles.tile[t] = EmulatedTile{};
}

PENSTOCK_INLINE void emulated_load(int t, const void* pointer, int64_t stride) {
    emulated_zero(t);
    const TileConfig& config = emulated_tiles.config;
    for (int r = 0; r < config.rows[t]; ++r)
        std::memcpy(emulated_tiles.tile[t].byte[r], static_cast<const uint8_t*>(pointer) + r * stride,
                    config.colsb[t]);
}

PENSTOCK_INLINE void emulated_store(int t, void* pointer, int64_t stride) {
    const TileConfig& config = emulated_tiles.config;
    require(config.rows[t] > 0);
    for (int r = 0; r < config.rows[t]; ++r)
        std::memcpy(static_cast<uint8_t*>(pointer) + r * stride, emulated_tiles.tile[t].byte[r],
                    config.colsb[t]);
}

// What every TDP* asks of its shapes.
PENSTOCK_INLINE void require_product(int c, int a, int b) {
    const TileConfig& config = emulated_tiles.config;
    require(c != a && c != b && a != b);
    require(config.rows[c] > 0 && config.rows[a] > 0 && config.rows[b] > 0);
    require(config.rows[c] == config.rows[a] && config.colsb[c] == config.colsb[b]);
    require(config.colsb[a] == config.rows[b] * 4 && config.colsb[c] % 4 == 0);
}

// Bytes past the configured ones are zero after every load and product, so whole vectors may be computed.
// One even and one odd chain of FMAs from +0 along K, then even + odd, then onto C.
PENSTOCK_INLINE void emulated_dpbf16ps(int c, int a, int b) {
    require_product(c, a, b);
    EmulatedTiles& s = emulated_tiles;
    for (int m = 0; m < s.config.rows[c]; ++m) {
        F16 even = zero(), odd = zero(), sum_c;
        for (int r = 0; r < s.config.rows[b]; ++r) {
            uint32_t pair;
            U16 row;
            std::memcpy(&pair, &s.tile[a].byte[m][4 * r], 4);
            std::memcpy(&row, s.tile[b].byte[r], 64);
            even = fma(from_bits(U16{} + (pair << 16)), from_bits(row << 16), even);
            odd = fma(from_bits(U16{} + (pair & 0xffff0000U)), from_bits(row & 0xffff0000U), odd);
        }
        std::memcpy(&sum_c, s.tile[c].byte[m], 64);
        sum_c = sum_c + (even + odd);
        std::memcpy(s.tile[c].byte[m], &sum_c, s.config.colsb[c]);
    }
}

PENSTOCK_INLINE void emulated_dpbssd(int c, int a, int b) {
    require_product(c, a, b);
    EmulatedTiles& s = emulated_tiles;
    for (int m = 0; m < s.config.rows[c]; ++m) {
        U16 sum_c;  // unsigned: the hardware wraps around
        std::memcpy(&sum_c, s.tile[c].byte[m], 64);
        for (int r = 0; r < s.config.rows[b]; ++r) {
            I16 row;
            std::memcpy(&row, s.tile[b].byte[r], 64);
            for (int i = 0; i < 4; ++i) {
                const int32_t factor = static_cast<int8_t>(s.tile[a].byte[m][4 * r + i]);
                sum_c += reinterpret_cast<U16>(((row << (24 - 8 * i)) >> 24) * factor);
            }
        }
        std::memcpy(s.tile[c].byte[m], &sum_c, s.config.colsb[c]);
    }
}

#define PENSTOCK_TILE_LOAD(t, pointer, stride) emulated_load(t, pointer, stride)
#define PENSTOCK_TILE_STORE(t, pointer, stride) emulated_store(t, pointer, stride)
#define PENSTOCK_TILE_ZERO(t) emulated_zero(t)
#define PENSTOCK_TILE_DPBF16PS(c, a, b) emulated_dpbf16ps(c, a, b)
#define PENSTOCK_TILE_DPBSSD(c, a, b) emulated_dpbssd(c, a, b)

#endif

}  // namespace penstock::PENSTOCK_ISA
