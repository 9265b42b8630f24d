// From the qkv product to the attention: per-head norm of q and k, RoPE, rounding; q out, k and v into their
// blocks. Layouts of a block and the formulas: KVLayer and RopeWriteArgs in kernels.h.
#include "kernels/norm_row.h"
#include "kernels/rope_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// One head's fp32 row in `y`, zeros beyond head_dim; normed where there is a weight, rotated where asked.
// `row` are the statistics of all heads together, if the norm is over them.
void prepare_head(const RopeWriteArgs& args, const float* x, const NormSpec& norm, int64_t head,
                  const Statistics& row, int64_t position, float* y) {
    const int64_t head_dim = args.kv.head_dim;
    std::memcpy(y, x, static_cast<std::size_t>(head_dim) * 4);
    for (int64_t d = head_dim; d < args.kv.padded_dim; ++d) y[d] = 0.0f;
    if (norm.weight) {
        NormSpec own = norm;
        if (args.weights_each_head) own.weight += head * head_dim;
        scale_row(y, own, head_dim, args.norms_row ? row : statistics(y, head_dim, norm), y);
    }
    const int64_t half = args.rotary_dim / 2;
    if (half)
        rotate(args.cos_table + position * half, args.sin_table + position * half, half, args.is_interleaved,
               y);
}

}  // namespace

void rope_write(const RopeWriteArgs& args, const Batch& batch, int64_t kv_head, std::byte* scratch) noexcept {
    const KVLayer& kv = args.kv;
    const int64_t head_dim = kv.head_dim, dims = kv.padded_dim;
    const int64_t group = args.num_heads / kv.num_kv_heads;
    const int64_t key_at = args.num_heads * head_dim + kv_head * head_dim;
    const int64_t value_from = key_at + kv.num_kv_heads * head_dim;
    float *row = reinterpret_cast<float*>(scratch), *value = row + kMaxHeadDim;
    move_tokens(kv, args.moves, args.num_moves, kv_head);
    for (int64_t t = 0; t < batch.num_rows; ++t) {
        const float* x = args.qkv + t * args.stride;
        const int64_t position = batch.positions[t], slot = batch.slots[t];
        Statistics q_row{}, k_row{};  // every KV head's unit takes them anew: cheap beside its products
        if (args.norms_row) {
            q_row = statistics(x, args.num_heads * head_dim, args.q_norm);
            k_row = statistics(x + args.num_heads * head_dim, kv.num_kv_heads * head_dim, args.k_norm);
        }
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
            prepare_head(args, x + h * head_dim, args.q_norm, h, q_row, position, row);
            write_query(kv, row, (t * args.num_heads + h) * dims, args.q);
        }
        const int32_t* table = args.block_table + batch.row_request[t] * batch.max_blocks;
        prepare_head(args, x + key_at, args.k_norm, kv_head, k_row, position, row);
        std::memcpy(value, x + value_from, static_cast<std::size_t>(head_dim) * 4);
        for (int64_t d = head_dim; d < dims; ++d) value[d] = 0.0f;
        std::byte* const head = kv.head(table[slot / kBlockTokens], kv_head);
        write_key(kv, row, head, slot % kBlockTokens);
        write_value(kv, value, head, slot % kBlockTokens);
    }
}

}  // namespace penstock::PENSTOCK_ISA
