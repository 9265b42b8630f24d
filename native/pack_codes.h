// Integer codes as checkpoints store them to packed panels, at load time; from the pool's threads.
#pragma once
#include <array>

#include "kernels.h"

namespace penstock {

// How rows are stored: ggml's blocks (weights/gguf_blocks.py draws them), or one code per byte with the parts
// of the format's trailer beside them (CodedRows of weights/coding.py).
enum class CodeLayout : uint8_t { kRows, kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ4_K, kQ5_K, kQ6_K };

constexpr int kMaxParts = 4;

// A part of a trailer: bytes of one value, and whether there is one per group (else one per superblock; of a
// channel's scale one per column, at the panel's end).
struct TrailerPart {
    int64_t bytes;  // 0: no such part
    bool per_group;
};
std::array<TrailerPart, kMaxParts> parts_of(Trailer trailer) noexcept;
// K of one value of a part, in rows of k.
int64_t span_of(const TrailerPart& part, const Coding& coding, int64_t k) noexcept;

struct CodeSource {
    CodeLayout layout;
    int64_t n, k;
    const std::byte* data;  // [n][row_bytes]
    int64_t row_bytes;
    std::array<const std::byte*, kMaxParts> parts{};  // kRows: [n][values of the part]
};

// The format that holds a layout's codes; of kRows any. A row of ggml's blocks is this long, 0 where K is no
// multiple of theirs.
bool holds(Format format, CodeLayout layout) noexcept;
int64_t block_row_bytes(CodeLayout layout, int64_t k) noexcept;

// Packs panels [begin, end) into out, which holds all of them. False: a scale is NaN or Inf.
bool pack_code_panels(const CodeSource& source, Format format, std::byte* out, int64_t begin,
                      int64_t end) noexcept;

}  // namespace penstock
