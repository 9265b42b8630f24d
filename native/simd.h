// Sixteen lanes of fp32, the same on every instruction set.
//
// Compiled once per ISA in its own namespace (PENSTOCK_ISA), so nothing inline is shared between object
// libraries. Every operation is IEEE single rounding; fma is always one rounding; sums of lanes follow one
// fixed tree. Written over the compiler's vector type, so that one source gives one set of bits; only what
// the vector type cannot say (fma, conversions) names an instruction. Workers run with FTZ and DAZ set.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#endif

#ifndef PENSTOCK_ISA
#error "PENSTOCK_ISA names the namespace of this object library"
#endif

#define PENSTOCK_INLINE static inline __attribute__((always_inline))

namespace penstock::PENSTOCK_ISA {

constexpr int kLanes = 16;

typedef float F16 __attribute__((vector_size(64)));
typedef int32_t I16 __attribute__((vector_size(64)));
typedef uint32_t U16 __attribute__((vector_size(64)));

PENSTOCK_INLINE F16 zero() { return F16{}; }
PENSTOCK_INLINE F16 set1(float x) { return F16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }
PENSTOCK_INLINE I16 set1i(int32_t x) { return I16{x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x}; }

PENSTOCK_INLINE F16 load(const float* p) {
    F16 v;
    std::memcpy(&v, p, 64);
    return v;
}
PENSTOCK_INLINE void store(float* p, F16 v) { std::memcpy(p, &v, 64); }

// The first n of 16 lanes; the others are +0 when loaded and left alone when stored.
PENSTOCK_INLINE F16 load_n(const float* p, int n) {
    F16 v{};
    std::memcpy(&v, p, static_cast<std::size_t>(n) * 4);
    return v;
}
PENSTOCK_INLINE void store_n(float* p, F16 v, int n) { std::memcpy(p, &v, static_cast<std::size_t>(n) * 4); }

PENSTOCK_INLINE U16 bits(F16 v) { return reinterpret_cast<U16>(v); }
PENSTOCK_INLINE F16 from_bits(U16 v) { return reinterpret_cast<F16>(v); }

// a*b + c, rounded once.
PENSTOCK_INLINE F16 fma(F16 a, F16 b, F16 c) {
#if defined(__AVX512F__)
    return reinterpret_cast<F16>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b),
                                                 reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
    __m256 x[2], y[2], z[2];
    std::memcpy(x, &a, 64);
    std::memcpy(y, &b, 64);
    std::memcpy(z, &c, 64);
    z[0] = _mm256_fmadd_ps(x[0], y[0], z[0]);
    z[1] = _mm256_fmadd_ps(x[1], y[1], z[1]);
    F16 r;
    std::memcpy(&r, z, 64);
    return r;
#else
    F16 r;
    for (int i = 0; i < kLanes; ++i) r[i] = __builtin_fmaf(a[i], b[i], c[i]);
    return r;
#endif
}

PENSTOCK_INLINE F16 select(I16 mask, F16 yes, F16 no) {  // mask lanes are 0 or -1
    return from_bits((bits(yes) & reinterpret_cast<U16>(mask)) | (bits(no) & ~reinterpret_cast<U16>(mask)));
}
PENSTOCK_INLINE F16 max(F16 a, F16 b) { return select(a > b, a, b); }  // b where either is NaN
PENSTOCK_INLINE F16 min(F16 a, F16 b) { return select(a < b, a, b); }
PENSTOCK_INLINE F16 abs(F16 a) { return from_bits(bits(a) & 0x7fffffffU); }

PENSTOCK_INLINE F16 sqrt(F16 a) {
#if defined(__AVX512F__)
    return reinterpret_cast<F16>(_mm512_sqrt_ps(reinterpret_cast<__m512>(a)));
#else
    F16 r;
    for (int i = 0; i < kLanes; ++i) r[i] = __builtin_sqrtf(a[i]);
    return r;
#endif
}

PENSTOCK_INLINE F16 to_float(I16 a) { return __builtin_convertvector(a, F16); }

// Nearest integer, ties to even, for |a| < 2^22: the magic addition, which every ISA rounds alike.
PENSTOCK_INLINE I16 to_int_rne(F16 a) {
    F16 shifted = a + 12582912.0f;  // 1.5 * 2^23
    return reinterpret_cast<I16>(bits(shifted)) - 0x4b400000;
}

