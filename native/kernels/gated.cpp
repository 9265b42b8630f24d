// act(gate) * up of rows, straight into the down projection's operand.
#include "elementary.h"
#include "kernels/operand_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// x / (1 + e^-x).
PENSTOCK_INLINE F16 silu(F16 x) { return x / (exp(zero() - x) + 1.0f); }

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

PENSTOCK_INLINE F16 activate(Activation act, F16 x) {
    return act == Activation::kSilu ? silu(x) : act == Activation::kGelu ? gelu(x) : gelu_tanh(x);
}

template <Activation kAct>
void gate_row(const float* gate, const float* up, int64_t width, float* y) {
    int64_t i = 0;
    for (; i + kLanes <= width; i += kLanes) store(y + i, activate(kAct, load(gate + i)) * load(up + i));
    if (i < width) {
        const int n = static_cast<int>(width - i);
        store_n(y + i, activate(kAct, load_n(gate + i, n)) * load_n(up + i, n), n);
    }
}

}  // namespace

void gated(const GatedArgs& args, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept {
    float* y = reinterpret_cast<float*>(scratch);
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float* gate = args.x + row * args.stride;
        const float* up = gate + args.width;
        switch (args.act) {
            case Activation::kSilu:
                gate_row<Activation::kSilu>(gate, up, args.width, y);
                break;
            case Activation::kGelu:
                gate_row<Activation::kGelu>(gate, up, args.width, y);
                break;
            case Activation::kGeluTanh:
                gate_row<Activation::kGeluTanh>(gate, up, args.width, y);
                break;
        }
        write_operand_row(y, args.width, args.out, row);
    }
}

}  // namespace penstock::PENSTOCK_ISA
