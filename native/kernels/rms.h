// The reciprocal root mean square of a row, as `norm` and the per-head norms of `rope_write` need it.
#pragma once
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

// 1 / sqrt(mean(x^2) + eps): 16 lanes by fma, the tail in the first lanes, the fixed tree, true division and
// root.
PENSTOCK_INLINE float inverse_rms(const float* x, int64_t width, float eps) {
    F16 squares = zero();
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        F16 v = load(x + i);
        squares = fma(v, v, squares);
    }
    if (i < width) {
        F16 v = load_n(x + i, static_cast<int>(width - i));
        squares = fma(v, v, squares);
    }
    return 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + eps);
}

// y = (x * inverse) * (weight + offset). y may be x.
PENSTOCK_INLINE void scale_row(const float* x, const float* weight, int64_t width, float inverse,
                               float offset, float* y) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes)
        store(y + i, (load(x + i) * inverse) * (load(weight + i) + offset));
    if (i < width) {
        const int n = static_cast<int>(width - i);
        store_n(y + i, (load_n(x + i, n) * inverse) * (load_n(weight + i, n) + offset), n);
    }
}

}  // namespace penstock::PENSTOCK_ISA
