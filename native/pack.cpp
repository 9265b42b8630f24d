#include "pack.h"

#include <bit>
#include <cstring>

#include "pack_parts.h"

namespace penstock {
namespace {

int64_t bytes_of(Format dtype) { return dtype == Format::kFloat32 ? 4 : 2; }

const std::byte* element(const SourceMatrix& source, int64_t row, int64_t column) {
    return static_cast<const std::byte*>(source.data) +
           (row * source.stride + column) * bytes_of(source.dtype);
}

template <class Word>
bool all_below(const void* data, Word exponent, int64_t count) {
    const auto* bytes = static_cast<const std::byte*>(data);
    bool found = false;  // no early exit, so that the loop is a vector loop
    for (int64_t i = 0; i < count; ++i) {
        Word word;
        std::memcpy(&word, bytes + i * static_cast<int64_t>(sizeof(Word)), sizeof(Word));
        found |= (word & exponent) == exponent;
    }
    return !found;
}

}  // namespace

bool all_finite(const void* data, Format dtype, int64_t count) noexcept {
    if (dtype == Format::kFloat32) return all_below<uint32_t>(data, 0x7f800000U, count);
    return all_below<uint16_t>(data, dtype == Format::kFloat16 ? 0x7c00 : 0x7f80, count);
}

float widen_half(uint16_t half) noexcept {
    const uint32_t sign = (half & 0x8000U) << 16, exponent = (half >> 10) & 31U, mantissa = half & 0x3ffU;
    if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000U | mantissa << 13);
    if (exponent > 0) return std::bit_cast<float>(sign | (exponent + 112) << 23 | mantissa << 13);
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(magnitude));
}

uint16_t round_half(float x) noexcept {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000U, magnitude = bits & 0x7fffffffU;
    uint32_t half;
    if (magnitude > 0x7f800000U) {
        half = 0x7e00U;
    } else if (magnitude >= 0x477ff000U) {  // 65520 and above
        half = 0x7c00U;
    } else if (magnitude >= 0x38800000U) {  // 2^-14: normal
        half = (magnitude - 0x38000000U + 0xfffU + ((magnitude >> 13) & 1U)) >> 13;
    } else if (magnitude < 0x33000000U) {  // below 2^-25
        half = 0;
    } else {  // subnormal: adding 2^-1 leaves units of 2^-24 in the low bits, rounded by the addition
        const float shifted = std::bit_cast<float>(magnitude) + 0.5f;
        half = std::bit_cast<uint32_t>(shifted) - 0x3f000000U;
    }
    return static_cast<uint16_t>(sign | half);
}

void widen_row(const SourceMatrix& source, int64_t row, int64_t first, int64_t count, float* out) noexcept {
    const std::byte* from = element(source, row, first);
    if (source.dtype == Format::kFloat32) {
        std::memcpy(out, from, static_cast<std::size_t>(count) * 4);
        return;
    }
    for (int64_t i = 0; i < count; ++i) {
        uint16_t word;
        std::memcpy(&word, from + 2 * i, 2);
        out[i] = source.dtype == Format::kFloat16 ? widen_half(word)
                                                  : std::bit_cast<float>(static_cast<uint32_t>(word) << 16);
    }
}

bool pack_panels(const SourceMatrix& source, Format format, std::byte* out, int64_t begin,
                 int64_t end) noexcept {
    const auto pack = operand_of(format) == OperandKind::kInt8 ? pack_int_panels : pack_float_panels;
    for (int64_t panel = begin; panel < end; ++panel) {
        for (int64_t row = panel * kPanel; row < source.n && row < (panel + 1) * kPanel; ++row)
            if (!all_finite(element(source, row, 0), source.dtype, source.k)) return false;
        if (!pack(source, format, out, panel, panel + 1)) return false;
    }
    return true;
}

void unpack_panels(const PackedWeight& weight, float* out) noexcept {
    const auto unpack =
        operand_of(weight.format) == OperandKind::kInt8 ? unpack_int_panels : unpack_float_panels;
    unpack(weight, out);
}

}  // namespace penstock
