// Norms of rows: into the next product's operand, or into the residual stream. NormArgs in kernels.h.
#include "kernels/norm_row.h"
#include "kernels/operand_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

void add_row(const float* addend, int64_t width, float* y) {
    const int64_t whole = width / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) store(y + i, load(addend + i) + load(y + i));
    for (int64_t i = whole; i < width; ++i) y[i] = addend[i] + y[i];
}

}  // namespace

void norm(const NormArgs& args, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept {
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float* x = args.x + args.stride * (args.index ? args.index[row] : row);
        float* y = args.y ? args.y + row * args.width : reinterpret_cast<float*>(scratch);
        scale_row(x, args.spec, args.width, statistics(x, args.width, args.spec), y);
        if (args.addend) add_row(args.addend + row * args.width, args.width, y);
        if (!args.y) write_operand_row(y, args.width, args.out, row);
    }
}

}  // namespace penstock::PENSTOCK_ISA
