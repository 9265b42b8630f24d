// Panels of fp32, fp16 and bf16 (layouts: weights/formats/*.py), 32 columns x 32 k at a time, and back.
#include <bit>
#include <cstring>

#include "pack_parts.h"

namespace penstock {
namespace {

constexpr int64_t kBlock = 32;  // k

uint16_t round_bfloat16(float x) {
    const uint32_t u = std::bit_cast<uint32_t>(x);
    return static_cast<uint16_t>((u + 0x7fffU + ((u >> 16) & 1U)) >> 16);
}

bool is_finite(Format format, uint32_t word) {
    const uint32_t exponent = format == Format::kFloat32   ? 0x7f800000U
                              : format == Format::kFloat16 ? 0x7c00U
                                                           : 0x7f80U;
    return (word & exponent) != exponent;
}

// Where weight (column, k) of a panel lies, in words. Kept apart from the loops: this is the layout.
constexpr int64_t word_of(Format format, int64_t column, int64_t k) {
    if (format != Format::kBFloat16) return k * kPanel + column;
    return k / 32 * 1024 + column / 16 * 512 + k % 32 / 2 * 32 + column % 16 * 2 + k % 2;
}

// Elements [first, first + count) of a row in `format`. False: one of them overflows it.
template <Format kFormat, class Word>
bool convert_row(const SourceMatrix& source, int64_t row, int64_t first, int64_t count, Word* out) {
    if (source.dtype == kFormat) {
        constexpr auto kBytes = static_cast<int64_t>(sizeof(Word));  // checkpoints align to less than a word
        const auto* from =
            static_cast<const std::byte*>(source.data) + (row * source.stride + first) * kBytes;
        std::memcpy(out, from, static_cast<std::size_t>(count * kBytes));
        return true;
    }
    float values[kBlock];
    widen_row(source, row, first, count, values);
    bool fits = true;
    for (int64_t i = 0; i < count; ++i) {
        if constexpr (kFormat == Format::kFloat32) {
            out[i] = std::bit_cast<uint32_t>(values[i]);
        } else {
            out[i] = kFormat == Format::kFloat16 ? round_half(values[i]) : round_bfloat16(values[i]);
        }
        fits &= is_finite(kFormat, out[i]);
    }
    return fits;
}

template <Format kFormat, class Word>
bool pack_panel(const SourceMatrix& source, int64_t panel, Word* out) {
    const int64_t k_padded = round_up(source.k, 64);
    bool fits = true;
    for (int64_t k = 0; k < k_padded; k += kBlock) {
        const int64_t left = source.k - k, count = left < 0 ? 0 : left < kBlock ? left : kBlock;
        Word* const block = out + word_of(kFormat, 0, k);
        for (int64_t column = 0; column < kPanel; ++column) {
            Word words[kBlock] = {};
            const int64_t row = panel * kPanel + column;
            if (row < source.n && count > 0) fits &= convert_row<kFormat>(source, row, k, count, words);
            for (int64_t i = 0; i < kBlock; ++i) block[word_of(kFormat, column, i)] = words[i];
        }
    }
    return fits;
}

template <Format kFormat, class Word>
bool pack(const SourceMatrix& source, std::byte* out, int64_t begin, int64_t end) {
    bool fits = true;
    for (int64_t panel = begin; panel < end; ++panel) {
        std::byte* to = out + panel * panel_bytes(kFormat, source.k);
        fits &= pack_panel<kFormat>(source, panel, reinterpret_cast<Word*>(to));
    }
    return fits;
}

float widen(Format format, uint32_t word) {
    return format == Format::kFloat32   ? std::bit_cast<float>(word)
           : format == Format::kFloat16 ? widen_half(static_cast<uint16_t>(word))
                                        : std::bit_cast<float>(word << 16);
}

}  // namespace

bool pack_float_panels(const SourceMatrix& source, Format format, std::byte* out, int64_t begin,
                       int64_t end) noexcept {
    switch (format) {
        case Format::kFloat32:
            return pack<Format::kFloat32, uint32_t>(source, out, begin, end);
        case Format::kFloat16:
            return pack<Format::kFloat16, uint16_t>(source, out, begin, end);
        default:
            return pack<Format::kBFloat16, uint16_t>(source, out, begin, end);
    }
}

void unpack_float_panels(const PackedWeight& weight, float* out) noexcept {
    const std::size_t bytes = weight.format == Format::kFloat32 ? 4 : 2;
    for (int64_t row = 0; row < weight.n; ++row) {
        const std::byte* panel = weight.data + row / kPanel * weight.panel_bytes;
        for (int64_t k = 0; k < weight.k; ++k) {
            uint32_t word = 0;
            std::memcpy(&word, panel + word_of(weight.format, row % kPanel, k) * static_cast<int64_t>(bytes),
                        bytes);
            out[row * weight.k + k] = widen(weight.format, word);
        }
    }
}

}  // namespace penstock
