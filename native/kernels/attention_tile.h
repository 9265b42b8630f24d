// Everything of attention but its two matrix products: tiles of rows, splits, softmax, merge
// (kernels.md 5.2).
//
// The products come as a type with static functions, so that FMA and AMX share every other rounding:
//     using Products = ... { kDtype
//         prepare(tile)          widen or copy what it wants of tile.q
//         scores(tile)           tile.s[row][token - split_begin] for tokens [key_begin, key_end), from +0
//         values(tile) }         tile.o[row][d] over tokens [value_begin, value_end), from +0, or where the
//                                tile goes on, from what is there
//
// A row reads tokens (position - window, position], or where attention goes both ways (position - window,
// position + window) of its request. Splits start at multiples of 512 from token 0; inside
// one:
//     s = q k; with a soft cap, ALiBi or sinks scaled, capped and moved at once, then scale is 1 from here on
//     m = max s;  p = 2^((s - m) * c), c = scale * log2(e);  BF16 contract: p rounded to bf16
//         int8 blocks: s is first multiplied by the key's scale, and p, after it was summed (not rounded),
//         by the value's, then rounded; the products are those of the BF16 contract on the codes
//     l = sum p: lane j of 16 adds tokens j, j + 16, ... of the split in order; then the tree of simd.h
//     o = sum p v, as the contract says
// and from the row's second split on, in ascending order
//     m' = max(m, m_s);  a = 2^((m - m') c);  b = 2^((m_s - m') c);  l = fma(l, a, l_s b);  O = fma(O, a, O_s
//     b)
// A sink is then merged like a split with m_s = sink, l_s = 1 and no O_s. y = O / l + 0. A masked token has p
// = +0: it leaves l as it is and may only turn -0 into +0 in O, which the last addition does anyway. So
// groups that no row of a tile reads are skipped, whatever the tile.
//
// Latents have no values in their blocks: for every split, and for a draft's copies, they are made of the
// keys once for all rows of a pass (latents.h).
//
// A draft of a tree reads its blocks up to its first ancestor that is not in place, and from that block on a
// copy in scratch, in which its path lies as if it had been decoded. Rows of a tile share the former.
#pragma once
#include "elementary.h"
#include "kernels/kv_rows.h"
#include "kernels/latents.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kMaxTileRows = 32;
constexpr int64_t kNoFork = INT64_MAX;
constexpr int64_t kForkedBytes = 2 * (2 * kBlockTokens * kMaxHeadDim * 4);  // kMaxTreeDepth spans two blocks
constexpr int64_t kUnpackedSplitBytes =
    2 * (kSplitTokens * kMaxHeadDim * 2);            // bf16 keys and values of a split
constexpr int64_t kScoreStride = kSplitTokens + 16;  // off the power of two: rows would share L1 sets
constexpr int64_t kLatentBytes = kSplitTokens * kMaxHeadDim * 4;
constexpr float kLog2E = 1.44269504088896341f;

// 2^x for x <= 0; +0 below -125; NaN stays NaN. Relative error 3e-6 (degree 4) or 1e-7 (degree 6).
template <int kDegree>
PENSTOCK_INLINE F16 exp2_negative(F16 x) {
    static_assert(kDegree == 4 || kDegree == 6);
    F16 shifted = x + 12582912.0f;  // 1.5 * 2^23: the integer part in the low bits
    F16 f = x - (shifted - 12582912.0f);
    F16 p;
    if constexpr (kDegree == 4) {
        p = set1(9.5828530952e-03f);
        p = fma(p, f, set1(5.5906424597e-02f));
        p = fma(p, f, set1(2.4024098610e-01f));
        p = fma(p, f, set1(6.9312419342e-01f));
    } else {
        p = set1(1.5353361936e-04f);
        p = fma(p, f, set1(1.3398874403e-03f));
        p = fma(p, f, set1(9.6184373575e-03f));
        p = fma(p, f, set1(5.5503324712e-02f));
        p = fma(p, f, set1(2.4022647914e-01f));
        p = fma(p, f, set1(6.9314720286e-01f));
    }
    p = fma(p, f, set1(1.0f));
    F16 y = p * from_bits((bits(shifted) + 127U) << 23);
    return select(x < -125.0f, zero(), y);
}

// bf16 rounding for +0, 2^-125 .. 1 and NaN: what probabilities are.
PENSTOCK_INLINE F16 round_probability(F16 p) {
    U16 u = bits(p);
    return from_bits((u + 0x7fffU + ((u >> 16) & 1U)) & 0xffff0000U);
}

