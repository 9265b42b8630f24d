// The verbs of the native backend: plain structs and one table of kernels per instruction set.
//
// Kernels know no Python: raw pointers in, checked at the binding. A kernel starts no thread, allocates
// nothing, throws nothing. A row's result never depends on other rows, on how panels, heads or rows are
// divided among threads, or on the ISA (DESIGN.md section 1; arithmetic contracts: kernels.md 4.1).
#pragma once
#include <cstddef>
#include <cstdint>

namespace penstock {

constexpr int64_t kPanel = 32;                       // output columns of a panel
constexpr int64_t kTileRows = 16;                    // rows of an activation tile
constexpr int64_t kBlockTokens = 64;                 // tokens of a KV block
constexpr int64_t kSplitTokens = 512;                // KV split, counted from position 0
constexpr int64_t kScratchBytes = int64_t{4} << 20;  // per worker, 64-byte aligned

constexpr int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

enum class Format : uint8_t {
    kFloat32,
    kFloat16,
    kBFloat16,
    kInt8,
    kInt4G32,
    kInt4G64,
    kInt4G128,
    kInt4G32Zero,
    kInt4G64Zero,
    kInt4G128Zero,
    kInt4G32Min,
    kInt4Super,
    kInt8G32,
    kInt8G64,
    kInt8G128,
    kInt8G32Zero,
    kInt8G64Zero,
    kInt8G128Zero,
    kInt8G32Min,
    kInt8Super,
    kInt8Super16,
    kMXFP4,
};
enum class OperandKind : uint8_t { kFloat32, kBFloat16, kInt8 };  // one per arithmetic contract

// What follows the integer codes of a superblock of 128 K, for every column: each line of 64 bytes is 32
// fp16.
enum class Trailer : uint8_t {
    kNone,     // no integer codes
    kChannel,  // fp32 scale per column, once, at the panel's end
    kScale,    // fp16 scale [groups][32]
    kZero,     // the same, then zero point s8 [groups][32], padded to 64 bytes
    kMin,      // fp16 scale [groups][32], fp16 minimum [groups][32]
    kSuper,  // fp16 d [32], fp16 dmin [32], u8 scale [groups][32], u8 minimum [groups][32], each padded to 64
    kSuperScale,  // fp16 d [32], s8 scale [groups][32]
    kExponent     // u8 exponent [groups][32], padded to 64: scale 2^(e - 127), 0 where e is 0; codes are E2M1
};

// W = scale * code + offset, per column and group of K. Four bits are stored as code + bias.
struct Coding {
    int32_t bits;   // 4 or 8; 0: floats
    int32_t group;  // K that share a scale; 0: all
    Trailer trailer;
    int32_t bias;
};

constexpr Coding coding_of(Format f) {
    switch (f) {
        case Format::kInt8:
            return {8, 0, Trailer::kChannel, 0};
        case Format::kInt4G32:
            return {4, 32, Trailer::kScale, 8};
        case Format::kInt4G64:
            return {4, 64, Trailer::kScale, 8};
        case Format::kInt4G128:
            return {4, 128, Trailer::kScale, 8};
        case Format::kInt4G32Zero:
            return {4, 32, Trailer::kZero, 8};
        case Format::kInt4G64Zero:
            return {4, 64, Trailer::kZero, 8};
        case Format::kInt4G128Zero:
            return {4, 128, Trailer::kZero, 8};
        case Format::kInt4G32Min:
            return {4, 32, Trailer::kMin, 0};
        case Format::kInt4Super:
            return {4, 32, Trailer::kSuper, 0};
        case Format::kInt8G32:
            return {8, 32, Trailer::kScale, 0};
        case Format::kInt8G64:
            return {8, 64, Trailer::kScale, 0};
        case Format::kInt8G128:
            return {8, 128, Trailer::kScale, 0};
        case Format::kInt8G32Zero:
            return {8, 32, Trailer::kZero, 0};
        case Format::kInt8G64Zero:
            return {8, 64, Trailer::kZero, 0};
        case Format::kInt8G128Zero:
            return {8, 128, Trailer::kZero, 0};
        case Format::kInt8G32Min:
            return {8, 32, Trailer::kMin, 0};
        case Format::kInt8Super:
            return {8, 32, Trailer::kSuper, 0};
        case Format::kInt8Super16:
            return {8, 16, Trailer::kSuperScale, 0};
        case Format::kMXFP4:
            return {4, 32, Trailer::kExponent, 0};
        default:
            return {0, 0, Trailer::kNone, 0};
    }
}
constexpr bool has_codes(Format f) { return coding_of(f).bits != 0; }
constexpr int64_t group_of(Format f) { return coding_of(f).group; }

// The operand of a float format; of codes the one `--weights int8|int4` asks for. Codes also take bf16.
constexpr OperandKind operand_of(Format f) {
    return f <= Format::kFloat16    ? OperandKind::kFloat32
           : f == Format::kBFloat16 ? OperandKind::kBFloat16
                                    : OperandKind::kInt8;
}
// Formats that quantizing makes.
constexpr bool is_quantizer(Format f) { return f >= Format::kInt8 && f <= Format::kInt4G128; }
constexpr bool accepts(Format f, OperandKind kind) {  // E2M1 are no integers
    if (!has_codes(f)) return kind == operand_of(f);
    return kind == OperandKind::kBFloat16 || (kind == OperandKind::kInt8 && f != Format::kMXFP4);
}

// Bytes of the trailer of a superblock of `length` K (128, or 64 at the end). A group cut short is a group.
constexpr int64_t trailer_bytes(const Coding& c, int64_t length) {
    const int64_t groups = c.group == 0 ? 0 : c.group < length ? length / c.group : 1;
    switch (c.trailer) {
        case Trailer::kScale:
            return groups * 64;
        case Trailer::kZero:
            return groups * 64 + round_up(groups * 32, 64);
        case Trailer::kMin:
            return groups * 128;
        case Trailer::kSuper:
            return 128 + 2 * round_up(groups * 32, 64);
        case Trailer::kSuperScale:
            return 64 + round_up(groups * 32, 64);
        case Trailer::kExponent:
            return round_up(groups * 32, 64);
        default:
            return 0;
    }
}
constexpr int64_t superblock_bytes(const Coding& c, int64_t length) {
    return length * 4 * c.bits + trailer_bytes(c, length);
}

// A matrix W[N,K] packed in panels of 32 columns, K-major inside; layouts: weights/formats/*.py. K is padded
// to 64 and N to 32 with zero weights (scale 0). One panel is one contiguous stream, 64-byte aligned.
//   float32    P32  addr = k*128 + 4*j                                   j = 0..31
//   float16    P16h addr = k*64 + 2*j
//   bfloat16   P16  addr = kb*2048 + t*1024 + r*64 + c*4 + i*2           = W[32p+16t+c][32kb+2r+i]
//   int8       P8   addr = kb*2048 + t*1024 + r*64 + c*4 + i  (kb = K/64) = W[32p+16t+c][64kb+4r+i], r =
//   0..15
//                   then 32 fp32 scales at the panel's end
//   integer codes: superblocks of 128 K (the last may hold 64): codes, then the trailer of the format's
//   Coding 4 bits   P4  codes addr = kb*1024 + t*512 + r*64 + c*4 + i, r = 0..7: low nibble =
//   code(W[32p+16t+c]
//                [64kb+4r+i]), high nibble = code(W[..][64kb+32+4r+i])
//   8 bits       codes as int8 above, kb = 0, 1 within the superblock
struct PackedWeight {
    Format format;
    int64_t n, k;        // as the model knows them
    int64_t k_padded;    // round_up(k, 64)
    int64_t num_panels;  // ceil(n / 32)
    int64_t panel_bytes;
    const std::byte* data;  // num_panels * panel_bytes
};

constexpr int64_t panel_bytes(Format f, int64_t k) {
    const int64_t kp = round_up(k, 64);
    switch (f) {
        case Format::kFloat32:
            return kp * 128;
        case Format::kFloat16:
        case Format::kBFloat16:
            return kp * 64;
        case Format::kInt8:
            return kp * 32 + 128;
        default: {
            const Coding c = coding_of(f);
            return kp / 128 * superblock_bytes(c, 128) + (kp % 128 ? superblock_bytes(c, 64) : 0);
        }
    }
}

// Rows of activations as a contract wants them; every row is padded with zeros to k_padded.
//   kFloat32   a32[T][k_padded]                                     row-major
//   kBFloat16  a16[T/16][k_padded/32][16][32]                       tile-major, RNE, denormals flushed
//   kInt8      a8 [T/16][k_padded/64][16][64] s8, scale[T/16][KB][16] fp32, sum[T/16][k_padded/32][16] int32
//              KB = ceil(k_padded/128): one scale per row and 128 of K: q = rne(x * (127/amax)), scale = amax
//              * (1/127), amax = 0: q = 0, scale = 0 (kernels.md 3.5). sum is the sum of q over each 32 of K.
struct Operand {
    OperandKind kind;
    int64_t k_padded;
    void* data;    // float, uint16_t (bf16) or int8_t
    float* scale;  // kInt8 only
    int32_t* sum;  // kInt8 only
};

constexpr int64_t operand_bytes(OperandKind kind, int64_t rows, int64_t k) {  // of `data`, rows padded to 16
    const int64_t r = round_up(rows, kTileRows), kp = round_up(k, 64);
    return r * kp * (kind == OperandKind::kFloat32 ? 4 : kind == OperandKind::kBFloat16 ? 2 : 1);
}

// What a linear keeps for the sampler: the largest of each whole 16 columns of a row of y, where NaN does not
// count. A row has room for all chunks of 256 columns; the sampler makes those of the last columns itself.
constexpr int64_t kMaximaOf = 16;
constexpr int64_t maxima_stride(int64_t vocab) { return round_up(vocab, 256) / kMaximaOf; }

// y[t, n] = acc;  + bias[n] if bias;  * scale;  addend[t, n] + that if addend. Columns n >= N are not
// written.
struct LinearOut {
    float* y;
    int64_t stride;
    const float* bias;    // nullable, [N]
    const float* addend;  // nullable; may alias y
    int64_t addend_stride;
    float scale = 1.0f;
    float* maxima = nullptr;  // nullable, [T, maxima_stride(N)]
};

// Panels [panel_begin, panel_end) of y = W x for rows [0, rows).
using LinearKernel = void(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                          int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept;

// x[row][k] fp32 (stride floats apart) -> row `row` of the operand. For rows [begin, end).
using OperandKernel = void(const float* x, int64_t stride, int64_t k, const Operand& out, int64_t begin,
                           int64_t end) noexcept;

// y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset) + bias, of x - mean(x) where it centers
// (LayerNorm). Means: 16 lanes, fixed tree; true division and square root.
struct NormSpec {
    const float* weight;  // nullable: 1
    const float* bias;    // nullable: 0
    float eps, weight_offset;
    bool centers;
};

// Rows normed straight into an operand, or (y not null) into fp32 rows of the same width, added to `addend`
// if there is one. Row r of the output is row index[r] of x (index may be null: r itself).
struct NormArgs {
    const float* x;
    int64_t stride, width;
    NormSpec spec;
    const int32_t* index;
    Operand out;
    float* y;             // nullable, [rows, width]
    const float* addend;  // nullable, [rows, width]
};
using NormKernel = void(const NormArgs&, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept;

// act(gate) * up from x[t, 0:F] and x[t, F:2F], or act(x[t, 0:F]), into an operand of width F.
// kClampedSwiglu (which gates, or is not): quick_gelu(min(gate, 7)) * (1 + up), up within -7 .. 7.
enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh, kQuickGelu, kRelu, kRelu2, kClampedSwiglu };
struct GatedArgs {
    const float* x;
    int64_t stride, width;
    Activation act;
    bool is_gated;
    Operand out;
};
using GatedKernel = void(const GatedArgs&, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept;

// One layer's keys and values: blocks of 64 tokens, all KV heads, [kv_head][K 64*D | V 64*D]. Latents are
// keys alone, [K 64*D]: the first dims of a key are its value.
//   bfloat16  K [4 token groups of 16][D/32][16 dim pairs][16 tokens][2]
//             V [2 token groups of 32][D/16][16 token pairs][16 dims][2]
//   float32   K [4 token groups of 16][D][16 tokens], V [64 tokens][D]
//   int8      K and V as bfloat16, in signed bytes; then [kv_head][.. | 64 scales of K | 64 of V], fp32
// D is head_dim rounded up to 32 (pad dims hold zeros). int8: code = rne(x * (127/amax)), scale = amax *
// (1/127) over one token's head (kernels/int8_row.h); the value is code * scale.
enum class KVDtype : uint8_t { kFloat32, kBFloat16, kInt8 };

// always_inline: compiled once per ISA, and no copy may be shared between their object libraries.
[[gnu::always_inline]] constexpr int64_t kv_element_bytes(KVDtype d) {
    return d == KVDtype::kFloat32 ? 4 : d == KVDtype::kBFloat16 ? 2 : 1;
}
[[gnu::always_inline]] constexpr int64_t kv_head_bytes(KVDtype d, int64_t padded_dim,
                                                       bool has_values) {  // of one block
    return (has_values ? 2 : 1) * kBlockTokens *
           (padded_dim * kv_element_bytes(d) + (d == KVDtype::kInt8 ? 4 : 0));
}

struct KVLayer {
    std::byte* blocks;
    int32_t num_kv_heads, head_dim, padded_dim;
    KVDtype dtype;
    int32_t latent_dim = 0;  // of latents; 0: keys and values

    [[gnu::always_inline]] bool has_values() const { return latent_dim == 0; }
    [[gnu::always_inline]] int32_t value_dim() const { return has_values() ? head_dim : latent_dim; }
    [[gnu::always_inline]] int64_t head_bytes() const {
        return kv_head_bytes(dtype, padded_dim, has_values());
    }
    [[gnu::always_inline]] std::byte* head(int64_t block_id, int64_t kv_head) const {
        return blocks + (block_id * num_kv_heads + kv_head) * head_bytes();
    }
    // int8: 64 of K, then 64 of V, if there are any
    [[gnu::always_inline]] float* scales(std::byte* head) const {
        return reinterpret_cast<float*>(head + (has_values() ? 2 : 1) * kBlockTokens * padded_dim);
    }
};

// The ragged batch, as in StepInput (all int32). A row's key and value lie at its slot, which is its position
// unless it is a draft of a tree: then siblings share a position, and the row reads its own path, from the
// row before it (`parents`, -1: all that is read before this row lies at its position).
struct Batch {
    int64_t num_rows, num_requests, max_blocks;
    const int32_t* tokens;       // [T]
    const int32_t* positions;    // [T]
    const int32_t* query_start;  // [B+1]
    const int32_t* context_len;  // [B]
    const int32_t* row_request;  // [T] which request a row belongs to
    const int32_t* slots;        // [T]
    const int32_t* parents;      // [T]; nullptr: every slot is its row's position

    [[gnu::always_inline]] bool is_in_place(int64_t t) const {
        return parents == nullptr || slots[t] == positions[t];
    }
};
constexpr int64_t kMaxTreeDepth = 64;  // rows of a path that are not in place

// After the qkv product: optional per-head norm of q and k, RoPE, rounding, q out and k, v into the cache.
// Work unit: one KV head with its query heads, all rows (so that one thread owns a head's blocks: the first
// token of a V group of 32 zeroes the group). First of all `moves` are made, in order: keys and values of
// accepted drafts from their slots to their positions. RoPE: rotate-half pairs (i, i + rotary/2), or (2i, 2i
// + 1): x*cos - y*sin, y*cos + x*sin: fma(x, cos, -(y*sin)), fma(y, cos, x*sin).
struct RopeWriteArgs {
    const float* qkv;  // [T, Q + 2C]
    int64_t stride;
    int32_t num_heads, rotary_dim;  // rotary_dim <= head_dim; 0: no positions
    bool is_interleaved;
    NormSpec q_norm, k_norm;  // weight null: no norm
    bool norms_row;           // statistics over all heads of q, and of k, not over each head
    bool weights_each_head;   // q_norm.weight is [Q], k_norm.weight [C]; else both are [D], for every head
    const float* cos_table;   // [max_context, rotary_dim/2]
    const float* sin_table;
    const int32_t* block_table;  // [B, M] of this layer's group
    const int32_t* moves;        // [num_moves][2]: block_id * 64 + slot in it, from and to
    int64_t num_moves;
    KVLayer kv;
    void* q;  // out: [T, num_heads * padded_dim] bf16 (uint16_t) or fp32, row-major
};
using RopeWriteKernel = void(const RopeWriteArgs&, const Batch&, int64_t kv_head,
                             std::byte* scratch) noexcept;

// The same of latents (one KV head; ops/rope.py): of each query its part in latents, and the part that turns;
// the latent, normed, and the key beside it, which turns, into the cache. Both parts lie one after the other.
struct LatentWriteArgs {
    const float* latent;    // [T, head_dim]
    const float* q_latent;  // [T, num_heads * latent_dim]
    const float* q_rope;    // [T, num_heads * (head_dim - latent_dim)]
    int32_t num_heads;
    bool is_interleaved;
    NormSpec norm;
    const float* cos_table;  // [max_context, (head_dim - latent_dim) / 2]
    const float* sin_table;
    const int32_t* block_table;
    const int32_t* moves;  // as above
    int64_t num_moves;
    KVLayer kv;
    void* q;  // out: [T, num_heads * padded_dim]
};
// Queries of rows [row_begin, row_end).
using LatentQueryKernel = void(const LatentWriteArgs&, const Batch&, int64_t row_begin, int64_t row_end,
                               std::byte* scratch) noexcept;
// Moves, then what all rows keep.
using LatentKeyKernel = void(const LatentWriteArgs&, const Batch&, std::byte* scratch) noexcept;

// Paged attention (kernels.md 5.2): splits of 512 tokens at absolute positions, exact max in a split, merged
// in order.
struct AttentionArgs {
    const void* q;  // as written above
    int32_t num_heads;
    float scale;          // applied to the scores
    float softcap;        // 0: none; else s = softcap * tanh(s * scale / softcap)
    int32_t window;       // 0: full; else a row at position p reads positions > p - window
    bool is_causal;       // false: also those after p, up to the context's end, and < p + window
    const float* sinks;   // nullable, [num_heads]: a score that takes its part of the sum and has no value
    const float* slopes;  // nullable, [num_heads]: ALiBi, a score gains -slope * |p - position of the key|
    const int32_t* block_table;
    KVLayer kv;
    float* y;  // [T, num_heads * value_dim] fp32
    int64_t stride;
};
// What one call computes: query rows [row_begin, row_end) (flat row indices, all of `request`) of heads
// [head_begin, head_end), which all read one KV head.
struct AttentionPart {
    int32_t request, head_begin, head_end, row_begin, row_end;
};
using AttentionKernel = void(const AttentionArgs&, const Batch&, const AttentionPart&,
                             std::byte* scratch) noexcept;

// Rows of an embedding table: in its own row-major dtype, widened to fp32; or columns of a matrix packed as
// codes, each fma(code, scale, offset). Times `scale`; plus row `position + offset` of a table of learned
// positions, if there is one.
struct EmbedTable {
    const void* rows;
    Format format;  // kFloat32, kFloat16 or kBFloat16; of tokens, codes: `codes` instead of rows
};
struct EmbedArgs {
    EmbedTable tokens;
    EmbedTable positions;  // rows may be null
    int64_t width;
    float scale = 1.0f;
    int32_t position_offset;
    float* y;  // [T, width]
    PackedWeight codes;
};
using EmbedKernel = void(const EmbedArgs&, const Batch&, int64_t row_begin, int64_t row_end) noexcept;

// y = cap * tanh(x / cap) of rows [begin, end).
struct SoftcapArgs {
    const float* x;
    float* y;  // may be x
    int64_t width;
    float cap;
};
using SoftcapKernel = void(const SoftcapArgs&, int64_t row_begin, int64_t row_end) noexcept;

// z = x + y, or fma(sigmoid(gate[row]), y, x): rows [begin, end). z may be x or y.
struct AddArgs {
    const float *x, *y;
    const float* gate;  // nullable; the first of each row
    int64_t gate_stride, width;
    float* z;
};
using AddKernel = void(const AddArgs&, int64_t row_begin, int64_t row_end) noexcept;

// Each row's experts, best first, then their weights; ties go to the lowest index (ops/moe.py). Sums are in
// order of index.
enum class RouterScore : uint8_t { kSoftmax, kSigmoid, kSoftmaxChosen };
constexpr int64_t kMaxExperts = 4096;  // what fits into scratch
struct RouteArgs {
    const float* logits;      // [T, num_experts]
    const float* correction;  // nullable, [num_experts]: counts in the choice alone
    int64_t num_experts, top_k, num_groups, groups_kept;
    RouterScore score;
    bool renormalizes;
    float scale;
    float* routing;  // [T, 2 * top_k]
};
using RouteKernel = void(const RouteArgs&, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept;

// y[t] = sum over slots, ascending, of weight * parts[place[t * top_k + slot]]: an fma each.
struct CombineArgs {
    const float* routing;
    const int32_t* place;
    const float* parts;  // rows of `width`
    int64_t width, top_k;
    float* y;
};
using CombineKernel = void(const CombineArgs&, int64_t row_begin, int64_t row_end) noexcept;

// A layer's recurrent states, one in each block: fp32, rows padded to 16 lanes.
//   inputs [taps - 1][channels]              what the convolution read last, oldest first
//   states [head][state_size][head_dim]
// A request's first row goes on from the block of the position before it, or from zeros. The state after a
// row is stored where its place of 64 tokens ends, or its request's rows do, if the place has a block (0 is
// none; checked by the binding: a step's last has one).
struct StateLayer {
    std::byte* blocks;
    int32_t num_heads, head_dim, state_size, channels, taps;

    [[gnu::always_inline]] int64_t padded_dim() const { return (head_dim + 15) / 16 * 16; }
    [[gnu::always_inline]] int64_t padded_channels() const { return (int64_t{channels} + 15) / 16 * 16; }
    [[gnu::always_inline]] int64_t head_floats() const { return state_size * padded_dim(); }
    [[gnu::always_inline]] int64_t input_floats() const { return (taps - 1) * padded_channels(); }
    [[gnu::always_inline]] int64_t block_bytes() const {
        return 4 * (input_floats() + num_heads * head_floats());
    }
    [[gnu::always_inline]] float* inputs(int64_t block_id) const {
        return reinterpret_cast<float*>(blocks + block_id * block_bytes());
    }
    [[gnu::always_inline]] float* head(int64_t block_id, int64_t head) const {
        return inputs(block_id) + input_floats() + head * head_floats();
    }
};
constexpr int32_t kMaxTaps = 4;
constexpr int64_t kMaxState = 1024, kMaxStateDim = 1024;  // what fits into scratch

// y[t, c] = silu(bias[c] + sum over taps, the oldest first, of weight[tap, c] * x[t - taps + 1 + tap, c]), an
// fma each. One request's rows, channels [channel_begin, channel_end): the begin a multiple of 64.
struct CausalConvArgs {
    const float* x;  // the first channel of row 0
    int64_t stride;
    const float* weight;  // [taps, channels]
    const float* bias;    // nullable
    const int32_t* block_table;
    StateLayer state;
    float* y;  // [T, channels]
};
using CausalConvKernel = void(const CausalConvArgs&, const Batch&, int64_t request, int64_t channel_begin,
                              int64_t channel_end) noexcept;

// One head of one request, row by row: dt = clamp(softplus(x + dt_bias)); state = fma(dt * x, b, state *
// exp(-dt * exp(a_log))); y = sum over the state in ascending order of fma(state, c, y), then fma(skip, x,
// y).
struct SelectiveScanArgs {
    const float* xbc;  // [T, channels]: x of all heads, b and c of all groups
    const float* dt;   // of head 0 in row 0
    int64_t dt_stride;
    const float *dt_bias, *a_log, *skip;  // [num_heads]
    int32_t num_groups;
    bool has_limit;
    float dt_low, dt_high;
    const int32_t* block_table;
    StateLayer state;
    float* y;  // [T, num_heads * head_dim]
};
using SelectiveScanKernel = void(const SelectiveScanArgs&, const Batch&, int64_t request, int64_t head,
                                 std::byte* scratch) noexcept;

// Rows of y * silu(z), normed over every `span` values and scaled, into an operand.
struct GatedNormArgs {
    const float* y;  // [T, width]
    const float* z;
    int64_t z_stride, width, span;
    const float* weight;  // [width]
    float eps;
    Operand out;
};
using GatedNormKernel = void(const GatedNormArgs&, int64_t row_begin, int64_t row_end,
                             std::byte* scratch) noexcept;

// Sampling of R rows (SamplingRows in step.py, field by field). Scratch per worker: see sampler.cpp.
struct SampleArgs {
    float* logits;  // [R, V], raw; edited in place on the way, at the end as they were
    float* maxima;  // nullable, [R, maxima_stride(V)]: as a linear keeps them; the sampler's own from then on
    int64_t vocab;
    const float *temperature, *top_p, *min_p, *typical_p;
    const float *repetition_penalty, *presence_penalty, *frequency_penalty;
    const int32_t *top_k, *target, *num_logprobs;
    const uint64_t* seed;
    const int64_t* position;
    const int32_t *history_start, *history_token, *history_count;
    const int32_t *bias_start, *bias_token;
    const float* bias_value;
    const uint32_t* allowed;  // nullable, [R, ceil(V/32)]
    int64_t max_logprobs;     // columns of top_*
    int32_t* sampled;         // [R]
    float* logprob;           // [R]
    int32_t* rank;            // [R]
    int32_t* top_token;       // [R, max_logprobs]
    float* top_logprob;
};
using SampleKernel = void(const SampleArgs&, int64_t row, std::byte* scratch) noexcept;
constexpr int64_t sample_scratch_bytes(int64_t vocab) {
    return round_up(vocab, 64) * 32 + (int64_t{1} << 16);
}

// Everything one instruction set brings. Chosen once, at load (dispatch.cpp); tests walk all that can run
// here.
struct KernelTable {
    const char* isa;
    LinearKernel *linear_float32, *linear_float16, *linear_bfloat16, *linear_int8, *linear_int4;
    LinearKernel *linear_codes4, *linear_codes8, *linear_mxfp4;  // bf16 operand
    OperandKernel *operand_float32, *operand_bfloat16, *operand_int8;
    NormKernel* norm;
    GatedKernel* gated;
    EmbedKernel* embed;
    SoftcapKernel* softcap;
    RopeWriteKernel* rope_write;
    LatentQueryKernel* latent_query;
    LatentKeyKernel* latent_key;
    AttentionKernel *attention_bfloat16, *attention_float32, *attention_int8;

    [[gnu::always_inline]] AttentionKernel* attention(KVDtype dtype) const {
        return dtype == KVDtype::kFloat32    ? attention_float32
               : dtype == KVDtype::kBFloat16 ? attention_bfloat16
                                             : attention_int8;
    }
    SampleKernel* sample;
    AddKernel* add;
    RouteKernel* route;
    CombineKernel* combine;
    CausalConvKernel* causal_conv;
    SelectiveScanKernel* selective_scan;
    GatedNormKernel* gated_norm;
};

// The kernel of a weight under the contract of an operand; `accepts` has said that there is one.
constexpr LinearKernel* linear_kernel(const KernelTable& t, Format f, OperandKind kind) {
    if (f == Format::kMXFP4) return t.linear_mxfp4;
    if (has_codes(f) && kind == OperandKind::kBFloat16)
        return coding_of(f).bits == 4 ? t.linear_codes4 : t.linear_codes8;
    switch (f) {
        case Format::kFloat32:
            return t.linear_float32;
        case Format::kFloat16:
            return t.linear_float16;
        case Format::kBFloat16:
            return t.linear_bfloat16;
        default:
            return coding_of(f).bits == 8 ? t.linear_int8 : t.linear_int4;
    }
}

// Breaks row-independence on purpose (tests only): 0 none, 1 linear sums depend on M, 2 KV splits depend on
// the context.
extern int g_break_invariance;

}  // namespace penstock
