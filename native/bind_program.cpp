// Program as Python builds and runs it. The arrays a program points into are kept alive by their Python owner
// (backends/cpu/executor.py); the checks that no kernel makes are here for the program, in check_step.cpp for
// a step.
#include <nanobind/stl/pair.h>

#include <algorithm>
#include <tuple>

#include "bind.h"
#include "check_step.h"
#include "program.h"

namespace penstock {
namespace {

const float* floats_or_null(const std::optional<Array<const float>>& a, int64_t size, const char* what) {
    if (!a) return nullptr;
    check(static_cast<int64_t>(a->size()) == size, what);
    return a->data();
}

KVLayer kv_layer(Array<uint8_t>& pool, int64_t first_byte, int64_t num_blocks, int kv_heads, int head_dim,
                 const std::string& dtype, int latent_dim = 0) {
    const int padded = static_cast<int>(round_up(head_dim, 32));
    const KVDtype kv_dtype = kv_dtype_of(dtype);
    const int64_t block_bytes = kv_heads * kv_head_bytes(kv_dtype, padded, latent_dim == 0);
    check(kv_heads > 0 && head_dim > 0 && head_dim <= 576, "head sizes out of range");
    check(latent_dim == 0 || (kv_heads == 1 && latent_dim > 0 && latent_dim < head_dim),
          "latents are a part of one head");
    check(first_byte >= 0 && first_byte % 64 == 0 &&
              first_byte + num_blocks * block_bytes <= static_cast<int64_t>(pool.size()),
          "the KV pool is too small for this layer");
    return {reinterpret_cast<std::byte*>(pool.data()) + first_byte,
            kv_heads,
            head_dim,
            padded,
            kv_dtype,
            latent_dim};
}

StateLayer state_layer(Array<uint8_t>& pool, int64_t first_byte, int64_t num_blocks, int num_heads,
                       int head_dim, int state_size, int channels, int taps) {
    check(num_heads > 0 && head_dim > 0 && head_dim <= kMaxStateDim && state_size > 0 &&
              state_size <= kMaxState && channels > 0 && taps >= 2 && taps <= kMaxTaps,
          "state sizes out of range");
    const StateLayer state{reinterpret_cast<std::byte*>(pool.data()) + first_byte,
                           num_heads,
                           head_dim,
                           state_size,
                           channels,
                           taps};
    check(first_byte >= 0 && first_byte % 64 == 0 &&
              first_byte + num_blocks * state.block_bytes() <= static_cast<int64_t>(pool.size()),
          "the pool of states is too small for this layer");
    return state;
}

RouterScore score_of(const std::string& name) {
    if (name == "softmax") return RouterScore::kSoftmax;
    if (name == "sigmoid") return RouterScore::kSigmoid;
    check(name == "softmax_chosen", "a score is softmax, sigmoid or softmax_chosen");
    return RouterScore::kSoftmaxChosen;
}

using I32 = Array<const int32_t>;
using F32 = Array<const float>;
using Table = nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>;

struct Sizes {
    int64_t vocab = 0, max_context = 0, max_rows = 0, max_logit_rows = 0;
    std::vector<int64_t> num_blocks;     // per group
    bool needs_whole_requests = false;   // some attention is not causal
    std::vector<int> state_groups = {};  // those that hold states
};

class BoundProgram {
  public:
    BoundProgram(const std::string& isa, std::shared_ptr<Pool> pool, int64_t arena_bytes, int64_t vocab,
                 int64_t max_context, int64_t max_rows, int64_t max_logit_rows,
                 std::vector<int64_t> num_blocks)
        : program_(candidate_of(isa), pool, arena_bytes, max_logit_rows * maxima_stride(vocab)),
          sizes_{vocab, max_context, max_rows, max_logit_rows, std::move(num_blocks)} {
        pool->reserve_scratch(std::max(kScratchBytes, sample_scratch_bytes(vocab)));
    }

    int floats(int64_t offset, int64_t width, int64_t rows) {
        return program_.add_value({offset, width, OperandKind::kFloat32, false, rows});
    }
    int operand(int64_t offset, const std::string& kind, int64_t k, int64_t rows) {
        return program_.add_value({offset, k, kind_of(kind), true, rows});
    }

    void embed(const Table& table, const std::string& dtype, float scale,
               const std::optional<Table>& positions, const std::string& position_dtype, int position_offset,
               int out) {
        const int64_t width = program_.value(out).width;
        check(table.ndim() == 2 && static_cast<int64_t>(table.shape(0)) >= sizes_.vocab &&
                  static_cast<int64_t>(table.shape(1)) == width,
              "embedding table size");
        EmbedArgs args{};
        args.tokens = {table.data(), format_of(dtype)};
        check(!has_codes(args.tokens.format), "codes come packed");
        add_embed(args, scale, positions, position_dtype, position_offset, out);
    }

