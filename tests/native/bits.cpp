// The scalar kernels as a plain program, for processors that this machine only emulates: one line for each
// format and number of rows. INT lines end in a hash of all bits, which must be the same everywhere; lines of
// the float contracts end in values, which must be near (tools/aarch64.sh compares).
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "pack.h"

namespace penstock {

int g_break_invariance = 0;
namespace scalar {
const KernelTable& table() noexcept;
}

namespace {

constexpr int64_t kRows = 35, kColumns = 80, kDepth = 448;

std::vector<float> values(int64_t count, uint32_t state) {
    std::vector<float> out(static_cast<std::size_t>(count));
    for (float& x : out) {
        state = state * 1664525U + 1013904223U;
        x = static_cast<float>(static_cast<int32_t>(state)) * (1.0F / 2147483648.0F);
    }
    return out;
}

std::byte* aligned(int64_t bytes) {
    const auto size = static_cast<std::size_t>(round_up(bytes, 64));
    auto* p = static_cast<std::byte*>(std::aligned_alloc(64, size));
    if (p == nullptr) std::abort();
    std::memset(p, 0, size);
    return p;
}

void check(const char* name, Format format, OperandKernel* to_operand, LinearKernel* linear) {
    const std::vector<float> w = values(kColumns * kDepth, 7), x = values(kRows * kDepth, 8);
    const int64_t panels = (kColumns + kPanel - 1) / kPanel;
    PackedWeight weight{format, kColumns, kDepth, round_up(kDepth, 64), panels, panel_bytes(format, kDepth),
                        nullptr};
    std::byte* const packed = aligned(panels * weight.panel_bytes);
    if (!pack_panels({w.data(), Format::kFloat32, kColumns, kDepth, kDepth}, format, packed, 0, panels))
        std::abort();
    weight.data = packed;
    const OperandKind kind = operand_of(format);
    const Operand rows{kind, weight.k_padded, aligned(operand_bytes(kind, kRows, kDepth)),
                       reinterpret_cast<float*>(aligned(48 * (weight.k_padded / 128 + 1) * 4)),
                       reinterpret_cast<int32_t*>(aligned(48 * (weight.k_padded / 32) * 4))};
    to_operand(x.data(), kDepth, kDepth, rows, 0, kRows);
    std::byte* const scratch = aligned(kScratchBytes);
    for (const int64_t count : {int64_t{1}, int64_t{7}, kRows}) {
        std::vector<float> y(static_cast<std::size_t>(count * kColumns));
        linear(weight, rows, count, {y.data(), kColumns, nullptr, nullptr, 0}, 0, panels, scratch);
        if (kind == OperandKind::kInt8) {
            uint64_t hash = 1469598103934665603U;
            for (const float v : y) {
                uint32_t bits = 0;
                std::memcpy(&bits, &v, 4);
                hash = (hash ^ bits) * 1099511628211U;
            }
            std::printf("%s M=%" PRId64 " hash %016" PRIx64 "\n", name, count, hash);
        } else {
            std::printf("%s M=%" PRId64 " values %.9g %.9g %.9g\n", name, count,
                        static_cast<double>(y.front()), static_cast<double>(y[y.size() / 2]),
                        static_cast<double>(y.back()));
        }
    }
}

}  // namespace
}  // namespace penstock

int main() {
    using namespace penstock;
    const KernelTable& t = scalar::table();
    check("int8", Format::kInt8, t.operand_int8, t.linear_int8);
    check("int4_g32", Format::kInt4G32, t.operand_int8, t.linear_int4);
    check("int4_g64", Format::kInt4G64, t.operand_int8, t.linear_int4);
    check("int4_g128", Format::kInt4G128, t.operand_int8, t.linear_int4);
    check("bfloat16", Format::kBFloat16, t.operand_bfloat16, t.linear_bfloat16);
    check("float32", Format::kFloat32, t.operand_float32, t.linear_float32);
    check("float16", Format::kFloat16, t.operand_float32, t.linear_float16);
}
