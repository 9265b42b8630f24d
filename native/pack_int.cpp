// int8 and int4 panels. The definition, byte by byte, is weights/formats/int8.py and int4.py; the same bytes
// here.
#include <bit>
#include <cstring>

#include "pack_parts.h"

namespace penstock {
namespace {

constexpr float kSmallestAmax = 0x1p-118f;  // below it a scale would not be a normal number
constexpr float kLargestHalf = 65504.0f;
constexpr int64_t kStep = 64;  // K of one pass through a row, and what K is padded to

// One output column of a panel, 64 K at a time; past the source's N and K there are zeros.
struct Column {
    const SourceMatrix& source;
    int64_t row;

    void read(int64_t first, float* x) const {
        int64_t count = row < source.n ? source.k - first : 0;
        count = count < 0 ? 0 : count > kStep ? kStep : count;
        if (count > 0) widen_row(source, row, first, count, x);
        for (int64_t i = count; i < kStep; ++i) x[i] = 0;
    }
};

float largest_magnitude(const float* x, int64_t count) {
    int32_t largest = 0;  // magnitudes are ordered as their bits are, subnormals too where DAZ is set
    for (int64_t i = 0; i < count; ++i) {
        const int32_t magnitude = std::bit_cast<int32_t>(x[i]) & 0x7fffffff;
        largest = magnitude > largest ? magnitude : largest;
    }
    return std::bit_cast<float>(largest);
}

void pack_int8_column(const Column& column, int64_t k_padded, std::byte* panel, int64_t j) {
    float x[kStep], amax = 0;
    for (int64_t first = 0; first < k_padded; first += kStep) {
        column.read(first, x);
        const float part = largest_magnitude(x, kStep);
        amax = part > amax ? part : amax;
    }
    const float scale = amax < kSmallestAmax ? 0.0f : amax / 127.0f;
    const float divisor = scale == 0.0f ? 1.0f : scale;
    for (int64_t first = 0; first < k_padded; first += kStep) {
        int8_t code[kStep];
        column.read(first, x);
        for (int64_t i = 0; i < kStep; ++i) {
            const float shifted = x[i] / divisor + 12582912.0f;  // 1.5 * 2^23: rounds to nearest even
            code[i] = static_cast<int8_t>(std::bit_cast<int32_t>(shifted) - 0x4b400000);
        }
        std::byte* tile = panel + first / kStep * 2048 + j / 16 * 1024 + j % 16 * 4;
        for (int64_t r = 0; r < 16; ++r) std::memcpy(tile + r * 64, code + 4 * r, 4);
    }
    std::memcpy(panel + k_padded * kPanel + j * 4, &scale, 4);
}

// d of kernels.h, as its fp16 and widened.
struct GroupScale {
    uint16_t half;
    float wide;
};

GroupScale group_scale(const float* x, int64_t count) {
    const float magnitude = largest_magnitude(x, count);
    float largest = 0;
    for (int64_t i = count - 1; i >= 0; --i)
        if ((std::bit_cast<uint32_t>(x[i]) & 0x7fffffffU) == std::bit_cast<uint32_t>(magnitude))
            largest = x[i];
    float d = largest / -8.0f;
    d = d > kLargestHalf ? kLargestHalf : d < -kLargestHalf ? -kLargestHalf : d;
    const uint16_t half = round_half(d);
    return {half, widen_half(half)};
}

void quantize_group(const float* x, int64_t count, float d, uint8_t* code) {
    const bool is_zero = d == 0.0f;
    const float divisor = is_zero ? 1.0f : d;
    for (int64_t i = 0; i < count; ++i) {
        float place = (is_zero ? 0.0f : x[i] / divisor) + 8.5f;
        place = place < 0.0f ? 0.0f : place > 15.0f ? 15.0f : place;
        code[i] = static_cast<uint8_t>(static_cast<int32_t>(place));  // not negative: truncation is floor
    }
}

void pack_int4_column(const Column& column, int64_t k_padded, int64_t group, std::byte* panel, int64_t j) {
    std::byte* block = panel;
    for (int64_t first = 0; first < k_padded; first += 128) {
        const int64_t length = k_padded - first < 128 ? k_padded - first : 128;
        const int64_t g = group < length ? group : length;
        float x[128];
        uint8_t code[128];
        for (int64_t i = 0; i < length; i += kStep) column.read(first + i, x + i);
        std::byte* scales = block + length * 16;
        for (int64_t i = 0; i < length / g; ++i) {
            const GroupScale d = group_scale(x + i * g, g);
            std::memcpy(scales + i * 64 + j * 2, &d.half, 2);
            quantize_group(x + i * g, g, d.wide, code + i * g);
        }
        for (int64_t kb = 0; kb < length / kStep; ++kb) {
            std::byte* tile = block + kb * 1024 + j / 16 * 512 + j % 16 * 4;
            const uint8_t* low = code + kb * kStep;
            for (int64_t r = 0; r < 8; ++r)
                for (int64_t i = 0; i < 4; ++i)
                    tile[r * 64 + i] = static_cast<std::byte>(low[4 * r + i] | low[32 + 4 * r + i] << 4);
        }
        block = scales + length / g * 64;
    }
}

void unpack_int8_column(const PackedWeight& w, const std::byte* panel, int64_t j, float* out) {
    float scale;
    std::memcpy(&scale, panel + w.k_padded * kPanel + j * 4, 4);
    for (int64_t k = 0; k < w.k; ++k) {
        const std::byte code = panel[k / 64 * 2048 + j / 16 * 1024 + k % 64 / 4 * 64 + j % 16 * 4 + k % 4];
        out[k] = static_cast<float>(static_cast<int8_t>(code)) * scale;
    }
}

void unpack_int4_column(const PackedWeight& w, const std::byte* panel, int64_t j, float* out) {
    const std::byte* block = panel;
    for (int64_t first = 0; first < w.k_padded; first += 128) {
        const int64_t length = w.k_padded - first < 128 ? w.k_padded - first : 128;
        const int64_t group = group_of(w.format), g = group < length ? group : length;
        const std::byte* scales = block + length * 16;
        for (int64_t k = 0; k < length && first + k < w.k; ++k) {
            uint16_t half;
            std::memcpy(&half, scales + k / g * 64 + j * 2, 2);
            const std::byte pair = block[k / 64 * 1024 + j / 16 * 512 + k % 32 / 4 * 64 + j % 16 * 4 + k % 4];
            const int code = static_cast<int>(k % 64 < 32 ? pair & std::byte{15} : pair >> 4);
            out[first + k] = static_cast<float>(code - 8) * widen_half(half);
        }
        block = scales + length / g * 64;
    }
}

}  // namespace

bool pack_int_panels(const SourceMatrix& source, Format format, std::byte* out, int64_t begin,
                     int64_t end) noexcept {
    const int64_t k_padded = round_up(source.k, kStep), group = group_of(format);
    for (int64_t p = begin; p < end; ++p) {
        std::byte* panel = out + p * panel_bytes(format, source.k);
        for (int64_t j = 0; j < kPanel; ++j) {
            const Column column{source, p * kPanel + j};
            if (format == Format::kInt8) {
                pack_int8_column(column, k_padded, panel, j);
            } else {
                pack_int4_column(column, k_padded, group, panel, j);
            }
        }
    }
    return true;
}

void unpack_int_panels(const PackedWeight& w, float* out) noexcept {
    for (int64_t n = 0; n < w.n; ++n) {
        const std::byte* panel = w.data + n / kPanel * w.panel_bytes;
        if (w.format == Format::kInt8) {
            unpack_int8_column(w, panel, n % kPanel, out + n * w.k);
        } else {
            unpack_int4_column(w, panel, n % kPanel, out + n * w.k);
        }
    }
}

}  // namespace penstock