// Rows of one tile in one split. Row i is head i % group of query row row_begin + i / group.
struct AttentionTile {
    const AttentionArgs* args;
    const Batch* batch;
    const int32_t* blocks;  // the request's row of the block table
    const void* q[kMaxTileRows];
    int64_t query_row[kMaxTileRows];
    int64_t fork[kMaxTileRows];  // first position of the row's path that is not in place; kNoFork: none
    int64_t position[kMaxTileRows];
    float slope[kMaxTileRows];
    int64_t num_rows, kv_head, dims, value_dims;  // padded
    int64_t split_begin, split_length, key_begin, key_end, value_begin,
        value_end;  // tokens, in units of 16 and 32
    int64_t end;    // of the tokens that rows of the tile read, in this split or later
    float* s;       // [kMaxTileRows][kScoreStride]: scores, then probabilities
    float* o;       // [kMaxTileRows][value_dims]
    bool goes_on;   // values() adds to what o holds
    std::byte* a;   // the products': [kMaxTileRows][kMaxHeadDim] fp32 and [kMaxTileRows][kScoreStride] bf16
    float* key_scale;  // int8 blocks: [kSplitTokens] of one row's tokens
    float* value_scale;
    std::byte* forked;     // copies of blocks of this head, from token forked_begin on
    int64_t forked_begin;  // kNoFork: none
    std::byte* unpacked;   // the products': [Products::kUnpackedBytes]
    std::byte* latents;    // values of the split, in groups of 32 as a block has them; nullptr: blocks do
    std::byte* forked_latents;  // and of the copies of blocks

    // Of the block of `token` in the request's table.
    const std::byte* table_head(int64_t token) const {
        return args->kv.head(blocks[token / kBlockTokens], kv_head);
    }
    const std::byte* head(int64_t token) const {
        if (token < forked_begin) return table_head(token);
        return forked + (token - forked_begin) / kBlockTokens * args->kv.head_bytes();
    }
    template <class T>
    const T* keys(int64_t token) const {  // of the group of 16
        return reinterpret_cast<const T*>(head(token)) + token % kBlockTokens / 16 * 16 * dims;
    }
    template <class T>
    const T* values(int64_t token) const {  // of the group of 32
        if (latents != nullptr) {
            const bool is_forked = token >= forked_begin;
            const std::byte* group = is_forked ? forked_latents : latents;
            return reinterpret_cast<const T*>(group) +
                   (token - (is_forked ? forked_begin : split_begin)) * value_dims;
        }
        return reinterpret_cast<const T*>(head(token)) +
               (kBlockTokens + token % kBlockTokens / 32 * 32) * dims;
    }
    // A split is read in chunks of 32 tokens: keys of [value_begin, value_end), then values, then the next
    // split's keys. The chunk `distance` after that of `token`; nullptr after the end.
    template <class T>
    const T* chunk_after(int64_t token, bool is_value, int64_t distance) const {
        int64_t at = token + 32 * distance;
        if (!is_value) {
            if (at < value_end) return keys<T>(at);
            at += value_begin - value_end;
            is_value = true;
        }
        if (at < value_end) return values<T>(at);
        at += split_begin + split_length - value_end;
        return at < end ? keys<T>(at) : nullptr;
    }
};

constexpr I16 kLane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};

// Scores that a tile's product leaves unscaled, because only differences within a row matter, or not.
PENSTOCK_INLINE bool scales_scores(const AttentionArgs& args) {
    return args.softcap != 0.0f || args.slopes != nullptr || args.sinks != nullptr;
}

// Sixteen scores of one row at tokens `distance` away, scaled, capped and moved by ALiBi.
PENSTOCK_INLINE F16 scale_scores(const AttentionArgs& args, F16 v, float slope, I16 distance) {
    if (args.softcap != 0.0f)
        v = tanh(v * (args.scale / args.softcap)) * args.softcap;
    else
        v = v * args.scale;
    return args.slopes ? fma(abs(to_float(distance)), set1(-slope), v) : v;
}

