// Activations of rows, times a second half where one gates, straight into the down projection's operand.
#include "elementary.h"
#include "kernels/operand_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// x/2 * (1 + erf(x / sqrt 2)). erfc(z) = t * e^(poly(t) - z^2), t = 1 / (1 + z/2), z >= 0: relative
// error 1.2e-7 before rounding (Press et al., Numerical Recipes, erfcc); so small results on the negative
// side keep their digits.
PENSTOCK_INLINE F16 gelu(F16 x) {
    F16 z = abs(x) * 0.70710678118654752f;
    F16 t = set1(1.0f) / fma(z, set1(0.5f), set1(1.0f));
    F16 p = set1(0.17087277f);
    p = fma(p, t, set1(-0.82215223f));
    p = fma(p, t, set1(1.48851587f));
    p = fma(p, t, set1(-1.13520398f));
    p = fma(p, t, set1(0.27886807f));
    p = fma(p, t, set1(-0.18628806f));
    p = fma(p, t, set1(0.09678418f));
    p = fma(p, t, set1(0.37409196f));
    p = fma(p, t, set1(1.00002368f));
    p = fma(p, t, set1(-1.26551223f));
    F16 half_erfc = exp(fma(-z, z, p)) * t * 0.5f;
    return x * select(x < zero(), half_erfc, set1(1.0f) - half_erfc);
}

// x/2 * (1 + tanh(u)) = x / (1 + e^(-2u)), u = sqrt(2/pi) * (x + 0.044715 x^3).
PENSTOCK_INLINE F16 gelu_tanh(F16 x) {
    F16 u = fma(x * x, set1(0.044715f), set1(1.0f)) * x;
    return x / (exp(u * -1.5957691216057308f) + 1.0f);
}

PENSTOCK_INLINE F16 quick_gelu(F16 x) { return x / (exp(x * -1.702f) + 1.0f); }

PENSTOCK_INLINE F16 relu(F16 x) { return max(zero(), x); }  // NaN stays NaN

template <Activation kAct>
PENSTOCK_INLINE F16 activate(F16 x) {
    if constexpr (kAct == Activation::kSilu) return silu(x);
    if constexpr (kAct == Activation::kGelu) return gelu(x);
    if constexpr (kAct == Activation::kGeluTanh) return gelu_tanh(x);
    if constexpr (kAct == Activation::kQuickGelu) return quick_gelu(x);
    if constexpr (kAct == Activation::kRelu) return relu(x);
    if constexpr (kAct == Activation::kRelu2) return relu(x) * relu(x);
    if constexpr (kAct == Activation::kClampedSwiglu) return x;
}

template <Activation kAct>
PENSTOCK_INLINE F16 gate(F16 x, F16 up) {
    if constexpr (kAct == Activation::kClampedSwiglu) {  // NaN stays NaN
        const F16 limit = set1(7.0f);
        return quick_gelu(min(limit, x)) * (max(zero() - limit, min(limit, up)) + 1.0f);
    } else {
        return activate<kAct>(x) * up;
    }
}

// `up` may be null: nothing gates.
template <Activation kAct>
void activate_row(const float* x, const float* up, int64_t width, float* y) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) {
        const F16 v = load(x + i);
        store(y + i, up ? gate<kAct>(v, load(up + i)) : activate<kAct>(v));
    }
    if (i < width) {
        const int n = static_cast<int>(width - i);
        const F16 v = load_n(x + i, n);
        store_n(y + i, up ? gate<kAct>(v, load_n(up + i, n)) : activate<kAct>(v), n);
    }
}

using ActivateRow = void(const float* x, const float* up, int64_t width, float* y);

ActivateRow* row_of(Activation act) {
    switch (act) {
        case Activation::kSilu:
            return activate_row<Activation::kSilu>;
        case Activation::kGelu:
            return activate_row<Activation::kGelu>;
        case Activation::kGeluTanh:
            return activate_row<Activation::kGeluTanh>;
        case Activation::kQuickGelu:
            return activate_row<Activation::kQuickGelu>;
        case Activation::kRelu:
            return activate_row<Activation::kRelu>;
        case Activation::kRelu2:
            return activate_row<Activation::kRelu2>;
        default:
            return activate_row<Activation::kClampedSwiglu>;
    }
}

}  // namespace

void gated(const GatedArgs& args, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept {
    float* y = reinterpret_cast<float*>(scratch);
    ActivateRow* activate_row = row_of(args.act);
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float* x = args.x + row * args.stride;
        activate_row(x, args.is_gated ? x + args.width : nullptr, args.width, y);
        write_operand_row(y, args.width, args.out, row);
    }
}

}  // namespace penstock::PENSTOCK_ISA
