// Integer codes as they lie in a panel, 64 bytes at a time, to floats: for linear_codes.h.
//
// Codes become fp32 two at a time or four: a code put into the mantissa of a power of two whose last place is
// worth 1, minus that power (and the bias); on AVX-512 a table of sixteen floats where the code is in the
// lowest bits, or in those of the upper half (four codes of eight: more lookups need shifts, which cost what
// they save). E2M1 is always looked up in a table. At one row these conversions take five cycles a line on
// Zen 4, the FMAs eight.
#pragma once
#include "kernels/codes.h"
#include "kernels/linear_float.h"

namespace penstock::PENSTOCK_ISA {

#if defined(__AVX512F__)
typedef __m512i Raw;
PENSTOCK_INLINE Raw raw_load(const std::byte* p) { return _mm512_loadu_si512(p); }
PENSTOCK_INLINE Raw raw_flip(Raw v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
PENSTOCK_INLINE Raw raw_shift(Raw v, int bits) { return _mm512_srli_epi32(v, static_cast<unsigned>(bits)); }
PENSTOCK_INLINE Lanes raw_merge(Raw v, int mask, int power) {  // (v & mask) | power
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(v, _mm512_set1_epi32(mask), _mm512_set1_epi32(power), 0xea));
}
PENSTOCK_INLINE Lanes lanes_sub(Lanes a, float b) { return _mm512_sub_ps(a, _mm512_set1_ps(b)); }
#elif defined(__AVX2__)
typedef __m256i Raw;
PENSTOCK_INLINE Raw raw_load(const std::byte* p) { return lanes_raw(p); }
PENSTOCK_INLINE Raw raw_flip(Raw v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }
PENSTOCK_INLINE Raw raw_shift(Raw v, int bits) { return _mm256_srli_epi32(v, bits); }
PENSTOCK_INLINE Lanes raw_merge(Raw v, int mask, int power) {
    return _mm256_castsi256_ps(
        _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi32(mask)), _mm256_set1_epi32(power)));
}
PENSTOCK_INLINE Lanes lanes_sub(Lanes a, float b) { return _mm256_sub_ps(a, _mm256_set1_ps(b)); }
#else
typedef uint32_t Raw;
PENSTOCK_INLINE Raw raw_load(const std::byte* p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
}
PENSTOCK_INLINE Raw raw_flip(Raw v) { return v ^ 0x80808080U; }
PENSTOCK_INLINE Raw raw_shift(Raw v, int bits) { return v >> bits; }
PENSTOCK_INLINE Lanes raw_merge(Raw v, int mask, int power) {
    const uint32_t u = (v & static_cast<uint32_t>(mask)) | static_cast<uint32_t>(power);
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
PENSTOCK_INLINE Lanes lanes_sub(Lanes a, float b) { return a - b; }
#endif

// The code of `kBits` bits from bit kAt of every lane, less `bias`; its last place must lie in the mantissa.
template <int kBits, int kAt>
PENSTOCK_INLINE Lanes code_at(Raw v, float bias) {
    static_assert(kAt + kBits <= 23);
    constexpr int kPower = (127 + 23 - kAt) << 23;
    return lanes_sub(raw_merge(v, ((1 << kBits) - 1) << kAt, kPower),
                     static_cast<float>(1 << (23 - kAt)) + bias);
}

template <int kBitsOfCode>
struct CodeLine;

#if defined(__AVX512F__)
// What sixteen codes of four bits stand for, all exact in bf16: looked up by the lowest bits of a lane, or of
// its upper half, where the bf16 is the float.
struct CodeTable {
    __m512 floats;
    __m512i upper;  // 32 words: the fifth bit of an index belongs to the next code

    explicit CodeTable(__m512 values) : floats(values) {
        const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(values), 16));
        upper = _mm512_broadcast_i64x4(words);
    }
};
PENSTOCK_INLINE Lanes by_low_bits(const CodeTable& t, Raw v) { return _mm512_permutexvar_ps(v, t.floats); }
PENSTOCK_INLINE Lanes by_high_bits(const CodeTable& t, Raw v) {
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaaU, v, t.upper));
}
#endif

