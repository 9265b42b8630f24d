// One fp32 row from scratch into an operand of any kind, for kernels that produce activations.
#pragma once
#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

OperandKernel operand_float32, operand_bfloat16, operand_int8;

PENSTOCK_INLINE void write_operand_row(const float* x, int64_t width, const Operand& out, int64_t row) {
    switch (out.kind) {  // stride 0: the one row is row `row`
        case OperandKind::kFloat32:
            operand_float32(x, 0, width, out, row, row + 1);
            break;
        case OperandKind::kBFloat16:
            operand_bfloat16(x, 0, width, out, row, row + 1);
            break;
        case OperandKind::kInt8:
            operand_int8(x, 0, width, out, row, row + 1);
            break;
    }
}

}  // namespace penstock::PENSTOCK_ISA
