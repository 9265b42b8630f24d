// The start-up check of an instruction set whose arithmetic is promised to equal its fallback's, bit for bit:
// AMX and VDPBF16PS against AVX-512. Takes a millisecond; asked once, by dispatch.cpp.
#pragma once
#include "kernels.h"

namespace penstock {

// The name of the first kernel of `table` whose bits differ from those of `fallback` on random rows; null
// when none does. Covers every kernel that they replace: the matrix products of the INT and BF16 contracts
// with few and many rows, products that are subnormal among them, a short last block of K, and half a panel
// of columns.
const char* first_difference(const KernelTable& table, const KernelTable& fallback);

}  // namespace penstock
