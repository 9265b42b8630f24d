// y = W x on E2M1 codes with a power of two for every 32 k, under the BF16 contract: linear_codes.h.
#include "kernels/linear_codes.h"

namespace penstock::PENSTOCK_ISA {

void linear_mxfp4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                  int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    LinearFloat<CodesKernel<E2M1Line, 32, false>>::run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
