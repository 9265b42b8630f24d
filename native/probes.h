// Small loops that measure what this machine can do: the floors every benchmark divides by.
#pragma once
#include <cstddef>
#include <cstdint>

namespace penstock {

// Reads `bytes` (a multiple of 4096), in address order or in four interleaved streams with prefetch
// (processors differ in which they serve better); returns something that depends on all of them.
using ReadProbe = uint64_t(const std::byte* data, int64_t bytes, bool in_order) noexcept;
// Runs `rounds` rounds of independent multiply-adds in registers; returns the operations done (multiply and
// add count two).
using FlopsProbe = double(int64_t rounds, float* sink) noexcept;

struct ProbeTable {
    ReadProbe* read;
    FlopsProbe* float32;
    FlopsProbe* int8;       // u8 x s8 dot products where the ISA has them, else the fp32 loop
    FlopsProbe* bfloat16;   // AMX or VDPBF16PS; null where bf16 products are fp32 ones
    FlopsProbe* tile_int8;  // AMX; null where there are no tiles
};

}  // namespace penstock
