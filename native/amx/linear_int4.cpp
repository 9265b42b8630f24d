// y = W x with 4-bit weights on tiles. Nibbles become the signed bytes 16 * (code - 8) in scratch, three
// operations for 128 weights, and the scales are divided by 16: both exact, so the products' bits stay.
#include "amx/integer_tiles.h"

namespace penstock {

namespace avx512 {
LinearKernel linear_int4;
}

namespace PENSTOCK_ISA {
namespace {

constexpr int64_t kVnniRows = 2;  // up to here reading is all the work, and unpacking would cost more
constexpr int64_t kStepBytes = 1024;

template <int64_t kGroup>
struct Int4 {
    static constexpr int64_t G = kGroup;
    static constexpr bool kHasScales = true;
    static constexpr int64_t kBlockBytes = 2 * kStepBytes + kBlockK / G * 64;

    static const std::byte* codes(const IntegerWork& work, int64_t block, int64_t blocks, std::byte* to) {
        const U16 high_nibble = U16{} + 0xf0f0f0f0U, sign = U16{} + 0x80808080U;
        for (int64_t b = block; b < block + blocks; ++b)
            for (int64_t step = 0; step < work.block_k(b) / 64; ++step)
                for (int64_t half = 0; half < 2; ++half) {
                    const std::byte* from = work.panel + b * kBlockBytes + step * kStepBytes + half * 512;
                    std::byte* tile = to + ((b - block) * 2 + step) * kStepCodes + half * 1024;
                    for (int64_t r = 0; r < 8; ++r) {
                        U16 pair;
                        std::memcpy(&pair, from + r * 64, 64);
                        const U16 low = ((pair << 4) & high_nibble) ^ sign,
                                  high = (pair & high_nibble) ^ sign;
                        std::memcpy(tile + r * 64, &low, 64);
                        std::memcpy(tile + 512 + r * 64, &high, 64);
                    }
                }
        return to;
    }

    static F16 scales(const IntegerWork& work, int64_t block, int64_t num_k, int64_t group, int64_t half) {
        const std::byte* at = work.panel + block * kBlockBytes + num_k * 16 + group * 64 + half * 32;
        return widen_fp16(reinterpret_cast<const uint16_t*>(at)) * 0.0625f;
    }
};

}  // namespace

void linear_int4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    if (rows <= kVnniRows) return avx512::linear_int4(w, a, rows, out, panel_begin, panel_end, scratch);
    const auto run = w.format == Format::kInt4G32   ? run_integer<IntegerTiles<Int4<32>>>
                     : w.format == Format::kInt4G64 ? run_integer<IntegerTiles<Int4<64>>>
                                                    : run_integer<IntegerTiles<Int4<128>>>;
    run(w, a, rows, out, panel_begin, panel_end, scratch);
    release();
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
