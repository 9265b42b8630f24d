#include "self_test.h"

#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

#include "pack.h"
#include "threads.h"

namespace penstock {
namespace {

struct Free {
    void operator()(std::byte* p) const noexcept { std::free(p); }
};
using Memory = std::unique_ptr<std::byte, Free>;

Memory zeroed(int64_t bytes) {
    const auto size = static_cast<std::size_t>(round_up(bytes, 64));
    auto* p = static_cast<std::byte*>(std::aligned_alloc(64, size));
    if (p == nullptr) throw std::bad_alloc();
    std::memset(p, 0, size);
    return Memory(p);
}

// Deterministic values of both signs over several binades, some of them zero, some so small that their
// products with each other are subnormal.
void fill(float* out, int64_t count, uint32_t state) {
    for (int64_t i = 0; i < count; ++i) {
        state = state * 1664525U + 1013904223U;
        const auto mantissa = static_cast<float>(static_cast<int32_t>(state)) * (1.0F / 2147483648.0F);
        const float size = (state >> 27) == 1 ? 0x1p-66F : static_cast<float>(1 << (state >> 5 & 7));
        out[i] = (state >> 27) == 0 ? 0.0F : mantissa * size;
    }
}

// Panels of codes that nothing here packs: of these bytes every two are a finite fp16.
void fill_codes(std::byte* out, int64_t count, uint32_t state) {
    for (int64_t i = 0; i < count; ++i) {
        state = state * 1664525U + 1013904223U;
        out[i] = static_cast<std::byte>(state >> 24 & 0xbbU);
    }
}

// 192 = one whole block of K and a short one; 48 columns = a panel and a half; 35 rows = two tiles and a
// rest.
constexpr int64_t kRows = 35, kColumns = 48, kDepth = 192;
constexpr int64_t kRowCounts[] = {1, 4, 16, kRows};

class LinearCheck {
  public:
    LinearCheck() : x_(zeroed(kRows * kDepth * 4)), w_(zeroed(kColumns * kDepth * 4)) {
        fill(floats(x_), kRows * kDepth, 1);
        fill(floats(w_), kColumns * kDepth, 2);
    }

    bool agrees(Format format, OperandKind kind, const KernelTable& table,
                const KernelTable& fallback) const {
        OperandKernel* const operand =
            kind == OperandKind::kInt8 ? fallback.operand_int8 : fallback.operand_bfloat16;
        LinearKernel *const one = linear_kernel(table, format, kind), *const other = linear_kernel(
                                                                          fallback, format, kind);
        const int64_t panels = (kColumns + kPanel - 1) / kPanel, bytes = panel_bytes(format, kDepth);
        const Memory packed = zeroed(panels * bytes);
        if (has_codes(format) && !is_quantizer(format)) {
            fill_codes(packed.get(), panels * bytes, 3);
        } else {
            pack_panels({w_.get(), Format::kFloat32, kColumns, kDepth, kDepth}, format, packed.get(), 0,
                        panels);
        }
        const PackedWeight weight{format, kColumns, kDepth,      round_up(kDepth, 64),
                                  panels, bytes,    packed.get()};
        const Memory data = zeroed(operand_bytes(kind, kRows, kDepth));
        const Memory scale = zeroed(round_up(kRows, kTileRows) * (weight.k_padded / 128 + 1) * 4);
        const Memory sum = zeroed(round_up(kRows, kTileRows) * (weight.k_padded / 32) * 4);
        const Operand rows{kind, weight.k_padded, data.get(), floats(scale),
                           reinterpret_cast<int32_t*>(sum.get())};
        operand(floats(x_), kDepth, kDepth, rows, 0, kRows);
        const Memory scratch = zeroed(kScratchBytes), y = zeroed(kRows * kColumns * 4),
                     z = zeroed(kRows * kColumns * 4);
        for (const int64_t count : kRowCounts) {
            one(weight, rows, count, {floats(y), kColumns, nullptr, nullptr, 0}, 0, panels, scratch.get());
            other(weight, rows, count, {floats(z), kColumns, nullptr, nullptr, 0}, 0, panels, scratch.get());
            if (std::memcmp(y.get(), z.get(), static_cast<std::size_t>(count * kColumns) * 4) != 0)
                return false;
        }
        return true;
    }

  private:
    static float* floats(const Memory& memory) { return reinterpret_cast<float*>(memory.get()); }
    Memory x_, w_;
};

const char* first_difference_here(const KernelTable& table, const KernelTable& fallback) {
    const LinearCheck linear;
    if (!linear.agrees(Format::kBFloat16, OperandKind::kBFloat16, table, fallback)) return "linear_bfloat16";
    // Of each width of codes one of every group and of every trailer.
    for (const Format format : {Format::kInt8, Format::kInt8G32, Format::kInt8G64, Format::kInt8G128Zero,
                                Format::kInt8G32Min, Format::kInt8Super, Format::kInt8Super16}) {
        if (!linear.agrees(format, OperandKind::kInt8, table, fallback)) return "linear_int8";
        if (!linear.agrees(format, OperandKind::kBFloat16, table, fallback)) return "linear_codes8";
    }
    for (const Format format : {Format::kInt4G32, Format::kInt4G64, Format::kInt4G128, Format::kInt4G64Zero,
                                Format::kInt4G32Min, Format::kInt4Super}) {
        if (!linear.agrees(format, OperandKind::kInt8, table, fallback)) return "linear_int4";
        if (!linear.agrees(format, OperandKind::kBFloat16, table, fallback)) return "linear_codes4";
    }
    return nullptr;
}

}  // namespace

const char* first_difference(const KernelTable& table, const KernelTable& fallback) {
    struct Check {
        const KernelTable &table, &fallback;
        const char* found;
    } check{table, fallback, nullptr};
    Pool pool(1);  // sets FTZ and DAZ, as in a step
    pool.run({[](void* self, int) noexcept {
                  auto& c = *static_cast<Check*>(self);
                  c.found = first_difference_here(c.table, c.fallback);
              },
              &check});
    return check.found;
}

}  // namespace penstock
