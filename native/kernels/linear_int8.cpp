// y = W x with 8-bit codes, activations int8: linear_integer.h has the contract, integer_codes.h the loops.
#include "kernels/integer_codes.h"

namespace penstock::PENSTOCK_ISA {

void linear_int8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    with_int8(w.format, [&]<Format F>() {
        run_integer<IntegerCodes<F>>(w, a, rows, out, panel_begin, panel_end, scratch);
    });
}

}  // namespace penstock::PENSTOCK_ISA
