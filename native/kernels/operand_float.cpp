// Rows of fp32 activations as the float contracts want them: fp32 as it is, or bf16 in tiles of 16 rows x 32
// k. Every row is padded with zeros to k_padded; no other row is touched.
#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

void operand_float32(const float* x, int64_t stride, int64_t k, const Operand& out, int64_t begin,
                     int64_t end) noexcept {
    for (int64_t row = begin; row < end; ++row) {
        float* to = static_cast<float*>(out.data) + row * out.k_padded;
        std::memcpy(to, x + row * stride, static_cast<std::size_t>(k) * 4);
        std::memset(to + k, 0, static_cast<std::size_t>(out.k_padded - k) * 4);
    }
}

void operand_bfloat16(const float* x, int64_t stride, int64_t k, const Operand& out, int64_t begin,
                      int64_t end) noexcept {
    const int64_t tiles = out.k_padded / 32;
    for (int64_t row = begin; row < end; ++row) {
        const float* from = x + row * stride;
        uint16_t* to =
            static_cast<uint16_t*>(out.data) + (row / kTileRows * tiles * kTileRows + row % kTileRows) * 32;
        for (int64_t i = 0; i < out.k_padded; i += 32, to += kTileRows * 32)
            for (int64_t half = 0; half < 32; half += kLanes) {
                const int64_t left = k - i - half;
                const F16 v = left >= kLanes ? load(from + i + half)
                              : left > 0     ? load_n(from + i + half, static_cast<int>(left))
                                             : zero();
                store_bf16(to + half, v);
            }
    }
}

}  // namespace penstock::PENSTOCK_ISA