// Scores to probabilities for one row that reads tokens [begin, end), relative to the split, as is its own
// position; columns [from, to) are written, +0 outside of [begin, end). m and l out.
template <KVDtype kDtype>
PENSTOCK_INLINE void softmax_row(const AttentionTile& tile, float* s, int64_t from, int64_t to, int64_t begin,
                                 int64_t end, int64_t position, float slope, float* m_out, float* l_out) {
    constexpr bool kIsCoded = kDtype == KVDtype::kInt8;
    const AttentionArgs& args = *tile.args;
    const bool is_scaled = scales_scores(args);
    const float c = is_scaled ? kLog2E : args.scale * kLog2E;
    const F16 masked = set1(-__builtin_inff());
    const int64_t first = begin & ~int64_t{15}, last = (end + 15) & ~int64_t{15};
    F16 top = masked;
    for (int64_t j = first; j < last; j += kLanes) {
        F16 v = load(s + j);
        if constexpr (kIsCoded) v = v * load(tile.key_scale + j);
        if (is_scaled) v = scale_scores(args, v, slope, kLane + static_cast<int32_t>(j - position));
        if (j < begin || j + kLanes > end) {
            I16 at = kLane + static_cast<int32_t>(j);
            v = select((at >= static_cast<int32_t>(begin)) & (at < static_cast<int32_t>(end)), v, masked);
            store(s + j, v);
        } else if (kIsCoded || is_scaled) {
            store(s + j, v);
        }
        top = max(v, top);
    }
    const float m = max_lane(top);
    F16 sums = zero();
    for (int64_t j = from; j < first; j += kLanes) store(s + j, zero());
    for (int64_t j = first; j < last; j += kLanes) {
        F16 p = exp2_negative < kDtype == KVDtype::kFloat32 ? 6 : 4 > ((load(s + j) - m) * c);
        if constexpr (kIsCoded) {
            sums = sums + p;
            store(s + j, round_bf16(p * load(tile.value_scale + j)));
            continue;
        }
        if constexpr (kDtype == KVDtype::kBFloat16) p = round_probability(p);
        store(s + j, p);
        sums = sums + p;
    }
    for (int64_t j = last; j < to; j += kLanes) store(s + j, zero());
    *m_out = m;
    *l_out = sum(sums);
}

// The powers that bring two maxima to the larger one, which is left in `top`.
PENSTOCK_INLINE void merge_powers(float m, float other, float c, float* top, float* a, float* b) {
    *top = other > m ? other : m;
    F16 powers = zero();
    powers[0] = (m - *top) * c;
    powers[1] = (other - *top) * c;
    powers = exp2_negative<6>(powers);
    *a = powers[0];
    *b = powers[1];
}

// What a row knows after its splits so far.
struct AttentionState {
    float m, l;
    bool has_split;
};

PENSTOCK_INLINE void merge_split(AttentionState& state, float* o, float m, float l, const float* o_split,
                                 int64_t dims, float c) {
    if (!state.has_split) {
        state = {m, l, true};
        for (int64_t d = 0; d < dims; d += kLanes) store(o + d, load(o_split + d));
        return;
    }
    float keep, join;
    merge_powers(state.m, m, c, &state.m, &keep, &join);
    const F16 a = set1(keep), b = set1(join);
    state.l = __builtin_fmaf(state.l, keep, l * join);
    for (int64_t d = 0; d < dims; d += kLanes) store(o + d, fma(load(o + d), a, load(o_split + d) * b));
}

// The tokens that query row t reads: [begin, end).
struct Reach {
    int64_t begin, end;
};
PENSTOCK_INLINE Reach reach_of(const AttentionArgs& args, const Batch& batch, int64_t request, int64_t t) {
    const int64_t next = int64_t{batch.positions[t]} + 1, whole = batch.context_len[request];
    Reach reach{args.window > 0 && next > args.window ? next - args.window : 0, next};
    if (!args.is_causal) {
        const int64_t last = next - 1 + args.window;
        reach.end = args.window > 0 && last < whole ? last : whole;
    }
    return reach;
}

// 512, but for the switch that tests pull to see themselves fail.
PENSTOCK_INLINE int64_t split_tokens(int64_t context_len) {
    if (g_break_invariance != 2) return kSplitTokens;
    const int64_t half = round_up((context_len + 1) / 2, kBlockTokens);
    return half <= kSplitTokens ? half : kBlockTokens * (1 + half / kBlockTokens % 7);
}

// First position of row t's path whose key is not in place.
PENSTOCK_INLINE int64_t fork_of(const Batch& batch, int64_t t) {
    int64_t fork = kNoFork;
    for (; t >= 0 && !batch.is_in_place(t); t = batch.parents[t]) fork = batch.positions[t];
    return fork;
}

