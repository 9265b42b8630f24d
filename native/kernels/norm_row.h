// Norms of one row, as `norm` and the norms of queries and keys in `rope_write` need them.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

// What a row is normed by: its mean (0 where nothing is centred) and 1 / sqrt(mean square + eps).
struct Statistics {
    float mean, inverse;
};

// The first `count` lanes of v, zeros after them.
PENSTOCK_INLINE F16 first_lanes(F16 v, int64_t count) {
    const I16 lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return select(lane < set1i(static_cast<int32_t>(count)), v, zero());
}

// 16 lanes, the tail in the first of them, the fixed tree; squares by fma, true division and root.
PENSTOCK_INLINE Statistics statistics(const float* x, int64_t width, const NormSpec& spec) {
    const int64_t whole = width / kLanes * kLanes;
    const int tail = static_cast<int>(width - whole);
    float mean = 0.0f;
    if (spec.centers) {
        F16 sums = zero();
        for (int64_t i = 0; i < whole; i += kLanes) sums = sums + load(x + i);
        if (tail) sums = sums + load_n(x + whole, tail);
        mean = sum(sums) / static_cast<float>(width);
    }
    F16 squares = zero();
    for (int64_t i = 0; i < whole; i += kLanes) {
        F16 v = load(x + i) - mean;  // - 0 is exact
        squares = fma(v, v, squares);
    }
    if (tail) {
        F16 v = first_lanes(load_n(x + whole, tail) - mean, tail);
        squares = fma(v, v, squares);
    }
    return {mean, 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(width) + spec.eps)};
}

PENSTOCK_INLINE F16 scale_lanes(F16 x, F16 weight, F16 bias, const NormSpec& spec, const Statistics& s) {
    F16 y = (x - s.mean) * s.inverse;
    if (spec.weight) y = y * (weight + spec.weight_offset);
    return spec.bias ? y + bias : y;
}

// y = (x - mean) * inverse * (weight + offset) + bias. y may be x.
PENSTOCK_INLINE void scale_row(const float* x, const NormSpec& spec, int64_t width, const Statistics& s,
                               float* y) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        const F16 weight = spec.weight ? load(spec.weight + i) : zero();
        const F16 bias = spec.bias ? load(spec.bias + i) : zero();
        store(y + i, scale_lanes(load(x + i), weight, bias, spec, s));
    }
    if (i < width) {
        const int n = static_cast<int>(width - i);
        const F16 weight = spec.weight ? load_n(spec.weight + i, n) : zero();
        const F16 bias = spec.bias ? load_n(spec.bias + i, n) : zero();
        store_n(y + i, scale_lanes(load_n(x + i, n), weight, bias, spec, s), n);
    }
}

}  // namespace penstock::PENSTOCK_ISA
