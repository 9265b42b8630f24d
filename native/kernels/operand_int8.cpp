// Rows of fp32 activations as the INT contract wants them: one scale per row and 128 of K.
//
// The formulas are in kernels/int8_row.h; sum is the sum of q over each 32 of K. Every row is padded with
// zeros to k_padded; no other row is touched.
#include "kernels.h"
#include "kernels/int8_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int kVectors = 8;  // of 16 lanes in a block of 128

// The first `count` of a block's values, zeros after them.
PENSTOCK_INLINE void load_block(const float* x, int64_t count, F16* v) {
    for (int i = 0; i < kVectors; ++i, count -= kLanes)
        v[i] = count >= kLanes ? load(x + i * kLanes)
               : count > 0     ? load_n(x + i * kLanes, static_cast<int>(count))
                               : zero();
}

PENSTOCK_INLINE int32_t sum_lanes(I16 q) {
    int32_t lane[kLanes];
    std::memcpy(lane, &q, 64);
    for (int half = kLanes / 2; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
}

// One block of 128 (or the last 64): `vectors` is 8 or 4. Returns the scale.
PENSTOCK_INLINE float quantize(F16* v, int vectors, int8_t* codes, int32_t* sums) {
    const Int8Scale s = int8_scale(largest_magnitude(v, kVectors));
    for (int i = 0; i < vectors; i += 2) {
        const I16 low = int8_codes(v[i], s), high = int8_codes(v[i + 1], s);
        int8_t* const to = codes + i / 4 * kTileRows * 64 + i % 4 * kLanes;
        store_bytes(to, low);
        store_bytes(to + kLanes, high);
        sums[i / 2 * kTileRows] = sum_lanes(low + high);
    }
    return s.scale;
}

}  // namespace

void operand_int8(const float* x, int64_t stride, int64_t k, const Operand& out, int64_t begin,
                  int64_t end) noexcept {
    const int64_t steps = out.k_padded / 64, blocks = (steps + 1) / 2;
    for (int64_t row = begin; row < end; ++row) {
        const int64_t tile = row / kTileRows, lane = row % kTileRows;
        int8_t* const codes = static_cast<int8_t*>(out.data) + (tile * steps * kTileRows + lane) * 64;
        int32_t* const sums = out.sum + tile * steps * 2 * kTileRows + lane;
        float* const scales = out.scale + tile * blocks * kTileRows + lane;
        for (int64_t b = 0; b < blocks; ++b) {
            F16 v[kVectors];
            load_block(x + row * stride + b * 128, k - b * 128, v);
            const int vectors = steps - 2 * b >= 2 ? kVectors : kVectors / 2;
            scales[b * kTileRows] =
                quantize(v, vectors, codes + b * 2 * kTileRows * 64, sums + b * 4 * kTileRows);
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