// The block that holds position `fork`, and what follows, as row t would find them decoded token by token.
inline void assemble(const AttentionTile& tile, int64_t t, int64_t fork) {
    const KVLayer& kv = tile.args->kv;
    const Batch& batch = *tile.batch;
    const int64_t begin = fork / kBlockTokens * kBlockTokens, bytes = kv.head_bytes();
    if (fork > begin) std::memcpy(tile.forked, tile.table_head(begin), static_cast<std::size_t>(bytes));
    for (int64_t at = t; at >= 0 && !batch.is_in_place(at); at = batch.parents[at]) {
        const int64_t slot = batch.slots[at], to = batch.positions[at] - begin;
        copy_token(kv, tile.table_head(slot), slot % kBlockTokens, tile.forked + to / kBlockTokens * bytes,
                   to % kBlockTokens);
    }
    const int64_t next = batch.positions[t] - begin + 1, place = next % kBlockTokens;
    clear_values(kv, tile.forked + (next - 1) / kBlockTokens * bytes, place, round_up(place, kValueGroup));
}

// Values of tokens [begin, end) out of their keys, zeros up to a group's end; `out` begins with those of
// `from`.
template <class T>
void make_values(const AttentionTile& tile, int64_t begin, int64_t end, int64_t from, std::byte* out) {
    for (int64_t token = begin & ~int64_t{31}; token < end; token += 32)
        for (int64_t half = 0; half < 2; ++half)
            turn_keys(tile.keys<T>(token + 16 * half), end - token - 16 * half,
                      reinterpret_cast<T*>(out) + (token - from) * tile.value_dims, half, tile.value_dims);
}

// multiply(part): the tile where no row has forked before `last`; else the tokens that all its rows share,
// then each query row's own. Tokens are those of the split that rows of the tile read, [first, last).
template <class Products, class Multiply>
PENSTOCK_INLINE void in_parts(AttentionTile& tile, const Reach* reach, int64_t first, int64_t last,
                              Multiply&& multiply) {
    int64_t shared = kNoFork;
    for (int64_t i = 0; i < tile.num_rows; ++i) shared = tile.fork[i] < shared ? tile.fork[i] : shared;
    if (shared >= last) {
        multiply(tile);
        return;
    }
    shared = shared / kBlockTokens * kBlockTokens;
    const auto limit = [](AttentionTile& part, int64_t begin, int64_t end) {
        part.key_begin = begin & ~int64_t{15};
        part.key_end = round_up(end, 16);
        part.value_begin = begin & ~int64_t{31};
        part.value_end = round_up(end, 32);
        part.end = end;
    };
    if (first < shared) {
        AttentionTile part = tile;
        limit(part, first, shared);
        multiply(part);
    }
    for (int64_t i = 0, next = 0; i < tile.num_rows; i = next) {
        while (next < tile.num_rows && tile.query_row[next] == tile.query_row[i]) ++next;
        const int64_t begin = first > shared ? first : shared,
                      end = reach[i].end < last ? reach[i].end : last;
        if (begin >= end) continue;
        AttentionTile part = tile;
        limit(part, begin, end);
        part.num_rows = next - i;
        for (int64_t row = i; row < next; ++row) part.q[row - i] = tile.q[row];
        part.s = tile.s + i * kScoreStride;
        part.o = tile.o + i * tile.value_dims;
        part.goes_on = first < shared;
        if (tile.fork[i] < end) {
            assemble(tile, tile.query_row[i], tile.fork[i]);
            part.forked_begin = tile.fork[i] / kBlockTokens * kBlockTokens;
            const int64_t from = begin > part.forked_begin ? begin : part.forked_begin;
            if (tile.latents != nullptr)
                make_values<typename Products::Element>(part, from, end, part.forked_begin,
                                                        part.forked_latents);
        }
        multiply(part);
    }
}

