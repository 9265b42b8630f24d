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

constexpr bool has_offset(Trailer t) {
    return t == Trailer::kZero || t == Trailer::kMin || t == Trailer::kSuper;
}
constexpr bool has_offset(const Coding& c) { return has_offset(c.trailer); }
constexpr int64_t groups_in(const Coding& c, int64_t length) {
    return c.group == 0 ? 0 : c.group < length ? length / c.group : 1;
}

PENSTOCK_INLINE I16 small_ints(const std::byte* p, bool is_signed) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return reinterpret_cast<I16>(is_signed ? _mm512_cvtepi8_epi32(bytes) : _mm512_cvtepu8_epi32(bytes));
#elif defined(__AVX2__)
    __m256i wide[2];
    for (int i = 0; i < 2; ++i) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p + 8 * i));
        wide[i] = is_signed ? _mm256_cvtepi8_epi32(bytes) : _mm256_cvtepu8_epi32(bytes);
    }
    I16 v;
    std::memcpy(&v, wide, 64);
    return v;
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

// Scale and offset of sixteen columns from `j` on, for group `g` of a superblock of `groups`, whose trailer
// is at `at`. Every product below is exact in fp32.
template <Trailer T>
PENSTOCK_INLINE F16 group_scale(const std::byte* at, int64_t, int64_t g, int64_t j) {
    if constexpr (T == Trailer::kSuper) {
        return halves(at + 2 * j) * small_floats(at + 128 + g * 32 + j, false);
    } else if constexpr (T == Trailer::kSuperScale) {
        return halves(at + 2 * j) * small_floats(at + 64 + g * 32 + j, true);
    } else if constexpr (T == Trailer::kExponent) {
        return from_bits(reinterpret_cast<U16>(small_ints(at + g * 32 + j, false) << 23));
    } else {
        return halves(at + g * 64 + 2 * j);
    }
}
template <Trailer T>
PENSTOCK_INLINE F16 group_offset(const std::byte* at, int64_t groups, int64_t g, int64_t j) {
    if constexpr (T == Trailer::kZero) {
        return zero() - group_scale<T>(at, groups, g, j) * small_floats(at + groups * 64 + g * 32 + j, true);
    } else if constexpr (T == Trailer::kMin) {
        return halves(at + groups * 64 + g * 64 + 2 * j);
    } else if constexpr (T == Trailer::kSuper) {
        const std::byte* const minima = at + 128 + round_up(groups * 32, 64);
        return zero() - halves(at + 64 + 2 * j) * small_floats(minima + g * 32 + j, false);
    } else {
        return zero();
    }
}

template <Trailer T>
PENSTOCK_INLINE void read_groups(int64_t groups, const std::byte* at, GroupScales& out) {
    for (int64_t g = 0; g < groups; ++g)
        for (int64_t j = 0; j < kPanel; j += kLanes) {
            store(out.scale[g] + j, group_scale<T>(at, groups, g, j));
            store(out.offset[g] + j, group_offset<T>(at, groups, g, j));
        }
}

// `at`: the trailer of a superblock of `length` K.
PENSTOCK_INLINE void read_trailer(const Coding& c, const std::byte* at, int64_t length, GroupScales& out) {
    const int64_t groups = groups_in(c, length);
    switch (c.trailer) {
        case Trailer::kScale:
            return read_groups<Trailer::kScale>(groups, at, out);
        case Trailer::kZero:
            return read_groups<Trailer::kZero>(groups, at, out);
        case Trailer::kMin:
            return read_groups<Trailer::kMin>(groups, at, out);
        case Trailer::kSuper:
            return read_groups<Trailer::kSuper>(groups, at, out);
        case Trailer::kSuperScale:
            return read_groups<Trailer::kSuperScale>(groups, at, out);
        case Trailer::kExponent:
            return read_groups<Trailer::kExponent>(groups, at, out);
        default:
            return;
    }
}

}  // namespace penstock::PENSTOCK_ISA