    void embed_codes(const Array<const uint8_t>& packed, const std::string& format, int64_t n, int64_t k,
                     float scale, const std::optional<Table>& positions, const std::string& position_dtype,
                     int position_offset, int out) {
        EmbedArgs args{};
        args.tokens = {nullptr, format_of(format)};
        args.codes = weight_of(format, packed, n, k);
        check(has_codes(args.tokens.format) && n >= sizes_.vocab, "embedding codes too few");
        check(program_.value(out).width == k, "embedding width");
        add_embed(args, scale, positions, position_dtype, position_offset, out);
    }

    // Row `position + offset` of a table of learned positions, alone.
    void embed_positions(const Table& table, const std::string& dtype, int offset, int out) {
        OpRecord op{OpKind::kEmbed};
        op.output = out;
        op.embeds_positions = true;
        const int64_t width = op.embed.width = program_.value(out).width;
        check(table.ndim() == 2 && offset >= 0 &&
                  static_cast<int64_t>(table.shape(0)) >= sizes_.max_context + offset &&
                  static_cast<int64_t>(table.shape(1)) == width,
              "position table size");
        const auto first = static_cast<std::size_t>(offset * width) * table.itemsize();
        op.embed.tokens = {static_cast<const std::byte*>(table.data()) + first, format_of(dtype)};
        check(!has_codes(op.embed.tokens.format), "learned positions are floats");
        program_.add_op(op);
    }

    // `addend`: a value to add, or -1. The output is an operand, or fp32 rows. `rows`: step, logits, hidden.
    void norm(int in, const std::optional<F32>& weight, const std::optional<F32>& bias,
              const std::string& kind, float eps, float offset, int addend, const std::string& rows,
              int out) {
        OpRecord op{OpKind::kNorm};
        check(rows == "step" || rows == "logits" || rows == "hidden", "rows of a norm");
        op.rows = rows == "step" ? Rows::kStep : rows == "logits" ? Rows::kLogits : Rows::kHidden;
        op.input = in;
        op.output = out;
        const int64_t width = program_.value(in).width;
        check(program_.value(out).width == width && (addend < 0 || program_.value(addend).width == width),
              "norm width");
        op.addend = addend;
        op.norm.stride = op.norm.width = width;
        op.norm.spec = {floats_or_null(weight, width, "norm weight size"),
                        floats_or_null(bias, width, "norm bias size"), eps, offset, centers(kind)};
        program_.add_op(op);
    }

    void to_operand(int in, bool logit_rows, int out) {
        OpRecord op{OpKind::kOperand};
        op.rows = logit_rows ? Rows::kLogits : Rows::kStep;
        op.input = in;
        op.output = out;
        check(program_.value(in).width == program_.value(out).width, "operand width");
        program_.add_op(op);
    }

    void linear(const Array<const uint8_t>& packed, const std::string& format, int64_t n, int64_t k, int in,
                int out, const std::optional<F32>& bias, float scale, int addend, bool logit_rows) {
        OpRecord op{OpKind::kLinear};
        op.rows = logit_rows ? Rows::kLogits : Rows::kStep;
        op.weight = weight_of(format, packed, n, k);
        op.input = in;
        op.output = out;
        op.addend = addend;
        op.bias = floats_or_null(bias, n, "bias size");
        op.scale = scale;
        const Value& a = program_.value(in);
        check(a.is_operand && accepts(op.weight.format, a.kind) && a.width == k,
              "operand does not fit the weight");
        check(program_.value(out).width == n, "linear output width");
        check(addend < 0 || program_.value(addend).width == n, "addend width");
        program_.add_op(op);
    }

    void rope_write(int in, int num_heads, int rotary, bool is_interleaved, const std::optional<F32>& q_norm,
                    const std::optional<F32>& k_norm, const std::string& norm_kind, float eps, float offset,
                    bool norms_row, const std::optional<F32>& cos, const std::optional<F32>& sin, int group,
                    Array<uint8_t> pool, int64_t first_byte, int kv_heads, int head_dim,
                    const std::string& dtype, int out) {
        OpRecord op{OpKind::kRopeWrite};
        op.input = in;
        op.output = out;
        op.group = group;
        check(rotary % 2 == 0 && rotary <= head_dim, "rotary size");
        check(num_heads % kv_heads == 0, "heads per KV head must be whole");
        check(program_.value(in).width == int64_t{num_heads + 2 * kv_heads} * head_dim, "qkv width");
        const int64_t table = sizes_.max_context * (rotary / 2);
        const KVLayer kv = kv_layer(pool, first_byte, sizes_.num_blocks.at(static_cast<std::size_t>(group)),
                                    kv_heads, head_dim, dtype);
        const bool is_wide = q_norm && static_cast<int64_t>(q_norm->size()) != head_dim;
        const int64_t q_width = is_wide ? int64_t{num_heads} * head_dim : head_dim;
        const int64_t k_width = is_wide ? int64_t{kv_heads} * head_dim : head_dim;
        check(q_norm.has_value() == k_norm.has_value(), "q and k are both normed, or none");
        op.rope = {nullptr,
                   0,
                   num_heads,
                   rotary,
                   is_interleaved,
                   {floats_or_null(q_norm, q_width, "q_norm size"), nullptr, eps, offset, centers(norm_kind)},
                   {floats_or_null(k_norm, k_width, "k_norm size"), nullptr, eps, offset, centers(norm_kind)},
                   norms_row,
                   is_wide,
                   floats_or_null(cos, table, "cos table size"),
                   floats_or_null(sin, table, "sin table size"),
                   nullptr,
                   nullptr,
                   0,
                   kv,
                   nullptr};
        check(rotary == 0 || (op.rope.cos_table != nullptr && op.rope.sin_table != nullptr),
              "rope tables missing");
        program_.add_op(op);
    }

