// One row of one superblock is taken apart, then its codes and parts go to their column of the panel. The
// bytes are those of weights/coding.py, the blocks those of weights/gguf_blocks.py.
#include "pack_codes.h"

#include <cstring>

namespace penstock {
namespace {

constexpr int64_t kSuperblockK = 128;
constexpr int64_t kMaxPartBytes = 16;  // of a superblock: eight groups of two bytes

struct Pieces {
    uint8_t codes[kSuperblockK];  // as signed bytes
    uint8_t parts[kMaxParts][kMaxPartBytes];
};

constexpr int64_t groups_in(const Coding& c, int64_t length) {
    return c.group < length ? length / c.group : 1;
}

void low_and_high(const uint8_t* pairs, uint8_t* low, uint8_t* high, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
        low[i] = pairs[i] & 15;
        high[i] = static_cast<uint8_t>(pairs[i] >> 4);
    }
}

void subtract(uint8_t* codes, int64_t count, int bias) {
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(codes[i] - bias);
}

// Types of 32 elements: where the fifth bits (-1: none) and the nibbles are, and what they count from.
struct Block32 {
    int64_t bytes, fifth, codes;
    int bias;
    bool has_min;
};
constexpr Block32 kQ4_0{18, -1, 2, 8, false}, kQ4_1{20, -1, 4, 0, true}, kQ5_0{22, 2, 6, 16, false},
    kQ5_1{24, 4, 8, 0, true}, kQ8_0{34, -1, 2, 0, false};

template <const Block32& kType>
void read_32(const uint8_t* row, int64_t first, int64_t count, Pieces& out) {
    for (int64_t b = 0; b < count / 32; ++b) {
        const uint8_t* const block = row + (first / 32 + b) * kType.bytes;
        uint8_t* const codes = out.codes + 32 * b;
        std::memcpy(out.parts[0] + 2 * b, block, 2);
        if (kType.has_min) std::memcpy(out.parts[1] + 2 * b, block + 2, 2);
        if (kType.bytes == 34) {
            std::memcpy(codes, block + kType.codes, 32);
            continue;
        }
        low_and_high(block + kType.codes, codes, codes + 16, 16);
        if (kType.fifth >= 0) {
            uint32_t bits;
            std::memcpy(&bits, block + kType.fifth, 4);
            for (int i = 0; i < 32; ++i) codes[i] |= static_cast<uint8_t>((bits >> i & 1U) << 4);
        }
        subtract(codes, 32, kType.bias);
    }
}

// d, dmin and four of the eight six-bit scales and minima of a block of 256.
void read_super(const uint8_t* block, int64_t half, Pieces& out) {
    const uint8_t *low = block + 4, *high = block + 8, *last = block + 12;
    std::memcpy(out.parts[0], block, 2);
    std::memcpy(out.parts[1], block + 2, 2);
    for (int i = 0; i < 4; ++i) {
        out.parts[2][i] = static_cast<uint8_t>(half == 0 ? low[i] & 63 : (last[i] & 15) | (low[i] >> 6) << 4);
        out.parts[3][i] = static_cast<uint8_t>(half == 0 ? high[i] & 63 : last[i] >> 4 | (high[i] >> 6) << 4);
    }
}

void read_q4_k(const uint8_t* row, int64_t first, int64_t, Pieces& out) {
    const uint8_t* const block = row + first / 256 * 144;
    const int64_t half = first / 128 % 2;
    read_super(block, half, out);
    for (int64_t i = 0; i < 2; ++i)
        low_and_high(block + 16 + 64 * half + 32 * i, out.codes + 64 * i, out.codes + 64 * i + 32, 32);
}

void read_q5_k(const uint8_t* row, int64_t first, int64_t, Pieces& out) {
    const uint8_t* const block = row + first / 256 * 176;
    const int64_t half = first / 128 % 2;
    read_super(block, half, out);
    for (int64_t i = 0; i < 2; ++i)
        low_and_high(block + 48 + 64 * half + 32 * i, out.codes + 64 * i, out.codes + 64 * i + 32, 32);
    for (int64_t i = 0; i < 128; ++i)
        out.codes[i] |= static_cast<uint8_t>((block[16 + i % 32] >> (4 * half + i / 32) & 1) << 4);
}

void read_q6_k(const uint8_t* row, int64_t first, int64_t, Pieces& out) {
    const uint8_t* const block = row + first / 256 * 210;
    const int64_t half = first / 128 % 2;
    low_and_high(block + 64 * half, out.codes, out.codes + 64, 64);
    for (int64_t i = 0; i < 128; ++i)
        out.codes[i] |= static_cast<uint8_t>((block[128 + 32 * half + i % 32] >> (2 * (i / 32)) & 3) << 4);
    subtract(out.codes, 128, 32);
    std::memcpy(out.parts[0], block + 208, 2);
    std::memcpy(out.parts[1], block + 192 + 8 * half, 8);
}

void read_rows(const CodeSource& source, const Coding& coding, int64_t row, int64_t first, int64_t count,
               Pieces& out) {
    std::memcpy(out.codes, source.data + row * source.row_bytes + first, static_cast<std::size_t>(count));
    const auto parts = parts_of(coding.trailer);
    for (std::size_t i = 0; i < kMaxParts && parts[i].bytes > 0; ++i) {
        const int64_t span = span_of(parts[i], coding, source.k);
        const int64_t all = (source.k + span - 1) / span, at = first / span;
        const int64_t end = (first + count + span - 1) / span;
        std::memcpy(out.parts[i], source.parts[i] + (row * all + at) * parts[i].bytes,
                    static_cast<std::size_t>((end - at) * parts[i].bytes));
    }
}

// `count` K from `first` on; the rest of `out` stays zero.
void read_pieces(const CodeSource& source, const Coding& coding, int64_t row, int64_t first, int64_t count,
                 Pieces& out) {
    const auto* data = reinterpret_cast<const uint8_t*>(source.data) + row * source.row_bytes;
    switch (source.layout) {
        case CodeLayout::kRows:
            return read_rows(source, coding, row, first, count, out);
        case CodeLayout::kQ4_0:
            return read_32<kQ4_0>(data, first, count, out);
        case CodeLayout::kQ4_1:
            return read_32<kQ4_1>(data, first, count, out);
        case CodeLayout::kQ5_0:
            return read_32<kQ5_0>(data, first, count, out);
        case CodeLayout::kQ5_1:
            return read_32<kQ5_1>(data, first, count, out);
        case CodeLayout::kQ8_0:
            return read_32<kQ8_0>(data, first, count, out);
        case CodeLayout::kQ4_K:
            return read_q4_k(data, first, count, out);
        case CodeLayout::kQ5_K:
            return read_q5_k(data, first, count, out);
        case CodeLayout::kQ6_K:
            return read_q6_k(data, first, count, out);
    }
}

void store_codes(const Coding& coding, Pieces& pieces, int64_t length, std::byte* block, int64_t j) {
    if (coding.bits == 8) {
        for (int64_t kb = 0; kb < length / 64; ++kb) {
            std::byte* const tile = block + kb * 2048 + j / 16 * 1024 + j % 16 * 4;
            for (int64_t r = 0; r < 16; ++r) std::memcpy(tile + r * 64, pieces.codes + kb * 64 + 4 * r, 4);
        }
        return;
    }
    subtract(pieces.codes, kSuperblockK, -coding.bias);
    for (int64_t kb = 0; kb < length / 64; ++kb) {
        std::byte* const tile = block + kb * 1024 + j / 16 * 512 + j % 16 * 4;
        for (int64_t r = 0; r < 8; ++r) {
            uint32_t low, high;
            std::memcpy(&low, pieces.codes + kb * 64 + 4 * r, 4);
            std::memcpy(&high, pieces.codes + kb * 64 + 32 + 4 * r, 4);
            const uint32_t both = low | (high & 0x0f0f0f0fU) << 4;
            std::memcpy(tile + r * 64, &both, 4);
        }
    }
}

// False: a value of two bytes, which is fp16, or of four, fp32, is not finite, or an exponent stands for NaN.
bool store_parts(const Coding& coding, const Pieces& pieces, int64_t length, std::byte* trailer, int64_t j) {
    bool finite = true;
    const auto parts = parts_of(coding.trailer);
    for (std::size_t i = 0; i < kMaxParts && parts[i].bytes > 0; ++i) {
        const int64_t bytes = parts[i].bytes, count = parts[i].per_group ? groups_in(coding, length) : 1;
        for (int64_t g = 0; g < count; ++g) {
            const uint8_t* const value = pieces.parts[i] + g * bytes;
            std::memcpy(trailer + (g * kPanel + j) * bytes, value, static_cast<std::size_t>(bytes));
            finite &= bytes == 1   ? coding.trailer != Trailer::kExponent || value[0] != 255
                      : bytes == 2 ? (value[1] & 0x7c) != 0x7c
                                   : (value[3] & 0x7f) != 0x7f || (value[2] & 0x80) == 0;
        }
        trailer += round_up(count * kPanel * bytes, 64);
    }
    return finite;
}

}  // namespace

