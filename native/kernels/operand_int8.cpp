// Rows of fp32 activations as the INT contract wants them: one scale per row and 128 of K.
//
//     amax  = largest |x|;  below 2^-118: q = 0, scale = 0 (a scale that is a normal number, an inverse that
//     is finite) q     = rne(x * (127 / amax)),  scale = amax * (1 / 127),  sum = sum of q over each 32 of K
//     NaN or Inf in the block: q = 0, scale = NaN, so that whatever reads the row is NaN
//
// Every row is padded with zeros to k_padded; no other row is touched.
#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr float kSmallestAmax = 0x1p-118f;
constexpr float kInverse127 = 1.0f / 127.0f;
constexpr int kVectors = 8;  // of 16 lanes in a block of 128

// The first `count` of a block's values, zeros after them.
PENSTOCK_INLINE void load_block(const float* x, int64_t count, F16* v) {
    for (int i = 0; i < kVectors; ++i, count -= kLanes)
        v[i] = count >= kLanes ? load(x + i * kLanes)
               : count > 0     ? load_n(x + i * kLanes, static_cast<int>(count))
                               : zero();
}

// As bits: ordered like magnitudes, NaN above all, and no flag or FTZ has a say.
PENSTOCK_INLINE uint32_t largest_magnitude(const F16* v) {
    I16 largest{};
    for (int i = 0; i < kVectors; ++i) {
        const I16 magnitude = reinterpret_cast<I16>(bits(v[i]) & 0x7fffffffU);
        largest = magnitude > largest ? magnitude : largest;
    }
    int32_t lane[kLanes], top = 0;
    std::memcpy(lane, &largest, 64);
    for (int i = 0; i < kLanes; ++i) top = lane[i] > top ? lane[i] : top;
    return static_cast<uint32_t>(top);
}

PENSTOCK_INLINE void store_bytes(int8_t* to, I16 q) {
#if defined(__AVX512F__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                     _mm512_maskz_cvtepi32_epi8(0xffff, reinterpret_cast<__m512i>(q)));
#else
    int32_t lane[kLanes];
    std::memcpy(lane, &q, 64);
    for (int i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(lane[i]);
#endif
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
    const uint32_t magnitude = largest_magnitude(v);
    float amax;
    std::memcpy(&amax, &magnitude, 4);
    float factor = 0, scale = 0;
    if (magnitude >= 0x7f800000U) {  // Inf or NaN
        for (int i = 0; i < kVectors; ++i) v[i] = zero();
        scale = __builtin_nanf("");
    } else if (amax >= kSmallestAmax) {
        factor = 127.0f / amax;
        scale = amax * kInverse127;
    }
    for (int i = 0; i < vectors; i += 2) {
        const I16 low = to_int_rne(v[i] * factor), high = to_int_rne(v[i + 1] * factor);
        int8_t* const to = codes + i / 4 * kTileRows * 64 + i % 4 * kLanes;
        store_bytes(to, low);
        store_bytes(to + kLanes, high);
        sums[i / 2 * kTileRows] = sum_lanes(low + high);
    }
    return scale;
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