    void attention(int in, int num_heads, float scale, float softcap, int window, bool is_causal,
                   const std::optional<F32>& sinks, const std::optional<F32>& slopes, int group,
                   Array<uint8_t> pool, int64_t first_byte, int kv_heads, int head_dim, int latent_dim,
                   const std::string& dtype, int out) {
        OpRecord op{OpKind::kAttention};
        op.input = in;
        op.output = out;
        op.group = group;
        const KVLayer kv = kv_layer(pool, first_byte, sizes_.num_blocks.at(static_cast<std::size_t>(group)),
                                    kv_heads, head_dim, dtype, latent_dim);
        check(num_heads % kv_heads == 0, "heads per KV head must be whole");
        check(program_.value(out).width == int64_t{num_heads} * kv.value_dim(), "attention output width");
        op.attention = {nullptr,
                        num_heads,
                        scale,
                        softcap,
                        window,
                        is_causal,
                        floats_or_null(sinks, num_heads, "sinks size"),
                        floats_or_null(slopes, num_heads, "slopes size"),
                        nullptr,
                        kv,
                        nullptr,
                        0};
        sizes_.needs_whole_requests |= !is_causal;
        program_.add_op(op);
    }

    // An operand of every head, its rows one after the other: `out` holds num_heads times as many.
    void heads_operand(int in, int64_t num_heads, int out) {
        OpRecord op{OpKind::kHeadsOperand};
        op.input = in;
        op.output = out;
        op.num_heads = num_heads;
        const Value &x = program_.value(in), &y = program_.value(out);
        check(num_heads >= 1 && y.is_operand && x.width == num_heads * y.width &&
                  y.max_rows >= num_heads * round_up(x.max_rows, kTileRows),
              "operands of heads");
        program_.add_op(op);
    }

    void heads_linear(const Array<const uint8_t>& packed, const std::string& format, int64_t n, int64_t k,
                      int64_t num_heads, int in, int out) {
        OpRecord op{OpKind::kHeadsLinear};
        op.weight = weight_of(format, packed, n, k);
        op.input = in;
        op.output = out;
        op.num_heads = num_heads;
        const Value& a = program_.value(in);
        check(num_heads >= 1 && n % (num_heads * kPanel) == 0, "a head has whole panels");
        check(a.is_operand && accepts(op.weight.format, a.kind) && a.width == k &&
                  program_.value(out).width == n,
              "operand does not fit the heads");
        program_.add_op(op);
    }

    void latent_write(int latent, int q_latent, int q_rope, int num_heads, bool is_interleaved,
                      const F32& weight, const std::string& norm_kind, float eps, float offset,
                      const F32& cos, const F32& sin, int group, Array<uint8_t> pool, int64_t first_byte,
                      int head_dim, int latent_dim, const std::string& dtype, int out) {
        OpRecord op{OpKind::kLatentWrite};
        op.input = latent;
        op.second = q_latent;
        op.third = q_rope;
        op.output = out;
        op.group = group;
        const KVLayer kv = kv_layer(pool, first_byte, sizes_.num_blocks.at(static_cast<std::size_t>(group)),
                                    1, head_dim, dtype, latent_dim);
        const int64_t rope = head_dim - latent_dim, table = sizes_.max_context * (rope / 2);
        check(latent_dim > 0 && rope % 2 == 0, "what turns is pairs");
        check(program_.value(latent).width == head_dim &&
                  program_.value(q_latent).width == int64_t{num_heads} * latent_dim &&
                  program_.value(q_rope).width == num_heads * rope &&
                  program_.value(out).width == int64_t{num_heads} * kv.padded_dim,
              "widths of latents");
        op.latent = {nullptr,
                     nullptr,
                     nullptr,
                     num_heads,
                     is_interleaved,
                     {floats_or_null(weight, latent_dim, "norm weight size"), nullptr, eps, offset,
                      centers(norm_kind)},
                     floats_or_null(cos, table, "cos table size"),
                     floats_or_null(sin, table, "sin table size"),
                     nullptr,
                     nullptr,
                     0,
                     kv,
                     nullptr};
        program_.add_op(op);
    }

