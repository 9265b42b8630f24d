// See probes.h.
#include "probes.h"

#include "simd.h"

namespace penstock::PENSTOCK_ISA {

uint64_t read_probe(const std::byte* data, int64_t bytes, bool in_order) noexcept {
    constexpr int kStreams = 4;
    U16 sums[kStreams] = {};
    if (in_order) {
        for (int64_t at = 0; at < bytes; at += 256) {
            U16 v[4];
            __builtin_memcpy(v, data + at, 256);
            for (int s = 0; s < kStreams; ++s) sums[s] = sums[s] + v[s];
        }
    } else {
        const int64_t part = bytes / kStreams / 256 * 256;
        for (int64_t at = 0; at < part; at += 256) {
            for (int s = 0; s < kStreams; ++s) {
                const std::byte* p = data + s * part + at;
                for (int line = 0; line < 4; ++line) __builtin_prefetch(p + 4096 + 64 * line, 0, 3);
                U16 v[4];
                __builtin_memcpy(v, p, 256);
                sums[s] = sums[s] + (v[0] ^ v[1]) + (v[2] ^ v[3]);
            }
        }
    }
    const U16 total = sums[0] + sums[1] + sums[2] + sums[3];
    uint64_t out = 0;
    for (int i = 0; i < kLanes; ++i) out += total[i];
    return out;
}

double float32_probe(int64_t rounds, float* sink) noexcept {
    constexpr int kChains = 12;
    F16 acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = set1(static_cast<float>(i));
    F16 x = set1(0.999f), y = set1(1e-3f);
    for (int64_t r = 0; r < rounds; ++r)
        for (int i = 0; i < kChains; ++i) acc[i] = fma(acc[i], x, y);
    F16 total = zero();
    for (int i = 0; i < kChains; ++i) total = total + acc[i];
    *sink = sum(total);
    return static_cast<double>(rounds) * kChains * kLanes * 2;
}

double int8_probe(int64_t rounds, float* sink) noexcept {
#if defined(__AVX512VNNI__)
    constexpr int kChains = 12;
    __m512i acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_epi32(i);
    __m512i x = _mm512_set1_epi8(3), y = _mm512_set1_epi8(-2);
    for (int64_t r = 0; r < rounds; ++r) {
        for (int i = 0; i < kChains; ++i) acc[i] = _mm512_dpbusd_epi32(acc[i], x, y);
        asm volatile("" : "+v"(x), "+v"(y));
    }
    __m512i total = acc[0];
    for (int i = 1; i < kChains; ++i) total = _mm512_add_epi32(total, acc[i]);
    *sink = static_cast<float>(_mm512_reduce_add_epi32(total));
    return static_cast<double>(rounds) * kChains * 128;
#else
    return float32_probe(rounds, sink);
#endif
}

}  // namespace penstock::PENSTOCK_ISA
