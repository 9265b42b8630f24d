// What pack.cpp divides among: the packers by family of formats, and the conversions of sources they share.
#pragma once
#include "pack.h"

namespace penstock {

// As pack_panels and unpack_panels, for the formats named. The source is finite; false: a value overflows
// `format`.
bool pack_float_panels(const SourceMatrix&, Format, std::byte* out, int64_t begin, int64_t end) noexcept;
void unpack_float_panels(const PackedWeight&, float*) noexcept;
bool pack_int_panels(const SourceMatrix&, Format, std::byte* out, int64_t begin, int64_t end) noexcept;
void unpack_int_panels(const PackedWeight&, float*) noexcept;

// fp16 <-> fp32 by integers, for compilers without F16C; right with FTZ and DAZ set. Rounding is to nearest
// even; what is out of range becomes infinite.
float widen_half(uint16_t half) noexcept;
uint16_t round_half(float x) noexcept;

// Elements [first, first + count) of row `row` of the source as fp32.
void widen_row(const SourceMatrix& source, int64_t row, int64_t first, int64_t count, float* out) noexcept;

}  // namespace penstock