// Scales of tokens [begin, end) of the split as row i reads them; zeros up to the end of the last group
// of 32.
inline void gather_scales(const AttentionTile& tile, int64_t i, int64_t begin, int64_t end) {
    const KVLayer& kv = tile.args->kv;
    const Batch& batch = *tile.batch;
    float* const key = tile.key_scale - tile.split_begin;
    float* const value = tile.value_scale - tile.split_begin;
    const auto take = [&](int64_t token, int64_t slot, int64_t count) {
        const float* scales = kv.scales(const_cast<std::byte*>(tile.table_head(slot))) + slot % kBlockTokens;
        std::memcpy(key + token, scales, static_cast<std::size_t>(count) * 4);
        std::memcpy(value + token, scales + (kv.has_values() ? kBlockTokens : 0),
                    static_cast<std::size_t>(count) * 4);
    };
    for (int64_t token = begin; token < end && token < tile.fork[i];) {
        int64_t stop = (token / kBlockTokens + 1) * kBlockTokens;
        stop = stop < end ? stop : end;
        stop = stop < tile.fork[i] ? stop : tile.fork[i];
        take(token, token, stop - token);
        token = stop;
    }
    for (int64_t at = tile.query_row[i]; at >= 0 && !batch.is_in_place(at); at = batch.parents[at])
        if (batch.positions[at] >= begin && batch.positions[at] < end)
            take(batch.positions[at], batch.slots[at], 1);
    for (int64_t token = end; token < round_up(end, 32); ++token) key[token] = value[token] = 0.0f;
}

// One tile in the split that starts at token `split`: rows [tile.first, ...) of the states.
template <class Products>
PENSTOCK_INLINE void attend_split(AttentionTile& tile, const Reach* reach, AttentionState* states, float* o) {
    const AttentionArgs& args = *tile.args;
    const int64_t split_end = tile.split_begin + tile.split_length;
    int64_t first = split_end, last = tile.split_begin;
    for (int64_t i = 0; i < tile.num_rows; ++i) {
        first = reach[i].begin < first ? reach[i].begin : first;
        last = reach[i].end > last ? reach[i].end : last;
    }
    first = first > tile.split_begin ? first : tile.split_begin;
    tile.end = last;
    last = last < split_end ? last : split_end;
    if (first >= last) return;
    tile.key_begin = first & ~int64_t{15};
    tile.key_end = round_up(last, 16);
    tile.value_begin = first & ~int64_t{31};
    tile.value_end = round_up(last, 32);
    in_parts<Products>(tile, reach, first, last, [](AttentionTile& part) {
        Products::prepare(part);
        Products::scores(part);
    });

    const float c = scales_scores(args) ? kLog2E : args.scale * kLog2E;
    const int64_t from = tile.value_begin - tile.split_begin, to = tile.value_end - tile.split_begin;
    float m[kMaxTileRows], l[kMaxTileRows];
    int64_t scaled = -1;  // the row whose scales were gathered
    for (int64_t i = 0; i < tile.num_rows; ++i) {
        const int64_t row_first = reach[i].begin > first ? reach[i].begin : first,
                      row_last = reach[i].end < last ? reach[i].end : last;
        float* s = tile.s + i * kScoreStride;
        if (row_first < row_last) {
            if constexpr (Products::kDtype == KVDtype::kInt8)
                if (scaled < 0 || (tile.query_row[i] != tile.query_row[scaled] &&
                                   (tile.fork[i] < last || tile.fork[scaled] < last)))
                    gather_scales(tile, scaled = i, tile.value_begin, tile.fork[i] < last ? row_last : last);
            softmax_row<Products::kDtype>(tile, s, from, to, row_first - tile.split_begin,
                                          row_last - tile.split_begin, tile.position[i] - tile.split_begin,
                                          tile.slope[i], &m[i], &l[i]);
        } else {
            std::memset(s + from, 0, static_cast<std::size_t>(to - from) * 4);
        }
    }
    in_parts<Products>(tile, reach, first, last, [](AttentionTile& part) { Products::values(part); });
    for (int64_t i = 0; i < tile.num_rows; ++i)
        if (reach[i].begin < last && reach[i].end > first)
            merge_split(states[i], o + i * tile.value_dims, m[i], l[i], tile.o + i * tile.value_dims,
                        tile.value_dims, c);
}