std::array<TrailerPart, kMaxParts> parts_of(Trailer trailer) noexcept {
    switch (trailer) {
        case Trailer::kScale:
            return {{{2, true}, {}, {}, {}}};
        case Trailer::kZero:
            return {{{2, true}, {1, true}, {}, {}}};
        case Trailer::kMin:
            return {{{2, true}, {2, true}, {}, {}}};
        case Trailer::kSuper:
            return {{{2, false}, {2, false}, {1, true}, {1, true}}};
        case Trailer::kSuperScale:
            return {{{2, false}, {1, true}, {}, {}}};
        case Trailer::kExponent:
            return {{{1, true}, {}, {}, {}}};
        case Trailer::kChannel:
            return {{{4, false}, {}, {}, {}}};
        default:
            return {};
    }
}

int64_t span_of(const TrailerPart& part, const Coding& coding, int64_t k) noexcept {
    return coding.trailer == Trailer::kChannel ? k : part.per_group ? coding.group : kSuperblockK;
}

bool holds(Format format, CodeLayout layout) noexcept {
    switch (layout) {
        case CodeLayout::kRows:
            return has_codes(format);
        case CodeLayout::kQ4_0:
            return format == Format::kInt4G32;
        case CodeLayout::kQ4_1:
            return format == Format::kInt4G32Min;
        case CodeLayout::kQ5_0:
        case CodeLayout::kQ8_0:
            return format == Format::kInt8G32;
        case CodeLayout::kQ5_1:
            return format == Format::kInt8G32Min;
        case CodeLayout::kQ4_K:
            return format == Format::kInt4Super;
        case CodeLayout::kQ5_K:
            return format == Format::kInt8Super;
        case CodeLayout::kQ6_K:
            return format == Format::kInt8Super16;
    }
    return false;
}

