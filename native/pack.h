// Checkpoint rows to packed panels (layouts: kernels.h), at load time. Called for panel ranges from the
// pool's threads.
#pragma once
#include "kernels.h"

namespace penstock {

// Row-major [n, k] as a checkpoint has it: kFloat32, kFloat16 or kBFloat16, rows `stride` elements apart.
struct SourceMatrix {
    const void* data;
    Format dtype;
    int64_t n, k, stride;
};

// Packs panels [begin, end) of `format` into out (which holds all panels). False when a source value is NaN
// or Inf.
//   float formats: same dtype, or bf16 from fp16/fp32 by RNE (lossy, asked for), or fp32 from fp16/bf16
//   (exact) int8: per row (output channel) scale = amax/127, q = rne(x/scale); amax = 0: scale 0 int4: per
//   group d = (signed value of largest magnitude)/-8 rounded to fp16, code = clamp(floor(x/d + 8.5), 0, 15);
//   d = 0: code 8
bool pack_panels(const SourceMatrix& source, Format format, std::byte* out, int64_t begin,
                 int64_t end) noexcept;

// The inverse, for tests and for `unpack`: fp32 values the kernels compute with. out is row-major [n, k].
void unpack_panels(const PackedWeight& weight, float* out) noexcept;

bool all_finite(const void* data, Format dtype, int64_t count) noexcept;

}  // namespace penstock