// One fixed tree: lanes i and i+8, then +4, +2, +1.
PENSTOCK_INLINE float sum(F16 v) {
    float s[16];
    std::memcpy(s, &v, 64);
    for (int half = 8; half > 0; half /= 2)
        for (int i = 0; i < half; ++i) s[i] += s[i + half];
    return s[0];
}
PENSTOCK_INLINE float max_lane(F16 v) {
    float m = v[0];
    for (int i = 1; i < kLanes; ++i) m = v[i] > m ? v[i] : m;
    return m;
}

// bf16 <-> fp32. Widening is exact; rounding is to nearest even with denormals flushed (as VCVTNEPS2BF16).
PENSTOCK_INLINE F16 widen_bf16(const uint16_t* p) {
#if defined(__AVX512F__)
    __m256i h = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    return reinterpret_cast<F16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
#else
    U16 u;
    for (int i = 0; i < kLanes; ++i) u[i] = static_cast<uint32_t>(p[i]) << 16;
    return from_bits(u);
#endif
}

PENSTOCK_INLINE U16 round_bf16_bits(F16 v) {  // the bf16 in the low half of each lane
    U16 u = bits(v);
    U16 rounded = (u + 0x7fffU + ((u >> 16) & 1U)) >> 16;
    U16 quiet = (u >> 16) | 0x40U;
    U16 flushed = (u >> 16) & 0x8000U;
    U16 is_nan = reinterpret_cast<U16>((u & 0x7fffffffU) > (U16{} + 0x7f800000U));
    U16 is_tiny = reinterpret_cast<U16>((u & 0x7f800000U) == U16{});
    U16 r = (rounded & ~is_nan) | (quiet & is_nan);
    return (r & ~is_tiny) | (flushed & is_tiny);
}
PENSTOCK_INLINE F16 round_bf16(F16 v) { return from_bits(round_bf16_bits(v) << 16); }
PENSTOCK_INLINE void store_bf16(uint16_t* p, F16 v) {
    U16 r = round_bf16_bits(v);
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(r)));
#else
    for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint16_t>(r[i]);
#endif
}
PENSTOCK_INLINE float widen_bf16_1(uint16_t h) {
    uint32_t u = static_cast<uint32_t>(h) << 16;
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
PENSTOCK_INLINE uint16_t round_bf16_1(float x) {
    uint32_t u;
    std::memcpy(&u, &x, 4);
    if ((u & 0x7fffffffU) > 0x7f800000U) return static_cast<uint16_t>((u >> 16) | 0x40U);
    if ((u & 0x7f800000U) == 0) return static_cast<uint16_t>((u >> 16) & 0x8000U);
    return static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}

// fp16 -> fp32, exact, subnormals included (VCVTPH2PS knows no DAZ; else by integers and one exact
// multiplication).
PENSTOCK_INLINE F16 widen_fp16(const uint16_t* p) {
#if defined(__AVX512F__)
    return reinterpret_cast<F16>(_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))));
#elif defined(__F16C__)
    const auto* halves = reinterpret_cast<const __m128i*>(p);
    const __m256 wide[2] = {_mm256_cvtph_ps(_mm_loadu_si128(halves)),
                            _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
    F16 r;
    std::memcpy(&r, wide, 64);
    return r;
#else
    U16 h;
    for (int i = 0; i < kLanes; ++i) h[i] = p[i];
    const U16 sign = (h & 0x8000U) << 16, exponent = h & 0x7c00U, mantissa = h & 0x3ffU;
    const U16 normal = ((h & 0x7fffU) << 13) + (112U << 23);
    const U16 special = (mantissa << 13) | 0x7f800000U;
    const F16 tiny = to_float(reinterpret_cast<I16>(mantissa)) * 0x1p-24f;
    F16 r = select(exponent == U16{}, tiny, from_bits(normal));
    r = select(exponent == U16{} + 0x7c00U, from_bits(special), r);
    return from_bits(bits(r) | sign);
#endif
}
PENSTOCK_INLINE float widen_fp16_1(uint16_t h) {
    uint16_t lanes[16] = {h};
    return widen_fp16(lanes)[0];
}

}  // namespace penstock::PENSTOCK_ISA