template <class Products>
PENSTOCK_INLINE void attend(const AttentionArgs& args, const Batch& batch, const AttentionPart& part,
                            std::byte* scratch) {
    using Element = typename Products::Element;
    constexpr int64_t kQueryBytes = Products::kDtype == KVDtype::kFloat32 ? 4 : 2;
    const int64_t request = part.request, row_begin = part.row_begin, row_end = part.row_end;
    const int64_t group = part.head_end - part.head_begin, dims = args.kv.padded_dim;
    const int64_t value_dims = args.kv.has_values() ? dims : round_up(args.kv.latent_dim, 32);
    const int64_t split = split_tokens(batch.context_len[request]);

    AttentionTile tile;
    tile.args = &args;
    tile.batch = &batch;
    tile.blocks = args.block_table + request * batch.max_blocks;
    tile.kv_head = part.head_begin / (args.num_heads / args.kv.num_kv_heads);
    tile.dims = dims;
    tile.value_dims = value_dims;
    tile.split_length = split;
    tile.s = reinterpret_cast<float*>(scratch);
    tile.o = tile.s + kMaxTileRows * kScoreStride;
    tile.a = reinterpret_cast<std::byte*>(tile.o + kMaxTileRows * kMaxHeadDim);
    tile.key_scale = reinterpret_cast<float*>(tile.a + kMaxTileRows * (kMaxHeadDim * 4 + kScoreStride * 2));
    tile.value_scale = tile.key_scale + kSplitTokens;
    tile.forked = reinterpret_cast<std::byte*>(tile.value_scale + kSplitTokens);
    tile.forked_begin = kNoFork;
    tile.goes_on = false;
    tile.unpacked = tile.forked + kForkedBytes;
    std::byte* rest = tile.unpacked + Products::kUnpackedBytes;
    tile.latents = args.kv.has_values() ? nullptr : rest;
    tile.forked_latents = tile.forked + kForkedBytes / 2;  // of latents, blocks are half as long
    if (tile.latents != nullptr) rest += kLatentBytes;
    // All rows of a pass take a split before any takes the next, so that its keys and values stay in L2.
    const int64_t row_bytes = value_dims * 4 + static_cast<int64_t>(sizeof(AttentionState));
    const int64_t pass_rows = (scratch + kScratchBytes - rest) / row_bytes;
    float* o = reinterpret_cast<float*>(rest);
    AttentionState* states = reinterpret_cast<AttentionState*>(o + pass_rows * value_dims);

    const int64_t num_rows = (row_end - row_begin) * group;
    for (int64_t pass = 0; pass < num_rows; pass += pass_rows) {
        const int64_t pass_end = pass + pass_rows < num_rows ? pass + pass_rows : num_rows;
        int64_t first = INT64_MAX, last = 0;
        for (int64_t t = row_begin + pass / group; t <= row_begin + (pass_end - 1) / group; ++t) {
            const Reach reach = reach_of(args, batch, request, t);
            first = reach.begin < first ? reach.begin : first;
            last = reach.end > last ? reach.end : last;
        }
        for (int64_t i = 0; i < pass_end - pass; ++i) states[i] = {0.0f, 0.0f, false};
        for (tile.split_begin = first / split * split; tile.split_begin < last; tile.split_begin += split) {
            if (tile.latents != nullptr) {
                const int64_t begin = first > tile.split_begin ? first : tile.split_begin;
                const int64_t end = last < tile.split_begin + split ? last : tile.split_begin + split;
                make_values<Element>(tile, begin, end, tile.split_begin, tile.latents);
            }
            for (int64_t at = pass; at < pass_end; at += kMaxTileRows) {
                tile.num_rows = pass_end - at < kMaxTileRows ? pass_end - at : kMaxTileRows;
                Reach reach[kMaxTileRows];
                for (int64_t i = 0; i < tile.num_rows; ++i) {
                    const int64_t t = row_begin + (at + i) / group, head = part.head_begin + (at + i) % group;
                    reach[i] = reach_of(args, batch, request, t);
                    tile.position[i] = batch.positions[t];
                    tile.query_row[i] = t;
                    tile.fork[i] = fork_of(batch, t);
                    tile.slope[i] = args.slopes ? args.slopes[head] : 0.0f;
                    tile.q[i] = static_cast<const std::byte*>(args.q) +
                                (t * args.num_heads + head) * dims * kQueryBytes;
                }
                attend_split<Products>(tile, reach, states + (at - pass), o + (at - pass) * value_dims);
            }
        }
        for (int64_t i = pass; i < pass_end; ++i) {
            const float* row = o + (i - pass) * value_dims;
            const int64_t head = part.head_begin + i % group, width = args.kv.value_dim();
            float l = states[i - pass].l, keep = 1.0f;
            if (args.sinks) {
                float top, join;
                merge_powers(states[i - pass].m, args.sinks[head], kLog2E, &top, &keep, &join);
                l = __builtin_fmaf(l, keep, join);
            }
            float* y = args.y + (row_begin + i / group) * args.stride + head * width;
            for (int64_t d = 0; d < width; d += kLanes) {
                const int64_t left = width - d;
                store_n(y + d, load(row + d) * keep / l + 0.0f,
                        static_cast<int>(left < kLanes ? left : kLanes));
            }
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
