// The end of a linear: from a panel's sums in scratch to the rows of y.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

static_assert(kMaximaOf == kLanes);
PENSTOCK_INLINE float largest(F16 v) {
    v = max(v, set1(-__builtin_inff()));  // NaN loses
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps(reinterpret_cast<__m512>(v));
#else
    return max_lane(v);
#endif
}

// y = (sums[rows][32] + bias) * scale + addend, for the columns of the panel that exist.
PENSTOCK_INLINE void write_rows(const float* sums, int64_t rows, int64_t n, int64_t column,
                                const LinearOut& out, int64_t first_row) {
    for (int64_t half = 0; half < kPanel && column + half < n; half += kLanes) {
        const int64_t left = n - column - half;
        const int lanes = left < kLanes ? static_cast<int>(left) : kLanes;
        const F16 bias = out.bias ? load_n(out.bias + column + half, lanes) : zero();
        for (int64_t row = 0; row < rows; ++row) {
            const int64_t at = column + half;
            F16 y = load(sums + row * kPanel + half);
            if (out.bias) y = y + bias;
            y = y * out.scale;  // 1 is exact
            if (out.addend) y = load_n(out.addend + (first_row + row) * out.addend_stride + at, lanes) + y;
            store_n(out.y + (first_row + row) * out.stride + at, y, lanes);
            if (out.maxima && lanes == kMaximaOf)
                out.maxima[(first_row + row) * maxima_stride(n) + at / kMaximaOf] = largest(y);
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
