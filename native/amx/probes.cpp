// The peaks of the tile unit: products whose operands stay in tile registers. Everything else is AVX-512's.
#include "probes.h"

#include "tiles.h"

namespace penstock {
namespace avx512 {
const ProbeTable& probes() noexcept;
}

namespace PENSTOCK_ISA {
namespace {

// Four products in flight, of full tiles: 16 x 16 sums over 64 bytes of K.
constexpr int64_t kProducts = 4;

void configure_full() {
    TileConfig config;
    for (int t = 0; t < 8; ++t) config.set(t, 16, 64);
    configure(config);  // zeroes all tiles
}

float take_and_release() {
    alignas(64) float sums[256];
    PENSTOCK_TILE_STORE(0, sums, 64);
    release();
    return sums[0];
}

}  // namespace

double tile_bfloat16_probe(int64_t rounds, float* sink) noexcept {
    configure_full();
    for (int64_t r = 0; r < rounds; ++r) {
        PENSTOCK_TILE_DPBF16PS(0, 4, 6);
        PENSTOCK_TILE_DPBF16PS(1, 4, 7);
        PENSTOCK_TILE_DPBF16PS(2, 5, 6);
        PENSTOCK_TILE_DPBF16PS(3, 5, 7);
    }
    *sink = take_and_release();
    return static_cast<double>(rounds) * kProducts * 16 * 16 * 32 * 2;
}

double tile_int8_probe(int64_t rounds, float* sink) noexcept {
    configure_full();
    for (int64_t r = 0; r < rounds; ++r) {
        PENSTOCK_TILE_DPBSSD(0, 4, 6);
        PENSTOCK_TILE_DPBSSD(1, 4, 7);
        PENSTOCK_TILE_DPBSSD(2, 5, 6);
        PENSTOCK_TILE_DPBSSD(3, 5, 7);
    }
    *sink = take_and_release();
    return static_cast<double>(rounds) * kProducts * 16 * 16 * 64 * 2;
}

const ProbeTable& probes() noexcept {
    static const ProbeTable kProbes = [] {
        ProbeTable p = avx512::probes();
        p.bfloat16 = tile_bfloat16_probe;
        p.tile_int8 = tile_int8_probe;
        return p;
    }();
    return kProbes;
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
