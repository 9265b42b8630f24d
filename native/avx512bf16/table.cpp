// VDPBF16PS replaces the matrix products of the BF16 contract in the AVX-512 table; everything else is
// shared.
#include "kernels.h"

#define PENSTOCK_TEXT2(x) #x
#define PENSTOCK_TEXT(x) PENSTOCK_TEXT2(x)

namespace penstock {
namespace avx512 {
const KernelTable& table() noexcept;
}

namespace PENSTOCK_ISA {

LinearKernel linear_bfloat16, linear_codes4, linear_codes8, linear_mxfp4;

const KernelTable& table() noexcept {
    static const KernelTable kTable = [] {
        KernelTable t = avx512::table();
        t.isa = PENSTOCK_TEXT(PENSTOCK_ISA);
        t.linear_bfloat16 = linear_bfloat16;
        t.linear_codes4 = linear_codes4;
        t.linear_codes8 = linear_codes8;
        t.linear_mxfp4 = linear_mxfp4;
        return t;
    }();
    return kTable;
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