    void gated(int in, const std::string& act, bool is_gated, int out) {
        OpRecord op{OpKind::kGated};
        op.input = in;
        op.output = out;
        const int64_t width = program_.value(out).width;
        check(program_.value(in).width == (is_gated ? 2 : 1) * width, "gated width");
        check(is_gated || activation_of(act) != Activation::kClampedSwiglu, "an activation that gates");
        op.gated = {nullptr, 0, width, activation_of(act), is_gated, {}};
        program_.add_op(op);
    }

    void softcap(int in, float cap, int out) {
        OpRecord op{OpKind::kSoftcap};
        op.rows = Rows::kLogits;
        op.input = in;
        op.output = out;
        check(program_.value(in).width == program_.value(out).width && cap > 0, "softcap width or cap");
        op.softcap = {nullptr, nullptr, program_.value(in).width, cap};
        program_.add_op(op);
    }

    void join(int left, int right, int out) {
        OpRecord op{OpKind::kJoin};
        op.input = left;
        op.addend = right;
        op.output = out;
        const Value &a = program_.value(left), &b = program_.value(right), &y = program_.value(out);
        check(!a.is_operand && !b.is_operand && !y.is_operand && y.width == a.width + b.width, "join width");
        program_.add_op(op);
    }

    // x + y, or x + sigmoid(gate) * y where `gate` is a value and not -1.
    void add(int x, int y, int gate, int out) {
        OpRecord op{OpKind::kAdd};
        op.input = x;
        op.addend = y;
        op.gate = gate;
        op.output = out;
        const Value &a = program_.value(x), &b = program_.value(y), &z = program_.value(out);
        check(!a.is_operand && !b.is_operand && !z.is_operand && a.width == z.width && b.width == z.width,
              "add width");
        check(gate < 0 || !program_.value(gate).is_operand, "a gate is fp32");
        program_.add_op(op);
    }

    void route(int logits, const std::optional<F32>& correction, int top_k, const std::string& score,
               bool renormalize, float scale, int num_groups, int groups_kept, int out) {
        OpRecord op{OpKind::kRoute};
        op.input = logits;
        op.output = out;
        const int64_t experts = program_.value(logits).width;
        check(experts <= kMaxExperts && top_k >= 1 && num_groups >= 1 && experts % num_groups == 0 &&
                  groups_kept >= 1 && groups_kept <= num_groups &&
                  top_k <= groups_kept * (experts / num_groups),
              "experts out of range");
        check(program_.value(out).width == int64_t{2} * top_k, "routing width");
        op.route = {nullptr,         floats_or_null(correction, experts, "correction size"),
                    experts,         top_k,
                    num_groups,      groups_kept,
                    score_of(score), renormalize,
                    scale,           nullptr};
        program_.add_op(op);
    }

