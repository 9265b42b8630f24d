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

enum class Format : uint8_t { kFloat32, kFloat16, kBFloat16, kInt8, kInt4G32, kInt4G64, kInt4G128 };
enum class OperandKind : uint8_t { kFloat32, kBFloat16, kInt8 };  // one per arithmetic contract

constexpr OperandKind operand_of(Format f) {
    return f <= Format::kFloat16    ? OperandKind::kFloat32
           : f == Format::kBFloat16 ? OperandKind::kBFloat16
                                    : OperandKind::kInt8;
}
constexpr int64_t group_of(Format f) {
    return f == Format::kInt4G32 ? 32 : f == Format::kInt4G64 ? 64 : f == Format::kInt4G128 ? 128 : 0;
}

// A matrix W[N,K] packed in panels of 32 columns, K-major inside; layouts: weights/formats/*.py. K is padded
// to 64 and N to 32 with zero weights (scale 0). One panel is one contiguous stream, 64-byte aligned.
//   float32    P32  addr = k*128 + 4*j                                   j = 0..31
//   float16    P16h addr = k*64 + 2*j
//   bfloat16   P16  addr = kb*2048 + t*1024 + r*64 + c*4 + i*2           = W[32p+16t+c][32kb+2r+i]
//   int8       P8   addr = kb*2048 + t*1024 + r*64 + c*4 + i  (kb = K/64) = W[32p+16t+c][64kb+4r+i], r =
//   0..15
//                   then 32 fp32 scales at the panel's end
//   int4_gG    P4   superblocks of 128 K (the last may hold 64): codes addr = kb*1024 + t*512 + r*64 + c*4 +
//   i, r = 0..7,
//                   low nibble = code(W[32p+16t+c][64kb+4r+i]), high nibble = code(W[..][64kb+32+4r+i]), code
//                   = q+8; then scales fp16: [ceil(K_of_superblock/G)][32]  (a superblock of 64 with G = 128
//                   has one)
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
            const int64_t g = group_of(f), whole = kp / 128, rest = kp % 128;
            return whole * (2048 + 128 / g * 64) + (rest ? 1024 + (g >= 64 ? 1 : 64 / g) * 64 : 0);
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

// y[t, n] = acc;  + bias[n] if bias;  addend[t, n] + that if addend. Columns n >= N are not written.
struct LinearOut {
    float* y;
    int64_t stride;
    const float* bias;    // nullable, [N]
    const float* addend;  // nullable; may alias y
    int64_t addend_stride;
};

// Panels [panel_begin, panel_end) of y = W x for rows [0, rows).
using LinearKernel = void(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                          int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept;

// x[row][k] fp32 (stride floats apart) -> row `row` of the operand. For rows [begin, end).
using OperandKernel = void(const float* x, int64_t stride, int64_t k, const Operand& out, int64_t begin,
                           int64_t end) noexcept;

// y = x / sqrt(mean(x^2) + eps) * (weight + weight_offset), straight into an operand. Row r of the output is
// row index[r] of x (index may be null: r itself). Mean: 16 lanes, fixed tree; true division and square root.
struct NormArgs {
    const float* x;
    int64_t stride, width;
    const float* weight;
    float eps, weight_offset;
    const int32_t* index;
    Operand out;
};
using NormKernel = void(const NormArgs&, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept;

// act(gate) * up from x[t, 0:F] and x[t, F:2F] into an operand of width F.
enum class Activation : uint8_t { kSilu, kGelu, kGeluTanh };
struct GatedArgs {
    const float* x;
    int64_t stride, width;
    Activation act;
    Operand out;
};
using GatedKernel = void(const GatedArgs&, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept;

// One layer's keys and values: blocks of 64 tokens, all KV heads, [kv_head][K 64*D | V 64*D].
//   bfloat16  K [4 token groups of 16][D/32][16 dim pairs][16 tokens][2], V [2 token groups of 32][D/16][16
//   token pairs][16 dims][2] float32   K [4 token groups of 16][D][16 tokens],                     V [64
//   tokens][D]
// D is head_dim rounded up to 32 (pad dims hold zeros). block_bytes = num_kv_heads * 2 * 64 * D * (2 or 4).
struct KVLayer {
    std::byte* blocks;
    int64_t block_bytes;
    int32_t num_kv_heads, head_dim, padded_dim;
    bool is_float32;
};

// The ragged batch, as in StepInput (all int32).
struct Batch {
    int64_t num_rows, num_requests, max_blocks;
    const int32_t* tokens;       // [T]
    const int32_t* positions;    // [T]
    const int32_t* query_start;  // [B+1]
    const int32_t* context_len;  // [B]
    const int32_t* row_request;  // [T] which request a row belongs to
};

// After the qkv product: optional per-head norm of q and k, RoPE, rounding, q out and k, v into the cache.
// Work unit: one KV head with its query heads, all rows (so that one thread owns a head's blocks: the first
// token of a V group of 32 zeroes the group). RoPE: rotate-half pairs (i, i + rotary/2): x*cos - y*sin, y*cos
// + x*sin: fma(x, cos, -(y*sin)), fma(y, cos, x*sin).
struct RopeWriteArgs {
    const float* qkv;  // [T, Q + 2C]
    int64_t stride;
    int32_t num_heads, rotary_dim;  // rotary_dim <= head_dim; 0: no positions
    const float* q_norm;            // nullable, [D]
    const float* k_norm;
    float eps, norm_offset;
    const float* cos_table;  // [max_context, rotary_dim/2]
    const float* sin_table;
    const int32_t* block_table;  // [B, M] of this layer's group
    KVLayer kv;
    void* q;  // out: [T, num_heads * padded_dim] bf16 (uint16_t) or fp32, row-major
};
using RopeWriteKernel = void(const RopeWriteArgs&, const Batch&, int64_t kv_head,
                             std::byte* scratch) noexcept;

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
    float* y;  // [T, num_heads * head_dim] fp32
    int64_t stride;
};
// Query rows [row_begin, row_end) (flat row indices, all of request `request`), the heads of one KV head.
using AttentionKernel = void(const AttentionArgs&, const Batch&, int64_t request, int64_t kv_head,
                             int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept;

// Rows of an embedding table in its own row-major dtype, widened to fp32.
struct EmbedArgs {
    const void* table;
    Format format;  // kFloat32, kFloat16 or kBFloat16
    int64_t width;
    float* y;  // [T, width]
};
using EmbedKernel = void(const EmbedArgs&, const Batch&, int64_t row_begin, int64_t row_end) noexcept;

// Sampling of R rows (SamplingRows in step.py, field by field). Scratch per worker: see sampler.cpp.
struct SampleArgs {
    const float* logits;  // [R, V], raw; read only
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
    OperandKernel *operand_float32, *operand_bfloat16, *operand_int8;
    NormKernel* norm;
    GatedKernel* gated;
    EmbedKernel* embed;
    RopeWriteKernel* rope_write;
    AttentionKernel *attention_bfloat16, *attention_float32;
    SampleKernel* sample;
};

// Breaks row-independence on purpose (tests only): 0 none, 1 linear sums depend on M, 2 KV splits depend on
// the context.
extern int g_break_invariance;

}  // namespace penstock
