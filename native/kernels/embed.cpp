// Rows of an embedding table, widened to fp32: the first activation of a step.
#include "kernels/codes.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// Column `token` of packed codes: what the codes stand for, fma(code, scale, offset) each.
void read_column(const PackedWeight& w, int64_t token, float* y) {
    const Coding coding = coding_of(w.format);
    const std::byte* const panel = w.data + token / kPanel * w.panel_bytes;
    const int64_t j = token % kPanel, tile = coding.bits * 128;
    const std::byte* block = panel;
    GroupScales scales;
    float channel = 0.0f;
    if (coding.group == 0) std::memcpy(&channel, panel + w.k_padded * kPanel + j * 4, 4);
    for (int64_t first = 0; first < w.k; first += kSuperblockK) {
        const int64_t rest = w.k_padded - first, length = rest < kSuperblockK ? rest : kSuperblockK;
        const int64_t group = coding.group == 0 ? length : coding.group < length ? coding.group : length;
        read_trailer(coding, block + length * 4 * coding.bits, length, scales);
        for (int64_t k = 0; k < length && first + k < w.k; ++k) {
            const std::byte* at = block + k / 64 * 2 * tile + j / 16 * tile + j % 16 * 4;
            float code;
            if (coding.bits == 8) {
                code = static_cast<int8_t>(at[k % 64 / 4 * 64 + k % 4]);
            } else {
                const auto pair = static_cast<int32_t>(at[k % 32 / 4 * 64 + k % 4]);
                code = static_cast<float>((k % 64 < 32 ? pair & 15 : pair >> 4) - coding.bias);
            }
            const float scale = coding.group == 0 ? channel : scales.scale[k / group][j];
            const float offset = has_offset(coding) ? scales.offset[k / group][j] : 0.0f;
            y[first + k] = __builtin_fmaf(code, scale, offset);
        }
        block += superblock_bytes(coding, length);
    }
}

}  // namespace

void embed(const EmbedArgs& args, const Batch& batch, int64_t row_begin, int64_t row_end) noexcept {
    const int64_t whole = args.width / kLanes * kLanes;
    for (int64_t row = row_begin; row < row_end; ++row) {
        const int64_t first = batch.tokens[row] * args.width;
        float* y = args.y + row * args.width;
        if (has_codes(args.format)) {
            read_column(args.codes, batch.tokens[row], y);
        } else if (args.format == Format::kFloat32) {
            std::memcpy(y, static_cast<const float*>(args.table) + first,
                        static_cast<std::size_t>(args.width) * 4);
        } else if (args.format == Format::kFloat16) {
            const uint16_t* x = static_cast<const uint16_t*>(args.table) + first;
            for (int64_t i = 0; i < whole; i += kLanes) store(y + i, widen_fp16(x + i));
            for (int64_t i = whole; i < args.width; ++i) y[i] = widen_fp16_1(x[i]);
        } else {
            const uint16_t* x = static_cast<const uint16_t*>(args.table) + first;
            for (int64_t i = 0; i < whole; i += kLanes) store(y + i, widen_bf16(x + i));
            for (int64_t i = whole; i < args.width; ++i) y[i] = widen_bf16_1(x[i]);
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
