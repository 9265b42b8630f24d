// y = W x with 8-bit codes on tiles: the panel's bytes are B tiles as they lie.
#include "amx/integer_tiles.h"

namespace penstock::PENSTOCK_ISA {
namespace {

template <Format F>
struct Int8 : IntegerSource<F> {
    static constexpr float kUnit = 1.0f;
    static constexpr int64_t kBlockCodes = IntegerSource<F>::kBlockBytes;

    static const std::byte* codes(const IntegerWork& work, int64_t block, int64_t, std::byte*) {
        return work.panel + block * kBlockCodes;
    }
};

}  // namespace

void linear_int8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    with_int8(w.format, [&]<Format F>() {
        run_integer<IntegerTiles<Int8<F>>>(w, a, rows, out, panel_begin, panel_end, scratch);
        release();
    });
}

}  // namespace penstock::PENSTOCK_ISA
