// y = W x on 4-bit codes under the BF16 contract: linear_codes.h.
#include "kernels/linear_codes.h"

namespace penstock::PENSTOCK_ISA {

void linear_codes4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                   int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    const auto run = group_of(w.format) == 32 ? LinearFloat<CodesKernel<CodeLine<4>, 32, false>>::run
                                              : LinearFloat<CodesKernel<CodeLine<4>, 32, true>>::run;
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
