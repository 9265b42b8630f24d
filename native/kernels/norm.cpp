// RMS norm of rows straight into the next product's operand. NormArgs in kernels.h has the formula.
#include "kernels/operand_row.h"
#include "kernels/rms.h"

namespace penstock::PENSTOCK_ISA {

void norm(const NormArgs& args, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept {
    float* y = reinterpret_cast<float*>(scratch);
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float* x = args.x + args.stride * (args.index ? args.index[row] : row);
        const float inverse = inverse_rms(x, args.width, args.eps);
        scale_row(x, args.weight, args.width, inverse, args.weight_offset, y);
        write_operand_row(y, args.width, args.out, row);
    }
}

}  // namespace penstock::PENSTOCK_ISA
