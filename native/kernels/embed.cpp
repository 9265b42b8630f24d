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
                const int32_t stored = k % 64 < 32 ? pair & 15 : pair >> 4;
                code = is_e2m1(coding) ? kE2M1[stored] : static_cast<float>(stored - coding.bias);
            }
            const float scale = coding.group == 0 ? channel : scales.scale[k / group][j];
            const float offset = has_offset(coding) ? scales.offset[k / group][j] : 0.0f;
            y[first + k] = __builtin_fmaf(code, scale, offset);
        }
        block += superblock_bytes(coding, length);
    }
}

// The first `count` of 16 values of a table, from element `at` on.
PENSTOCK_INLINE F16 widen(const EmbedTable& table, int64_t at, int64_t count) {
    if (table.format == Format::kFloat32) {
        const float* x = static_cast<const float*>(table.rows) + at;
        return count >= kLanes ? load(x) : load_n(x, static_cast<int>(count));
    }
    const uint16_t* x = static_cast<const uint16_t*>(table.rows) + at;
    uint16_t tail[kLanes] = {};
    if (count < kLanes) {
        std::memcpy(tail, x, static_cast<std::size_t>(count) * 2);
        x = tail;
    }
    return table.format == Format::kFloat16 ? widen_fp16(x) : widen_bf16(x);
}

}  // namespace

void embed(const EmbedArgs& args, const Batch& batch, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t row = row_begin; row < row_end; ++row) {
        const int64_t token = batch.tokens[row] * args.width;
        const int64_t position = (int64_t{batch.positions[row]} + args.position_offset) * args.width;
        float* y = args.y + row * args.width;
        const bool is_coded = has_codes(args.tokens.format);
        if (is_coded) read_column(args.codes, batch.tokens[row], y);
        for (int64_t i = 0; i < args.width; i += kLanes) {
            const int64_t left = args.width - i;
            const F16 read = is_coded ? load_n(y + i, static_cast<int>(left < kLanes ? left : kLanes))
                                      : widen(args.tokens, token + i, left);
            F16 v = read * args.scale;  // 1 is exact
            if (args.positions.rows) v = v + widen(args.positions, position + i, left);
            if (left >= kLanes)
                store(y + i, v);
            else
                store_n(y + i, v, static_cast<int>(left));
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
