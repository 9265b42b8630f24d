// From the products to the attention of latents: queries out of their two parts, the normed latent and the
// key beside it into their block. Arguments: LatentWriteArgs in kernels.h.
#include "kernels/norm_row.h"
#include "kernels/rope_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// A latent and what turns beside it in `row`, zeros beyond head_dim.
void put_together(const LatentWriteArgs& args, const float* latent, const float* turning, int64_t position,
                  float* row) {
    const int64_t low = args.kv.latent_dim, rope = args.kv.head_dim - low;
    std::memcpy(row, latent, static_cast<std::size_t>(low) * 4);
    std::memcpy(row + low, turning, static_cast<std::size_t>(rope) * 4);
    for (int64_t d = args.kv.head_dim; d < args.kv.padded_dim; ++d) row[d] = 0.0f;
    const int64_t half = rope / 2;
    rotate(args.cos_table + position * half, args.sin_table + position * half, half, args.is_interleaved,
           row + low);
}

}  // namespace

void latent_query(const LatentWriteArgs& args, const Batch& batch, int64_t row_begin, int64_t row_end,
                  std::byte* scratch) noexcept {
    const KVLayer& kv = args.kv;
    const int64_t low = kv.latent_dim, rope = kv.head_dim - low;
    float* const row = reinterpret_cast<float*>(scratch);
    for (int64_t t = row_begin; t < row_end; ++t)
        for (int64_t at = t * args.num_heads; at < (t + 1) * args.num_heads; ++at) {
            put_together(args, args.q_latent + at * low, args.q_rope + at * rope, batch.positions[t], row);
            write_query(kv, row, at * kv.padded_dim, args.q);
        }
}

void latent_key(const LatentWriteArgs& args, const Batch& batch, std::byte* scratch) noexcept {
    const KVLayer& kv = args.kv;
    float* const row = reinterpret_cast<float*>(scratch);
    move_tokens(kv, args.moves, args.num_moves, 0);
    for (int64_t t = 0; t < batch.num_rows; ++t) {
        const float* x = args.latent + t * kv.head_dim;
        put_together(args, x, x + kv.latent_dim, batch.positions[t], row);
        scale_row(row, args.norm, kv.latent_dim, statistics(row, kv.latent_dim, args.norm), row);
        const int32_t* table = args.block_table + batch.row_request[t] * batch.max_blocks;
        const int64_t slot = batch.slots[t];
        write_key(kv, row, kv.head(table[slot / kBlockTokens], 0), slot % kBlockTokens);
    }
}

}  // namespace penstock::PENSTOCK_ISA