    // Rows of `x` by expert, gate and up, their activation, down, the weighted sum. `values`: the operand by
    // expert, gate and up, the next operand, the outputs by expert.
    void experts(int x, int routing, const Array<const uint8_t>& gate_up, const std::string& format,
                 int64_t n_in, int64_t k_in, const std::optional<F32>& gate_up_bias,
                 const Array<const uint8_t>& down, const std::string& down_format, int64_t n_out,
                 int64_t k_out, const std::optional<F32>& down_bias, int num_experts, const std::string& act,
                 const std::vector<int>& values, int64_t num_resident, int out) {
        check(num_resident >= 1 && num_resident <= num_experts, "experts in memory: one to all");
        check(values.size() == 4 && num_experts >= 1 && num_experts <= kMaxExperts,
              "experts and their values");
        const int64_t top_k = program_.value(routing).width / 2;
        check(top_k >= 1 && top_k <= num_experts, "routing width");
        const int64_t rows = expert_rows(sizes_.max_rows * top_k, num_experts);
        for (int index : values) check(program_.value(index).max_rows >= rows, "rows of experts");
        const int64_t hidden = program_.value(out).width, inner = program_.value(values[2]).width;
        const Value &a = program_.value(x), &b = program_.value(values[0]);
        check(a.is_operand && b.is_operand && a.kind == b.kind && a.width == b.width, "experts' operand");
        program_.reserve_experts(sizes_.max_rows * top_k, num_experts);
        const auto append = [&](OpKind kind, int input, int output) -> OpRecord {
            OpRecord op{kind};
            op.input = input;
            op.output = output;
            op.num_experts = num_experts;
            op.top_k = top_k;
            return op;
        };
        const auto append_linear = [&](const Array<const uint8_t>& packed, const std::string& name, int64_t n,
                                       int64_t k, const std::optional<F32>& bias, int input, int output) {
            OpRecord op = append(OpKind::kExpertLinear, input, output);
            op.weight = weight_of(name, packed, n, k);
            op.bias = floats_or_null(bias, n, "bias size");
            const Value& from = program_.value(input);
            check(n % (num_experts * kPanel) == 0, "an expert has whole panels");
            check(from.is_operand && accepts(op.weight.format, from.kind) && from.width == k &&
                      !program_.value(output).is_operand && program_.value(output).width == n / num_experts,
                  "operand does not fit the experts");
            program_.add_op(op);
        };
        OpRecord sort = append(OpKind::kSortExperts, routing, -1);
        if (num_resident < num_experts) {
            const auto span = [&](const Array<const uint8_t>& packed) -> Residency::Span {
                return {reinterpret_cast<const std::byte*>(packed.data()),
                        static_cast<int64_t>(packed.size()) / num_experts};
            };
            check(foreseen_ != static_cast<int>(program_.residencies().size()) ||
                      foreseen_experts_ == num_experts,
                  "another layer was foreseen");
            sort.residency = program_.add_residency(std::make_unique<Residency>(
                num_experts, num_resident, std::array{span(gate_up), span(down)}));
        }
        program_.add_op(sort);
        program_.add_op(append(OpKind::kGatherExperts, x, values[0]));
        append_linear(gate_up, format, n_in, k_in, gate_up_bias, values[0], values[1]);
        OpRecord op = append(OpKind::kExpertGated, values[1], values[2]);
        check(program_.value(values[2]).is_operand && program_.value(values[1]).width == 2 * inner,
              "gated width");
        op.gated = {nullptr, 0, inner, activation_of(act), true, {}};
        program_.add_op(op);
        append_linear(down, down_format, n_out, k_out, down_bias, values[2], values[3]);
        check(n_out / num_experts == hidden, "experts' output width");
        if (sort.residency >= 0) {
            op = append(OpKind::kTrimExperts, -1, -1);
            op.residency = sort.residency;
            program_.add_op(op);
        }
        op = append(OpKind::kCombineExperts, values[3], out);
        op.addend = routing;
        program_.add_op(op);
    }

    // The experts that `routing` names will be read by the next layer that is added with some in memory
    // alone.
    void foresee(int routing, int num_experts) {
        OpRecord op{OpKind::kForeseeExperts};
        op.input = routing;
        op.top_k = program_.value(routing).width / 2;
        op.num_experts = num_experts;
        op.residency = static_cast<int>(program_.residencies().size()) + 1;
        check(op.top_k >= 1 && op.top_k <= num_experts, "routing width");
        foreseen_ = op.residency;
        foreseen_experts_ = num_experts;
        program_.add_op(op);
    }

    // [layers][3]: experts found in memory, missing, and missing but foreseen; since the program was made.
    NumpyArray<int64_t> residency() const {
        const auto& layers = program_.residencies();
        auto out = make_array<int64_t>({layers.size(), 3});
        int64_t* at = out.data();
        for (const auto& layer : layers)
            for (const auto* count :
                 {&layer->counts().hits, &layer->counts().misses, &layer->counts().foreseen})
                *at++ = count->load();
        return out;
    }

    // The channels begin at column `first` of `in`; a state's sizes: heads, head_dim, state_size, channels,
    // taps.
    void causal_conv(int in, const F32& weight, const std::optional<F32>& bias, int64_t first, int group,
                     Array<uint8_t> pool, int64_t first_byte, const std::vector<int>& sizes, int out) {
        OpRecord op{OpKind::kCausalConv};
        op.input = in;
        op.output = out;
        op.group = group;
        op.first_column = first;
        op.conv.state = make_state(pool, first_byte, group, sizes);
        const int64_t channels = op.conv.state.channels;
        op.conv.weight = floats_or_null(weight, channels * op.conv.state.taps, "conv weight size");
        op.conv.bias = floats_or_null(bias, channels, "conv bias size");
        check(first >= 0 && first + channels <= program_.value(in).width &&
                  program_.value(out).width == channels,
              "conv channels");
        program_.add_op(op);
    }

    // dt are the last columns of `x`.
    void selective_scan(int xbc, int x, const F32& dt_bias, const F32& a_log, const F32& skip, int num_groups,
                        const std::optional<std::pair<float, float>>& limit, int group, Array<uint8_t> pool,
                        int64_t first_byte, const std::vector<int>& sizes, int out) {
        OpRecord op{OpKind::kSelectiveScan};
        op.input = xbc;
        op.addend = x;
        op.output = out;
        op.group = group;
        op.scan.state = make_state(pool, first_byte, group, sizes);
        const int64_t heads = op.scan.state.num_heads, width = heads * op.scan.state.head_dim;
        op.first_column = program_.value(x).width - heads;
        check(num_groups >= 1 && heads % num_groups == 0 && op.first_column >= 0, "groups of heads");
        check(op.scan.state.channels == width + 2 * int64_t{num_groups} * op.scan.state.state_size &&
                  program_.value(xbc).width == op.scan.state.channels && program_.value(out).width == width,
              "scan width");
        op.scan.dt_bias = floats_or_null(dt_bias, heads, "dt_bias size");
        op.scan.a_log = floats_or_null(a_log, heads, "a_log size");
        op.scan.skip = floats_or_null(skip, heads, "skip size");
        op.scan.num_groups = num_groups;
        op.scan.has_limit = limit.has_value();
        if (limit) std::tie(op.scan.dt_low, op.scan.dt_high) = *limit;
        program_.add_op(op);
    }

