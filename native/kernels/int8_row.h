// Sixteen-lane pieces of int8 quantization, shared by activations and by keys and values:
//
//     amax  = largest |x|;  below 2^-118: q = 0, scale = 0 (a scale that is a normal number, an inverse that
//     is finite) q     = rne(x * (127 / amax)),  scale = amax * (1 / 127)
//     NaN or Inf among them: q = 0, scale = NaN, so that whatever reads the row is NaN
#pragma once
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

// As bits: ordered like magnitudes, NaN above all, and no flag or FTZ has a say.
PENSTOCK_INLINE uint32_t largest_magnitude(const F16* v, int count) {
    I16 largest{};
    for (int i = 0; i < count; ++i) {
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

// What values of this largest magnitude are multiplied by (0: all codes are zero), and the scale of the
// codes.
struct Int8Scale {
    float factor, scale;
};
PENSTOCK_INLINE Int8Scale int8_scale(uint32_t magnitude) {
    constexpr float kSmallestAmax = 0x1p-118f, kInverse127 = 1.0f / 127.0f;
    float amax;
    std::memcpy(&amax, &magnitude, 4);
    if (magnitude >= 0x7f800000U) return {0.0f, __builtin_nanf("")};  // Inf or NaN
    if (amax < kSmallestAmax) return {0.0f, 0.0f};
    return {127.0f / amax, amax * kInverse127};
}
PENSTOCK_INLINE I16 int8_codes(F16 v, const Int8Scale& s) {
    return s.factor == 0.0f ? I16{} : to_int_rne(v * s.factor);
}

}  // namespace penstock::PENSTOCK_ISA
