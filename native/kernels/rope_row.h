// One head's query or key on its way to attention: turned by its position, rounded. For rope_write and
// latent_write.
#pragma once
#include "kernels/kv_rows.h"

namespace penstock::PENSTOCK_ISA {

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

// Turns y[0, 2 * half) by the angles of one position.
inline void rotate(const float* cosine, const float* sine, int64_t half, bool is_interleaved, float* y) {
    for (int64_t i = 0; i < half; i += kLanes) {
        const int n = half - i < kLanes ? static_cast<int>(half - i) : kLanes;
        const F16 c = load_n(cosine + i, n), s = load_n(sine + i, n);
        if (is_interleaved) {
            join_pairs(turn(split_pairs(y + 2 * i, n), c, s), n, y + 2 * i);
        } else {
            const Pairs turned = turn({load_n(y + i, n), load_n(y + half + i, n)}, c, s);
            store_n(y + i, turned.first, n);
            store_n(y + half + i, turned.second, n);
        }
    }
}

// q[padded_dim] as attention reads it, from element `at` of `out` on.
inline void write_query(const KVLayer& kv, const float* q, int64_t at, void* out) {
    if (kv.dtype == KVDtype::kFloat32) {
        std::memcpy(static_cast<float*>(out) + at, q, static_cast<std::size_t>(kv.padded_dim) * 4);
        return;
    }
    for (int64_t d = 0; d < kv.padded_dim; d += kLanes)
        store_bf16(static_cast<uint16_t*>(out) + at + d, load(q + d));
}

// Accepted drafts from their slots to their positions, in order: pairs of block_id * 64 + slot.
inline void move_tokens(const KVLayer& kv, const int32_t* moves, int64_t num_moves, int64_t kv_head) {
    for (int64_t i = 0; i < num_moves; ++i) {
        const int32_t from = moves[2 * i], to = moves[2 * i + 1];
        copy_token(kv, kv.head(from / kBlockTokens, kv_head), from % kBlockTokens,
                   kv.head(to / kBlockTokens, kv_head), to % kBlockTokens);
    }
}

}  // namespace penstock::PENSTOCK_ISA