int64_t block_row_bytes(CodeLayout layout, int64_t k) noexcept {
    static constexpr int64_t kBytes[] = {1,           kQ4_0.bytes, kQ4_1.bytes, kQ5_0.bytes, kQ5_1.bytes,
                                         kQ8_0.bytes, 144,         176,         210};
    const int64_t elements = layout == CodeLayout::kRows ? 1 : layout >= CodeLayout::kQ4_K ? 256 : 32;
    return k % elements == 0 ? k / elements * kBytes[static_cast<int>(layout)] : 0;
}

bool pack_code_panels(const CodeSource& source, Format format, std::byte* out, int64_t begin,
                      int64_t end) noexcept {
    const Coding coding = coding_of(format);
    const int64_t k_padded = round_up(source.k, 64);
    bool finite = true;
    for (int64_t p = begin; p < end; ++p) {
        std::byte* const panel = out + p * panel_bytes(format, source.k);
        std::byte* block = panel;
        for (int64_t first = 0; first < k_padded; first += kSuperblockK) {
            const int64_t padded = k_padded - first < kSuperblockK ? k_padded - first : kSuperblockK;
            const int64_t count = source.k - first < padded ? source.k - first : padded;
            const int64_t size = superblock_bytes(coding, padded), codes = padded * 4 * coding.bits;
            std::memset(block + codes, 0, static_cast<std::size_t>(size - codes));
            for (int64_t j = 0; j < kPanel; ++j) {
                Pieces pieces{};
                const int64_t row = p * kPanel + j;
                if (row < source.n) read_pieces(source, coding, row, first, count, pieces);
                store_codes(coding, pieces, padded, block, j);
                std::byte* const trailer =
                    coding.trailer == Trailer::kChannel ? panel + k_padded * kPanel : block + codes;
                finite &= store_parts(coding, pieces, padded, trailer, j);
            }
            block += size;
        }
    }
    return finite;
}

}  // namespace penstock
