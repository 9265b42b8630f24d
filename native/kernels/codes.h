// What integer codes stand for: scales and offsets of a superblock as fp32, for all who read codes.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kSuperblockK = 128;
constexpr int64_t kMaxGroups = 8;  // of a superblock

// W = scale * code + offset for 32 columns, group by group of one superblock.
struct GroupScales {
    alignas(64) float scale[kMaxGroups][kPanel];
    alignas(64) float offset[kMaxGroups][kPanel];  // only where has_offset
};

// What the four bits of E2M1 are worth: sign, two bits of exponent, one of mantissa.
constexpr float kE2M1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                             -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
constexpr bool is_e2m1(const Coding& c) { return c.trailer == Trailer::kExponent; }

constexpr bool has_offset(const Coding& c) {
    return c.trailer == Trailer::kZero || c.trailer == Trailer::kMin || c.trailer == Trailer::kSuper;
}
constexpr int64_t groups_in(const Coding& c, int64_t length) {
    return c.group == 0 ? 0 : c.group < length ? length / c.group : 1;
}

PENSTOCK_INLINE I16 small_ints(const std::byte* p, bool is_signed) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<I16>(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#else
    I16 v;
    for (int i = 0; i < kLanes; ++i) {
        const auto byte = static_cast<uint8_t>(p[i]);
        v[i] = is_signed ? static_cast<int8_t>(byte) : static_cast<int32_t>(byte);
    }
    return v;
#endif
}
PENSTOCK_INLINE F16 small_floats(const std::byte* p, bool is_signed) {
    return to_float(small_ints(p, is_signed));
}
PENSTOCK_INLINE F16 halves(const std::byte* p) { return widen_fp16(reinterpret_cast<const uint16_t*>(p)); }

// `at`: the trailer of a superblock of `length` K. Every product below is exact in fp32.
PENSTOCK_INLINE void read_trailer(const Coding& c, const std::byte* at, int64_t length, GroupScales& out) {
    const int64_t groups = groups_in(c, length), bytes = round_up(groups * 32, 64);
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t j = 0; j < kPanel; j += kLanes) {
            F16 scale = zero(), offset = zero();
            switch (c.trailer) {
                case Trailer::kScale:
                    scale = halves(at + g * 64 + 2 * j);
                    break;
                case Trailer::kZero:
                    scale = halves(at + g * 64 + 2 * j);
                    offset = zero() - scale * small_floats(at + groups * 64 + g * 32 + j, true);
                    break;
                case Trailer::kMin:
                    scale = halves(at + g * 64 + 2 * j);
                    offset = halves(at + groups * 64 + g * 64 + 2 * j);
                    break;
                case Trailer::kSuper:
                    scale = halves(at + 2 * j) * small_floats(at + 128 + g * 32 + j, false);
                    offset =
                        zero() - halves(at + 64 + 2 * j) * small_floats(at + 128 + bytes + g * 32 + j, false);
                    break;
                case Trailer::kSuperScale:
                    scale = halves(at + 2 * j) * small_floats(at + 64 + g * 32 + j, true);
                    break;
                case Trailer::kExponent:
                    scale = from_bits(reinterpret_cast<U16>(small_ints(at + g * 32 + j, false) << 23));
                    break;
                default:
                    break;
            }
            store(out.scale[g] + j, scale);
            store(out.offset[g] + j, offset);
        }
}

}  // namespace penstock::PENSTOCK_ISA
