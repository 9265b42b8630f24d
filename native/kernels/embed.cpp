// Rows of an embedding table, widened to fp32: the first activation of a step.
#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

void embed(const EmbedArgs& args, const Batch& batch, int64_t row_begin, int64_t row_end) noexcept {
    const int64_t whole = args.width / kLanes * kLanes;
    for (int64_t row = row_begin; row < row_end; ++row) {
        const int64_t first = batch.tokens[row] * args.width;
        float* y = args.y + row * args.width;
        if (args.format == Format::kFloat32) {
            std::memcpy(y, static_cast<const float*>(args.table) + first,
                        static_cast<std::size_t>(args.width) * 4);
        } else if (args.format == Format::kFloat16) {
            const uint16_t* x = static_cast<const uint16_t*>(args.table) + first;
            for (int64_t i = 0; i < whole; i += kLanes) store(y + i, widen_fp16(x + i));
            for (int64_t i = whole; i < args.width; ++i) y[i] = widen_fp16_1(x[i]);
        } else {
            const uint16_t* x = static_cast<const uint16_t*>(args.table) + first;
            for (int64_t i = 0; i < whole; i += kLanes) store(y + i, widen_bf16(x + i));
            for (int64_t i = whole; i < args.width; ++i) y[i] = widen_bf16_1(x[i]);
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
