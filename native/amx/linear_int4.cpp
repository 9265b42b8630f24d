// y = W x with 4-bit codes on tiles. Nibbles of a biased code become the signed bytes 16 * (code - 8) in
// scratch, three operations for 128 weights, and the scales are divided by 16: both exact, so the products'
// bits stay. Codes from 0 on are taken as they are.
#include "amx/integer_tiles.h"

namespace penstock {

namespace avx512 {
LinearKernel linear_int4;
}

namespace PENSTOCK_ISA {
namespace {

constexpr int64_t kVnniRows = 2;  // up to here reading is all the work, and unpacking would cost more
constexpr int64_t kStepBytes = 1024;

template <Format F>
struct Int4 : IntegerSource<F> {
    static constexpr bool kIsBiased = IntegerSource<F>::kCoding.bias == 8;
    static constexpr float kUnit = kIsBiased ? 16.0f : 1.0f;
    static constexpr int64_t kBlockCodes = 2 * kStepCodes;

    static const std::byte* codes(const IntegerWork& work, int64_t block, int64_t blocks, std::byte* to) {
        const U16 high_nibble = U16{} + 0xf0f0f0f0U, low_nibble = U16{} + 0x0f0f0f0fU;
        const U16 sign = U16{} + 0x80808080U;
        for (int64_t b = block; b < block + blocks; ++b)
            for (int64_t step = 0; step < work.block_k(b) / 64; ++step)
                for (int64_t half = 0; half < 2; ++half) {
                    const std::byte* from =
                        work.panel + b * IntegerSource<F>::kBlockBytes + step * kStepBytes + half * 512;
                    std::byte* tile = to + ((b - block) * 2 + step) * kStepCodes + half * 1024;
                    for (int64_t r = 0; r < 8; ++r) {
                        U16 pair, low, high;
                        std::memcpy(&pair, from + r * 64, 64);
                        if constexpr (kIsBiased) {
                            low = ((pair << 4) & high_nibble) ^ sign;
                            high = (pair & high_nibble) ^ sign;
                        } else {
                            low = pair & low_nibble;
                            high = (pair >> 4) & low_nibble;
                        }
                        std::memcpy(tile + r * 64, &low, 64);
                        std::memcpy(tile + 512 + r * 64, &high, 64);
                    }
                }
        return to;
    }
};

}  // namespace

void linear_int4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    if (rows <= kVnniRows) return avx512::linear_int4(w, a, rows, out, panel_begin, panel_end, scratch);
    with_int4(w.format, [&]<Format F>() {
        run_integer<IntegerTiles<Int4<F>>>(w, a, rows, out, panel_begin, panel_end, scratch);
        release();
    });
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