    void gated_norm(int y, int z, const F32& weight, int64_t span, float eps, int out) {
        OpRecord op{OpKind::kGatedNorm};
        op.input = y;
        op.gate = z;
        op.output = out;
        const int64_t width = program_.value(y).width;
        check(program_.value(out).is_operand && program_.value(out).width == width &&
                  program_.value(z).width >= width && span >= 1 && width % span == 0,
              "gated norm width");
        op.gated_norm.width = width;
        op.gated_norm.span = span;
        op.gated_norm.weight = floats_or_null(weight, width, "gated norm weight size");
        op.gated_norm.eps = eps;
        program_.add_op(op);
    }

    void sample(int logits) {
        OpRecord op{OpKind::kSample};
        op.rows = Rows::kLogits;
        op.input = logits;
        program_.add_op(op);
    }

    // One step. Returns nothing: outputs are written into sampled, logprob, rank, top_token, top_logprob.
    void run(I32 tokens, I32 positions, I32 query_start, I32 context_len, I32 row_request,
             const std::vector<I32>& block_tables, I32 logit_rows, F32 temperature, I32 top_k, F32 top_p,
             F32 min_p, F32 typical_p, F32 repetition, F32 presence, F32 frequency,
             Array<const uint64_t> seed, Array<const int64_t> position, I32 target, I32 num_logprobs,
             I32 history_start, I32 history_token, I32 history_count, I32 bias_start, I32 bias_token,
             F32 bias_value, const std::optional<Array<const uint32_t>>& allowed, Array<int32_t> sampled,
             Array<float> logprob, Array<int32_t> rank, Array<int32_t> top_token, Array<float> top_logprob,
             const std::optional<I32>& parents, const std::vector<I32>& moves,
             const std::optional<I32>& hidden_rows) {
        const auto size = [](const auto& a) { return static_cast<int64_t>(a.size()); };
        const int64_t t = size(tokens), r = size(logit_rows), b = size(context_len);
        check(t >= 1 && t <= sizes_.max_rows && r <= sizes_.max_logit_rows,
              "more rows than the program was built for");
        check(size(positions) == t && size(row_request) == t && size(query_start) == b + 1,
              "step array sizes");
        check(block_tables.size() == sizes_.num_blocks.size() && !block_tables.empty(),
              "one block table per KV group");
        check(foreseen_ < static_cast<int>(program_.residencies().size()),
              "no layer was added that is foreseen");
        Step step{};
        const int64_t max_blocks = static_cast<int64_t>(block_tables[0].shape(1));
        for (std::size_t g = 0; g < block_tables.size(); ++g) {
            const I32& table = block_tables[g];
            check(table.ndim() == 2 && static_cast<int64_t>(table.shape(0)) == b &&
                      static_cast<int64_t>(table.shape(1)) == max_blocks,
                  "block table shape");
            for (int64_t i = 0; i < size(table); ++i)
                check(table.data()[i] >= 0 && table.data()[i] < sizes_.num_blocks[g],
                      "block id outside the pool");
            step.block_tables.push_back(table.data());
        }
        step.batch = {t,
                      b,
                      max_blocks,
                      tokens.data(),
                      positions.data(),
                      query_start.data(),
                      context_len.data(),
                      row_request.data(),
                      positions.data(),
                      nullptr};
        check_step(step.batch, sizes_.vocab, sizes_.max_context);
        for (int group : sizes_.state_groups) {
            check(!parents && moves.empty(), "drafts cannot be taken back from a recurrent state");
            check_states(step.batch, step.block_tables[static_cast<std::size_t>(group)]);
        }
        for (int64_t i = 0; sizes_.needs_whole_requests && i < b; ++i)
            check(query_start.data()[i + 1] - query_start.data()[i] == context_len.data()[i],
                  "attention both ways needs whole requests");
        if (parents) {
            check(size(*parents) == t && !sizes_.needs_whole_requests, "step array sizes");
            slots_.resize(static_cast<std::size_t>(t));
            step.batch.slots = slots_.data();
            step.batch.parents = parents->data();
            place_tree(step.batch, slots_);
        }
        check(moves.empty() || moves.size() == sizes_.num_blocks.size(), "moves of every KV group");
        for (std::size_t g = 0; g < moves.size(); ++g) {
            check(size(moves[g]) % 2 == 0, "moves are pairs");
            for (int64_t i = 0; i < size(moves[g]); ++i)
                check(moves[g].data()[i] >= 0 && moves[g].data()[i] / kBlockTokens < sizes_.num_blocks[g],
                      "moved slot outside the pool");
            step.moves.push_back({moves[g].data(), size(moves[g]) / 2});
        }
        step.num_logit_rows = r;
        step.logit_rows = logit_rows.data();
        for (int64_t i = 0; i < r; ++i)
            check(logit_rows.data()[i] >= 0 && logit_rows.data()[i] < t, "logit row outside the step");
        step.num_hidden_rows = hidden_rows ? size(*hidden_rows) : 0;
        step.hidden_rows = hidden_rows ? hidden_rows->data() : nullptr;
        check(step.num_hidden_rows <= t, "more hidden rows than rows");
        for (int64_t i = 0; i < step.num_hidden_rows; ++i)
            check(step.hidden_rows[i] >= 0 && step.hidden_rows[i] < t, "hidden row outside the step");
        for (int64_t n :
             {size(temperature), size(top_k), size(top_p), size(min_p), size(typical_p), size(repetition),
              size(presence), size(frequency), size(seed), size(position), size(target), size(num_logprobs),
              size(history_start) - 1, size(bias_start) - 1, size(sampled), size(logprob), size(rank)})
            check(n == r, "sampling array sizes");
        check(history_start.data()[0] == 0 && size(history_token) >= history_start.data()[r] &&
                  size(history_count) >= history_start.data()[r],
              "history sizes");
        check(bias_start.data()[0] == 0 && size(bias_token) >= bias_start.data()[r] &&
                  size(bias_value) >= bias_start.data()[r],
              "bias sizes");
        for (int64_t i = 0; i < r; ++i)
            check(history_start.data()[i] <= history_start.data()[i + 1] &&
                      bias_start.data()[i] <= bias_start.data()[i + 1] && target.data()[i] < sizes_.vocab,
                  "sampling rows");
        for (int64_t i = 0; i < history_start.data()[r]; ++i)
            check(history_token.data()[i] >= 0 && history_token.data()[i] < sizes_.vocab, "history token");
        for (int64_t i = 0; i < bias_start.data()[r]; ++i)
            check(bias_token.data()[i] >= 0 && bias_token.data()[i] < sizes_.vocab, "bias token");
        check(!allowed || size(*allowed) == r * ((sizes_.vocab + 31) / 32), "allowed mask size");
        const int64_t columns = r == 0 ? 0 : size(top_token) / r;
        check(size(top_token) == r * columns && size(top_logprob) == r * columns, "logprob output sizes");
        for (int64_t i = 0; i < r; ++i) check(num_logprobs.data()[i] <= columns, "logprob output columns");
        step.sample = {nullptr,
                       nullptr,
                       sizes_.vocab,
                       temperature.data(),
                       top_p.data(),
                       min_p.data(),
                       typical_p.data(),
                       repetition.data(),
                       presence.data(),
                       frequency.data(),
                       top_k.data(),
                       target.data(),
                       num_logprobs.data(),
                       seed.data(),
                       position.data(),
                       history_start.data(),
                       history_token.data(),
                       history_count.data(),
                       bias_start.data(),
                       bias_token.data(),
                       bias_value.data(),
                       allowed ? allowed->data() : nullptr,
                       columns,
                       sampled.data(),
                       logprob.data(),
                       rank.data(),
                       top_token.data(),
                       top_logprob.data()};
        nb::gil_scoped_release release;
        program_.run(step);
    }

