// The peak of VDPBF16PS beside those of the AVX-512 table.
#include "probes.h"

#include <immintrin.h>

namespace penstock {
namespace avx512 {
const ProbeTable& probes() noexcept;
}

namespace PENSTOCK_ISA {

double bfloat16_probe(int64_t rounds, float* sink) noexcept {
    constexpr int kChains = 12;
    __m512 acc[kChains];
    for (int i = 0; i < kChains; ++i) acc[i] = _mm512_set1_ps(static_cast<float>(i));
    __m512i one = _mm512_set1_epi32(0x3f803f80), small = _mm512_set1_epi32(0x3a833a83);
    for (int64_t r = 0; r < rounds; ++r) {
        for (int i = 0; i < kChains; ++i)
            acc[i] =
                _mm512_dpbf16_ps(acc[i], reinterpret_cast<__m512bh>(one), reinterpret_cast<__m512bh>(small));
        asm volatile("" : "+v"(one), "+v"(small));
    }
    __m512 total = acc[0];
    for (int i = 1; i < kChains; ++i) total = _mm512_add_ps(total, acc[i]);
    *sink = _mm512_reduce_add_ps(total);
    return static_cast<double>(rounds) * kChains * 64;
}

const ProbeTable& probes() noexcept {
    static const ProbeTable kProbes = [] {
        ProbeTable p = avx512::probes();
        p.bfloat16 = bfloat16_probe;
        return p;
    }();
    return kProbes;
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
