// y = W x with int8 weights on tiles: the panel's bytes are B tiles as they lie.
#include "amx/integer_tiles.h"

namespace penstock::PENSTOCK_ISA {
namespace {

struct Int8 {
    static constexpr int64_t G = 128;
    static constexpr bool kHasScales = false;

    static const std::byte* codes(const IntegerWork& work, int64_t block, int64_t, std::byte*) {
        return work.panel + block * 2 * kStepCodes;
    }
};

}  // namespace

void linear_int8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                 int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    run_integer<IntegerTiles<Int8>>(w, a, rows, out, panel_begin, panel_end, scratch);
    release();
}

}  // namespace penstock::PENSTOCK_ISA