    // A copy of fp32 rows of a value after a run (taps).
    NumpyArray<float> read(int value, int64_t rows) {
        const Value& v = program_.value(value);
        check(!v.is_operand && rows <= v.max_rows, "only fp32 values can be read");
        auto out = make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(v.width)});
        std::memcpy(out.data(), program_.floats(value), static_cast<std::size_t>(rows * v.width) * 4);
        return out;
    }

    std::string isa() const { return program_.isa(); }
    int64_t num_ops() const { return static_cast<int64_t>(program_.ops().size()); }
    void set_profiling(int64_t steps) {
        check(steps >= 0 && steps <= 1 << 20, "a profile keeps 0 to 1,048,576 steps");
        program_.set_profiling(steps);
    }

    // [steps][ops][2] nanoseconds, oldest step first: worker 0's own share, and until all were done.
    NumpyArray<int64_t> profile() const {
        const Profile& p = program_.profile();
        const auto kept = static_cast<std::size_t>(std::min(p.num_runs, p.capacity));
        const std::size_t ops = program_.ops().size();
        auto out = make_array<int64_t>({kept, ops, 2});
        int64_t* at = out.data();
        for (std::size_t i = 0; i < kept; ++i) {
            const auto run = static_cast<std::size_t>(p.num_runs) - kept + i;
            const Profile::OpTime* row = p.times.data() + run % static_cast<std::size_t>(p.capacity) * ops;
            for (std::size_t op = 0; op < ops; ++op) {
                *at++ = row[op].own_ns;
                *at++ = row[op].whole_ns;
            }
        }
        return out;
    }

