// y = W x on 8-bit codes under the BF16 contract: linear_codes.h.
#include "kernels/linear_codes.h"

namespace penstock::PENSTOCK_ISA {

void linear_codes8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                   int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    const int64_t group = group_of(w.format);
    const auto run = group == 16   ? LinearFloat<CodesKernel<CodeLine<8>, 16, false>>::run
                     : group == 32 ? LinearFloat<CodesKernel<CodeLine<8>, 32, false>>::run
                                   : LinearFloat<CodesKernel<CodeLine<8>, 32, true>>::run;
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