// 64 bytes as stored: four bytes of a column, each a low and a high nibble.
template <>
struct CodeLine<4> {
    static constexpr int kBits = 4;
    static constexpr int kLines = 8;  // of 64 k
    Raw raw, shifted;
    float bias;
#if defined(__AVX512F__)
    // From bit 12 on: then four codes lie where one lookup finds them. The others go through the mantissa,
    // because lookups and shifts share two of the four pipes.
    static constexpr int kShift = 12;
    CodeTable table;
    explicit CodeLine(int32_t b)
        : bias(static_cast<float>(b)),
          table(_mm512_cvtepi32_ps(
              _mm512_sub_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                               _mm512_set1_epi32(b)))) {}
#else
    static constexpr int kShift = 20;
    explicit CodeLine(int32_t b) : bias(static_cast<float>(b)) {}
#endif
    PENSTOCK_INLINE void read(CodeLine& line, const std::byte* p) {
        line.raw = raw_load(p);
        line.shifted = raw_shift(line.raw, kShift);
    }
    // Nibble i of the lane: byte i / 2, low or high.
    template <int i>
    PENSTOCK_INLINE Lanes code(const CodeLine& line) {
#if defined(__AVX512F__)
        if constexpr (i == 0) return by_low_bits(line.table, line.raw);
        if constexpr (i == 3) return by_low_bits(line.table, line.shifted);
        if constexpr (i == 4) return by_high_bits(line.table, line.raw);
        if constexpr (i == 7) return by_high_bits(line.table, line.shifted);
#endif
        constexpr bool is_shifted =
            4 * i + 4 > 20 || 4 * i >= kShift;  // else it lies in the mantissa as it is
        constexpr int kAt = is_shifted ? 4 * i - kShift : 4 * i;
        return code_at<4, kAt>(is_shifted ? line.shifted : line.raw, line.bias);
    }
};

// 64 bytes as stored: four signed bytes of a column.
template <>
struct CodeLine<8> {
    static constexpr int kBits = 8;
    static constexpr int kLines = 16;
    Raw raw, high;
    explicit CodeLine(int32_t) {}
    PENSTOCK_INLINE void read(CodeLine& line, const std::byte* p) {
        line.raw = raw_flip(raw_load(p));
        line.high = raw_shift(line.raw, 16);
    }
    template <int i>
    PENSTOCK_INLINE Lanes code(const CodeLine& line) {
        return code_at<8, i % 2 * 8>(i < 2 ? line.raw : line.high, 128.0f);
    }
};

// 64 bytes as stored: four bytes of a column, each a low and a high nibble, which are E2M1.
struct E2M1Line {
    static constexpr int kBits = 4;
    Raw raw;
#if defined(__AVX512F__)
    Raw by4, by8, by12;
    CodeTable table;
    explicit E2M1Line(int32_t) : table(_mm512_loadu_ps(kE2M1)) {}
    PENSTOCK_INLINE void read(E2M1Line& line, const std::byte* p) {
        line.raw = raw_load(p);
        line.by4 = raw_shift(line.raw, 4);
        line.by8 = raw_shift(line.raw, 8);
        line.by12 = raw_shift(line.raw, 12);
    }
#elif defined(__AVX2__)
    __m256 table;
    explicit E2M1Line(int32_t) : table(_mm256_loadu_ps(kE2M1)) {}
    PENSTOCK_INLINE void read(E2M1Line& line, const std::byte* p) { line.raw = raw_load(p); }
#else
    explicit E2M1Line(int32_t) {}
    PENSTOCK_INLINE void read(E2M1Line& line, const std::byte* p) { line.raw = raw_load(p); }
#endif
    // Nibble i of the lane: byte i / 2, low or high.
    template <int i>
    PENSTOCK_INLINE Lanes code(const E2M1Line& line) {
#if defined(__AVX512F__)
        const Raw v = i % 4 == 0 ? line.raw : i % 4 == 1 ? line.by4 : i % 4 == 2 ? line.by8 : line.by12;
        return i < 4 ? by_low_bits(line.table, v) : by_high_bits(line.table, v);
#elif defined(__AVX2__)
        const __m256i at = i == 0 ? line.raw : raw_shift(line.raw, 4 * i);  // by its lowest three bits
        const __m256i sign =
            _mm256_and_si256(_mm256_slli_epi32(line.raw, 28 - 4 * i), _mm256_set1_epi32(INT32_MIN));
        return _mm256_or_ps(_mm256_permutevar8x32_ps(line.table, at), _mm256_castsi256_ps(sign));
#else
        return kE2M1[raw_shift(line.raw, 4 * i) & 15U];
#endif
    }
};

}  // namespace penstock::PENSTOCK_ISA