  private:
    StateLayer make_state(Array<uint8_t>& pool, int64_t first_byte, int group, const std::vector<int>& s) {
        check(s.size() == 5, "five sizes of a state");
        const int64_t blocks = sizes_.num_blocks.at(static_cast<std::size_t>(group));
        if (std::find(sizes_.state_groups.begin(), sizes_.state_groups.end(), group) ==
            sizes_.state_groups.end())
            sizes_.state_groups.push_back(group);
        return state_layer(pool, first_byte, blocks, s[0], s[1], s[2], s[3], s[4]);
    }

    void add_embed(const EmbedArgs& args, float scale, const std::optional<Table>& positions,
                   const std::string& position_dtype, int position_offset, int out) {
        OpRecord op{OpKind::kEmbed};
        op.output = out;
        op.embed = args;
        op.embed.width = program_.value(out).width;
        op.embed.scale = scale;
        op.embed.position_offset = position_offset;
        if (positions) {
            check(positions->ndim() == 2 && position_offset >= 0 &&
                      static_cast<int64_t>(positions->shape(0)) >= sizes_.max_context + position_offset &&
                      static_cast<int64_t>(positions->shape(1)) == op.embed.width,
                  "position table size");
            op.embed.positions = {positions->data(), format_of(position_dtype)};
            check(!has_codes(op.embed.positions.format), "learned positions are floats");
        }
        program_.add_op(op);
    }

    Program program_;
    Sizes sizes_;
    std::vector<int32_t> slots_;  // of a step with a tree
    int foreseen_ = -1;           // a layer to be added
    int64_t foreseen_experts_ = 0;
};

}  // namespace

void bind_program(nb::module_& m) {
    m.def("operand_bytes", [](const std::string& kind, int64_t rows, int64_t k) {
        const OperandKind o = kind_of(kind);
        const int64_t kp = round_up(k, 64), r = round_up(rows, kTileRows);
        const int64_t data = round_up(operand_bytes(o, rows, k), 64);
        return o == OperandKind::kInt8
                   ? data + round_up(r * ((kp + 127) / 128) * 4, 64) + round_up(r * kp / 32 * 4, 64)
                   : data;
    });
    m.def("expert_rows", [](int64_t rows, int64_t top_k, int64_t num_experts) {
        return expert_rows(rows * top_k, num_experts);
    });
    nb::class_<BoundProgram>(m, "Program")
        .def(nb::init<const std::string&, std::shared_ptr<Pool>, int64_t, int64_t, int64_t, int64_t, int64_t,
                      std::vector<int64_t>>())
        .def("floats", &BoundProgram::floats)
        .def("operand", &BoundProgram::operand)
        .def("embed", &BoundProgram::embed, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
             nb::arg(), nb::arg())
        .def("embed_codes", &BoundProgram::embed_codes, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg().none(), nb::arg(), nb::arg(), nb::arg())
        .def("embed_positions", &BoundProgram::embed_positions)
        .def("norm", &BoundProgram::norm)
        .def("to_operand", &BoundProgram::to_operand)
        .def("linear", &BoundProgram::linear, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg())
        .def("rope_write", &BoundProgram::rope_write)
        .def("attention", &BoundProgram::attention, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg().none(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg(), nb::arg(), nb::arg())
        .def("heads_operand", &BoundProgram::heads_operand)
        .def("heads_linear", &BoundProgram::heads_linear)
        .def("latent_write", &BoundProgram::latent_write)
        .def("gated", &BoundProgram::gated)
        .def("join", &BoundProgram::join)
        .def("softcap", &BoundProgram::softcap)
        .def("add", &BoundProgram::add)
        .def("route", &BoundProgram::route, nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg(), nb::arg(), nb::arg())
        .def("experts", &BoundProgram::experts, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg().none(),
             nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg())
        .def("foresee", &BoundProgram::foresee)
        .def("residency", &BoundProgram::residency)
        .def("causal_conv", &BoundProgram::causal_conv, nb::arg(), nb::arg(), nb::arg().none(), nb::arg(),
             nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg())
        .def("selective_scan", &BoundProgram::selective_scan, nb::arg(), nb::arg(), nb::arg(), nb::arg(),
             nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg())
        .def("gated_norm", &BoundProgram::gated_norm)
        .def("sample", &BoundProgram::sample)
        .def("run", &BoundProgram::run)
        .def("read", &BoundProgram::read)
        .def_prop_ro("isa", &BoundProgram::isa)
        .def_prop_ro("num_ops", &BoundProgram::num_ops)
        .def("set_profiling", &BoundProgram::set_profiling)
        .def("profile", &BoundProgram::profile);
}

}  // namespace penstock
