// From the qkv product to the attention: per-head norm of q and k, RoPE, rounding; q out, k and v into their
// blocks. Layouts of a block and the formulas: KVLayer and RopeWriteArgs in kernels.h.
#include "kernels/kv_rows.h"
#include "kernels/norm_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// Where the first and the second of a pair lie: halves of the rotated dims, or side by side.
struct Pairs {
    F16 first, second;
};

PENSTOCK_INLINE Pairs split_pairs(const float* y, int n) {
    float first[kLanes] = {}, second[kLanes] = {};
    for (int i = 0; i < n; ++i) {
        first[i] = y[2 * i];
        second[i] = y[2 * i + 1];
    }
    return {load(first), load(second)};
}

PENSTOCK_INLINE void join_pairs(const Pairs& pairs, int n, float* y) {
    for (int i = 0; i < n; ++i) {
        y[2 * i] = pairs.first[i];
        y[2 * i + 1] = pairs.second[i];
    }
}

PENSTOCK_INLINE Pairs turn(const Pairs& p, F16 c, F16 s) {
    return {fma(p.first, c, -(p.second * s)), fma(p.second, c, p.first * s)};
}

void rotate(const RopeWriteArgs& args, int64_t position, float* y) {
    const int64_t half = args.rotary_dim / 2;
    const float* cosine = args.cos_table + position * half;
    const float* sine = args.sin_table + position * half;
    for (int64_t i = 0; i < half; i += kLanes) {
        const int n = half - i < kLanes ? static_cast<int>(half - i) : kLanes;
        const F16 c = load_n(cosine + i, n), s = load_n(sine + i, n);
        if (args.is_interleaved) {
            join_pairs(turn(split_pairs(y + 2 * i, n), c, s), n, y + 2 * i);
        } else {
            const Pairs turned = turn({load_n(y + i, n), load_n(y + half + i, n)}, c, s);
            store_n(y + i, turned.first, n);
            store_n(y + half + i, turned.second, n);
        }
    }
}

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
    if (args.rotary_dim) rotate(args, position, y);
}

void write_query(const KVLayer& kv, const float* q, int64_t at, void* out) {
    if (kv.dtype == KVDtype::kFloat32) {
        std::memcpy(static_cast<float*>(out) + at, q, static_cast<std::size_t>(kv.padded_dim) * 4);
        return;
    }
    for (int64_t d = 0; d < kv.padded_dim; d += kLanes)
        store_bf16(static_cast<uint16_t*>(out) + at + d, load(q + d));
}

}  // namespace

void rope_write(const RopeWriteArgs& args, const Batch& batch, int64_t kv_head, std::byte* scratch) noexcept {
    const KVLayer& kv = args.kv;
    const int64_t head_dim = kv.head_dim, dims = kv.padded_dim;
    const int64_t group = args.num_heads / kv.num_kv_heads;
    const int64_t key_at = args.num_heads * head_dim + kv_head * head_dim;
    const int64_t value_from = key_at + kv.num_kv_heads * head_dim;
    float *row = reinterpret_cast<float*>(scratch), *value = row + kMaxHeadDim;
    for (int64_t i = 0; i < args.num_moves; ++i) {
        const int32_t from = args.moves[2 * i], to = args.moves[2 * i + 1];
        copy_token(kv, kv.head(from / kBlockTokens, kv_head), from % kBlockTokens,
                   kv.head(to / kBlockTokens, kv_head), to % kBlockTokens);
    }
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
        write_token(kv, row, value, kv.head(table[slot / kBlockTokens], kv_head), slot % kBlockTokens);
    }
}

}  // namespace penstock::PENSTOCK_ISA
