// Entries for the contract tests: one kernel of one instruction set on plain arrays. Not used by the product.
#include <algorithm>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "bind.h"
#include "guarded.h"
#include "pack.h"
#include "self_test.h"
#include "threads.h"

namespace penstock {
namespace {

using F32 = Array<const float>;
using I32 = Array<const int32_t>;

// Memory of one operand.
class OperandMemory {
  public:
    OperandMemory(OperandKind kind, int64_t rows, int64_t k)
        : data_(static_cast<std::size_t>(operand_bytes(kind, rows, k))),
          scale_(static_cast<std::size_t>(round_up(rows, 16) * round_up(k, 128) / 128 * 4)),
          sum_(static_cast<std::size_t>(round_up(rows, 16) * round_up(k, 64) / 32 * 4)) {
        operand = {kind, round_up(k, 64), data_.as<std::byte>(), scale_.as<float>(), sum_.as<int32_t>()};
    }
    Operand operand;

  private:
    GuardedMemory data_, scale_, sum_;
};

Pool& test_pool() {
    static Pool pool(1);
    return pool;
}

template <class F>
void run_here(F&& body) {  // on the pool's caller, so that FTZ and DAZ are set as in a step
    test_pool().run(
        {[](void* self, int) noexcept { (*static_cast<F*>(self))(test_pool().scratch(0)); }, &body});
}

NumpyArray<uint8_t> pack_one(const std::string& format,
                             const nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>& w,
                             const std::string& dtype) {
    const Format f = format_of(format);
    check(w.ndim() == 2, "w is [n, k]");
    check(!has_codes(f) || is_quantizer(f), "nothing quantizes to this format");
    const auto n = static_cast<int64_t>(w.shape(0)), k = static_cast<int64_t>(w.shape(1));
    const int64_t panels = (n + kPanel - 1) / kPanel;
    auto out = make_array<uint8_t>({static_cast<std::size_t>(panels * panel_bytes(f, k))});
    const SourceMatrix source{w.data(), format_of(dtype), n, k, k};
    check(pack_panels(source, f, reinterpret_cast<std::byte*>(out.data()), 0, panels),
          "NaN or Inf in the source");
    return out;
}

NumpyArray<float> unpack_one(const std::string& format, Array<const uint8_t> packed, int64_t n, int64_t k) {
    const Format f = format_of(format);
    check(!has_codes(f) || is_quantizer(f), "only formats that can be packed here");
    auto out = make_array<float>({static_cast<std::size_t>(n), static_cast<std::size_t>(k)});
    unpack_panels(weight_of(format, packed, n, k), out.data());
    return out;
}

OperandKernel* operand_kernel(const KernelTable& t, OperandKind kind) {
    return kind == OperandKind::kFloat32    ? t.operand_float32
           : kind == OperandKind::kBFloat16 ? t.operand_bfloat16
                                            : t.operand_int8;
}

// As LinearOut and SampleArgs have them; what no linear writes is -1.
std::vector<float> maxima_of(const float* y, int64_t rows, int64_t width) {
    const int64_t stride = maxima_stride(width);
    std::vector<float> out(static_cast<std::size_t>(rows * stride), -1.0f);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t g = 0; g < width / kMaximaOf; ++g) {
            float highest = -std::numeric_limits<float>::infinity();
            for (int64_t i = 0; i < kMaximaOf; ++i)
                highest = std::max(highest, y[r * width + g * kMaximaOf + i]);  // NaN loses
            out[static_cast<std::size_t>(r * stride + g)] = highest;
        }
    return out;
}

NumpyArray<float> test_linear(const std::string& isa, const std::string& format, Array<const uint8_t> packed,
                              int64_t n, int64_t k, F32 x, const std::optional<F32>& bias,
                              const std::optional<F32>& addend, const std::optional<std::string>& kind,
                              float scale) {
    const KernelTable& t = candidate_of(isa).table();
    PackedWeight w = weight_of(format, packed, n, k);
    const OperandKind operand = kind ? kind_of(*kind) : operand_of(w.format);
    check(accepts(w.format, operand), "the format does not take this operand");
    check(x.ndim() == 2 && static_cast<int64_t>(x.shape(1)) == k, "x is [T, K]");
    const auto rows = static_cast<int64_t>(x.shape(0));
    check(!bias || static_cast<int64_t>(bias->size()) == n, "bias is [N]");
    check(!addend || static_cast<int64_t>(addend->size()) == rows * n, "addend is [T, N]");
    // All that the kernels see ends at a guard page.
    const GuardedMemory panels(packed.data(), packed.size()), input(x.data(), x.size());
    const GuardedMemory biases(bias ? bias->data() : nullptr, bias ? bias->size() : 0);
    const GuardedMemory added(addend ? addend->data() : nullptr, addend ? addend->size() : 0);
    const GuardedMemory output(static_cast<std::size_t>(rows * n) * 4);
    w.data = panels.as<std::byte>();
    std::vector<float> maxima(static_cast<std::size_t>(rows * maxima_stride(n)), -1.0f);
    OperandMemory memory(operand, rows, k);
    const LinearOut y{output.as<float>(),
                      n,
                      bias ? biases.as<float>() : nullptr,
                      addend ? added.as<float>() : nullptr,
                      n,
                      scale,
                      maxima.data()};
    run_here([&](std::byte* scratch) noexcept {
        operand_kernel(t, memory.operand.kind)(input.as<float>(), k, k, memory.operand, 0, rows);
        const int64_t half = w.num_panels / 2;  // two calls, as two workers would make them
        LinearKernel* const linear = linear_kernel(t, w.format, operand);
        linear(w, memory.operand, rows, y, half, w.num_panels, scratch);
        if (half > 0) linear(w, memory.operand, rows, y, 0, half, scratch);
    });
    check(maxima == maxima_of(output.as<float>(), rows, n), "maxima that are not those of y");
    auto out = make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(n)});
    std::memcpy(out.data(), output.as<float>(), static_cast<std::size_t>(rows * n) * 4);
    return out;
}

// Rows of an operand widened to fp32.
NumpyArray<float> read_operand(const Operand& a, int64_t rows, int64_t width) {
    auto out = make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(width)});
    const int64_t blocks = (a.k_padded + 127) / 128;
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < width; ++c) {
            float v = 0;
            if (a.kind == OperandKind::kFloat32) {
                v = static_cast<const float*>(a.data)[r * a.k_padded + c];
            } else if (a.kind == OperandKind::kBFloat16) {
                const uint16_t h = static_cast<const uint16_t*>(
                    a.data)[((r / 16) * (a.k_padded / 32) + c / 32) * 512 + (r % 16) * 32 + c % 32];
                const uint32_t u = static_cast<uint32_t>(h) << 16;
                std::memcpy(&v, &u, 4);
            } else {
                const int8_t q = static_cast<const int8_t*>(
                    a.data)[((r / 16) * (a.k_padded / 64) + c / 64) * 1024 + (r % 16) * 64 + c % 64];
                v = static_cast<float>(q) * a.scale[((r / 16) * blocks + c / 128) * 16 + r % 16];
            }
            out.data()[r * width + c] = v;
        }
    return out;
}

// kind "add": fp32 rows, plus `addend`; else an operand of that kind.
NumpyArray<float> test_norm(const std::string& isa, const std::string& kind, F32 x,
                            const std::optional<F32>& weight, float eps, float offset,
                            const std::string& norm_kind, const std::optional<F32>& bias,
                            const std::optional<F32>& addend) {
    const KernelTable& t = candidate_of(isa).table();
    check(x.ndim() == 2, "x is [T, H]");
    const auto rows = static_cast<int64_t>(x.shape(0)), width = static_cast<int64_t>(x.shape(1));
    const auto has_width = [&](const std::optional<F32>& v, int64_t n) {
        return !v || static_cast<int64_t>(v->size()) == n;
    };
    check(has_width(weight, width) && has_width(bias, width) && has_width(addend, rows * width),
          "weight and bias are [H], addend is [T, H]");
    const bool is_operand = kind != "add";
    OperandMemory memory(is_operand ? kind_of(kind) : OperandKind::kFloat32, rows, width);
    auto y = make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(width)});
    const NormSpec spec{weight ? weight->data() : nullptr, bias ? bias->data() : nullptr, eps, offset,
                        centers(norm_kind)};
    const NormArgs args{x.data(),
                        width,
                        width,
                        spec,
                        nullptr,
                        memory.operand,
                        is_operand ? nullptr : y.data(),
                        addend ? addend->data() : nullptr};
    run_here([&](std::byte* scratch) noexcept { t.norm(args, 0, rows, scratch); });
    return is_operand ? read_operand(memory.operand, rows, width) : y;
}

NumpyArray<float> test_gated(const std::string& isa, const std::string& kind, F32 x, const std::string& act,
                             bool is_gated) {
    const KernelTable& t = candidate_of(isa).table();
    check(x.ndim() == 2 && (x.shape(1) % 2 == 0 || !is_gated), "x is [T, 2F], or [T, F]");
    const auto rows = static_cast<int64_t>(x.shape(0)), stride = static_cast<int64_t>(x.shape(1));
    const int64_t width = is_gated ? stride / 2 : stride;
    OperandMemory memory(kind_of(kind), rows, width);
    const GatedArgs args{x.data(), stride, width, activation_of(act), is_gated, memory.operand};
    run_here([&](std::byte* scratch) noexcept { t.gated(args, 0, rows, scratch); });
    return read_operand(memory.operand, rows, width);
}

NumpyArray<float> test_embed(const std::string& isa,
                             const nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu>& table,
                             const std::string& dtype, I32 tokens, I32 positions, float scale,
                             const std::optional<F32>& position_table, int position_offset) {
    const auto rows = static_cast<int64_t>(tokens.size()), width = static_cast<int64_t>(table.shape(1));
    Batch batch{};
    batch.num_rows = rows;
    batch.tokens = tokens.data();
    batch.positions = positions.data();
    auto y = make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(width)});
    const EmbedTable places{position_table ? position_table->data() : nullptr, Format::kFloat32};
    const EmbedArgs args{
        {table.data(), format_of(dtype)}, places, width, scale, position_offset, y.data(), {}};
    run_here([&](std::byte*) noexcept { candidate_of(isa).table().embed(args, batch, 0, rows); });
    return y;
}

NumpyArray<float> test_softcap(const std::string& isa, F32 x, float cap) {
    const auto rows = static_cast<int64_t>(x.shape(0)), width = static_cast<int64_t>(x.shape(1));
    auto y = make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(width)});
    const SoftcapArgs args{x.data(), y.data(), width, cap};
    run_here([&](std::byte*) noexcept { candidate_of(isa).table().softcap(args, 0, rows); });
    return y;
}

AttentionPart part_of(int64_t request, int64_t head, int64_t num_heads, int64_t begin, int64_t end) {
    return {static_cast<int32_t>(request), static_cast<int32_t>(head), static_cast<int32_t>(head + num_heads),
            static_cast<int32_t>(begin), static_cast<int32_t>(end)};
}

NumpyArray<float> test_attention(const std::string& isa, const std::string& dtype, F32 qkv, int num_heads,
                                 int num_kv_heads, int head_dim, I32 positions, I32 query_start,
                                 I32 context_len, I32 block_table, Array<uint8_t> kv_pool, F32 cos, F32 sin,
                                 float scale, float softcap, int window, int row_chunk,
                                 const std::optional<F32>& q_norm, const std::optional<F32>& k_norm,
                                 bool is_causal, const std::optional<F32>& sinks,
                                 const std::optional<F32>& slopes) {
    const KernelTable& t = candidate_of(isa).table();
    const auto rows = static_cast<int64_t>(qkv.shape(0)), requests = static_cast<int64_t>(context_len.size());
    check(static_cast<int64_t>(qkv.shape(1)) == int64_t{num_heads + 2 * num_kv_heads} * head_dim,
          "qkv is [T, Q + 2C]");
    const int padded = static_cast<int>(round_up(head_dim, 32));
    const KVLayer kv{reinterpret_cast<std::byte*>(kv_pool.data()), num_kv_heads, head_dim, padded,
                     kv_dtype_of(dtype)};
    std::vector<int32_t> row_request(static_cast<std::size_t>(rows));
    for (int64_t b = 0; b < requests; ++b)
        for (int32_t r = query_start.data()[b]; r < query_start.data()[b + 1]; ++r)
            row_request[static_cast<std::size_t>(r)] = static_cast<int32_t>(b);
    const Batch batch{rows,
                      requests,
                      static_cast<int64_t>(block_table.shape(1)),
                      positions.data(),
                      positions.data(),
                      query_start.data(),
                      context_len.data(),
                      row_request.data(),
                      positions.data(),
                      nullptr};
    std::vector<float> q(static_cast<std::size_t>(rows * num_heads * padded) + 16);
    auto y =
        make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(num_heads * head_dim)});
    const int rotary = static_cast<int>(cos.shape(1)) * 2;
    const RopeWriteArgs rope{qkv.data(),
                             static_cast<int64_t>(qkv.shape(1)),
                             num_heads,
                             rotary,
                             false,
                             {q_norm ? q_norm->data() : nullptr, nullptr, 1e-6f, 0.0f, false},
                             {k_norm ? k_norm->data() : nullptr, nullptr, 1e-6f, 0.0f, false},
                             false,
                             false,
                             cos.data(),
                             sin.data(),
                             block_table.data(),
                             nullptr,
                             0,
                             kv,
                             q.data()};
    const AttentionArgs attention{q.data(),
                                  num_heads,
                                  scale,
                                  softcap,
                                  window,
                                  is_causal,
                                  sinks ? sinks->data() : nullptr,
                                  slopes ? slopes->data() : nullptr,
                                  block_table.data(),
                                  kv,
                                  y.data(),
                                  int64_t{num_heads} * head_dim};
    run_here([&](std::byte* scratch) noexcept {
        for (int64_t h = 0; h < num_kv_heads; ++h) t.rope_write(rope, batch, h, scratch);
        AttentionKernel* kernel = t.attention(kv.dtype);
        for (int64_t b = 0; b < requests; ++b)
            for (int64_t h = 0; h < num_kv_heads; ++h)
                for (int64_t r = query_start.data()[b]; r < query_start.data()[b + 1]; r += row_chunk) {
                    const int64_t end = r + row_chunk, last = query_start.data()[b + 1];
                    const auto group = static_cast<int64_t>(num_heads / num_kv_heads);
                    kernel(attention, batch, part_of(b, h * group, group, r, end < last ? end : last),
                           scratch);
                }
    });
    return y;
}

// Latents from the products to attention's output; requests as above. `head_chunk`: heads of one call.
NumpyArray<float> test_latents(const std::string& isa, const std::string& dtype, F32 latent, F32 q_latent,
                               F32 q_rope, F32 weight, int num_heads, int latent_dim, bool is_interleaved,
                               I32 positions, I32 query_start, I32 context_len, I32 block_table,
                               Array<uint8_t> kv_pool, F32 cos, F32 sin, float scale, int row_chunk,
                               int head_chunk) {
    const KernelTable& t = candidate_of(isa).table();
    const auto rows = static_cast<int64_t>(latent.shape(0)),
               requests = static_cast<int64_t>(context_len.size());
    const int head_dim = static_cast<int>(latent.shape(1)), rope = head_dim - latent_dim;
    const int padded = static_cast<int>(round_up(head_dim, 32));
    check(static_cast<int64_t>(q_latent.shape(1)) == int64_t{num_heads} * latent_dim &&
              static_cast<int64_t>(q_rope.shape(1)) == int64_t{num_heads} * rope &&
              static_cast<int64_t>(cos.shape(1)) * 2 == rope && head_dim <= 576,
          "widths of latents");
    const KVLayer kv{
        reinterpret_cast<std::byte*>(kv_pool.data()), 1, head_dim, padded, kv_dtype_of(dtype), latent_dim};
    std::vector<int32_t> row_request(static_cast<std::size_t>(rows));
    for (int64_t b = 0; b < requests; ++b)
        for (int32_t r = query_start.data()[b]; r < query_start.data()[b + 1]; ++r)
            row_request[static_cast<std::size_t>(r)] = static_cast<int32_t>(b);
    const Batch batch{rows,
                      requests,
                      static_cast<int64_t>(block_table.shape(1)),
                      positions.data(),
                      positions.data(),
                      query_start.data(),
                      context_len.data(),
                      row_request.data(),
                      positions.data(),
                      nullptr};
    std::vector<float> q(static_cast<std::size_t>(rows * num_heads * padded) + 16);
    auto y =
        make_array<float>({static_cast<std::size_t>(rows), static_cast<std::size_t>(num_heads * latent_dim)});
    const LatentWriteArgs write{latent.data(),
                                q_latent.data(),
                                q_rope.data(),
                                num_heads,
                                is_interleaved,
                                {weight.data(), nullptr, 1e-6f, 0.0f, false},
                                cos.data(),
                                sin.data(),
                                block_table.data(),
                                nullptr,
                                0,
                                kv,
                                q.data()};
    const AttentionArgs attention{q.data(), num_heads, scale,
                                  0.0f,     0,         true,
                                  nullptr,  nullptr,   block_table.data(),
                                  kv,       y.data(),  int64_t{num_heads} * latent_dim};
    run_here([&](std::byte* scratch) noexcept {
        t.latent_key(write, batch, scratch);
        t.latent_query(write, batch, 0, rows, scratch);
        for (int64_t b = 0; b < requests; ++b)
            for (int64_t h = 0; h < num_heads; h += head_chunk)
                for (int64_t r = query_start.data()[b]; r < query_start.data()[b + 1]; r += row_chunk) {
                    const int64_t end = r + row_chunk, last = query_start.data()[b + 1];
                    const int64_t heads = std::min<int64_t>(head_chunk, num_heads - h);
                    t.attention(kv.dtype)(attention, batch, part_of(b, h, heads, r, end < last ? end : last),
                                          scratch);
                }
    });
    return y;
}

nb::dict test_sample(const std::string& isa, F32 logits, const nb::dict& fields, int max_logprobs) {
    const KernelTable& t = candidate_of(isa).table();
    const auto rows = static_cast<int64_t>(logits.shape(0)), vocab = static_cast<int64_t>(logits.shape(1));
    test_pool().reserve_scratch(sample_scratch_bytes(vocab));
    const auto r = static_cast<std::size_t>(rows), columns = static_cast<std::size_t>(max_logprobs);
    auto sampled = make_array<int32_t>({r}), rank = make_array<int32_t>({r});
    auto logprob = make_array<float>({r});
    auto top_token = make_array<int32_t>({r, columns});
    auto top_logprob = make_array<float>({r, columns});
    std::fill_n(top_token.data(), r * columns, -1);
    std::fill_n(top_logprob.data(), r * columns, 0.0f);
    const auto f32 = [&](const char* name) { return nb::cast<F32>(fields[name]).data(); };
    const auto i32 = [&](const char* name) { return nb::cast<I32>(fields[name]).data(); };
    const nb::object allowed = fields["allowed"];
    const GuardedMemory guarded(logits.data(), logits.size());
    SampleArgs args{guarded.as<float>(),
                    nullptr,
                    vocab,
                    f32("temperature"),
                    f32("top_p"),
                    f32("min_p"),
                    f32("typical_p"),
                    f32("repetition_penalty"),
                    f32("presence_penalty"),
                    f32("frequency_penalty"),
                    i32("top_k"),
                    i32("target"),
                    i32("num_logprobs"),
                    nb::cast<Array<const uint64_t>>(fields["seed"]).data(),
                    nb::cast<Array<const int64_t>>(fields["position"]).data(),
                    i32("history_start"),
                    i32("history_token"),
                    i32("history_count"),
                    i32("bias_start"),
                    i32("bias_token"),
                    f32("bias_value"),
                    allowed.is_none() ? nullptr : nb::cast<Array<const uint32_t>>(allowed).data(),
                    max_logprobs,
                    sampled.data(),
                    logprob.data(),
                    rank.data(),
                    top_token.data(),
                    top_logprob.data()};
    const auto draw = [&] {
        run_here([&](std::byte* scratch) noexcept {
            for (int64_t row = 0; row < rows; ++row) t.sample(args, row, scratch);
        });
        check(std::memcmp(guarded.as<float>(), logits.data(), logits.size() * 4) == 0, "logits were changed");
        std::string all;
        const auto add = [&](const auto& array) {
            all.append(reinterpret_cast<const char*>(array.data()), array.size() * 4);
        };
        add(sampled), add(logprob), add(rank), add(top_token), add(top_logprob);
        return all;
    };
    const std::string alone = draw();
    std::vector<float> maxima = maxima_of(logits.data(), rows, vocab);
    args.maxima = maxima.data();
    check(draw() == alone, "what is known of the maxima changes the sample");
    nb::dict out;
    out["sampled"] = sampled;
    out["logprob"] = logprob;
    out["rank"] = rank;
    out["top_token"] = top_token;
    out["top_logprob"] = top_logprob;
    return out;
}

// The start-up self-test on two tables of this machine. `sabotaged` names a kernel of the first that answers
// wrongly by one bit.
LinearKernel* g_honest = nullptr;

void sabotaged(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out, int64_t begin,
               int64_t end, std::byte* scratch) noexcept {
    g_honest(w, a, rows, out, begin, end, scratch);
    uint32_t bits = 0;
    float& last = out.y[(rows - 1) * out.stride + w.n - 1];
    std::memcpy(&bits, &last, 4);
    bits ^= 1U;
    std::memcpy(&last, &bits, 4);
}

std::string test_self_test(const std::string& isa, const std::string& fallback, const std::string& kernel) {
    KernelTable table = candidate_of(isa).table();
    LinearKernel** const slot = kernel == "linear_bfloat16" ? &table.linear_bfloat16
                                : kernel == "linear_int8"   ? &table.linear_int8
                                : kernel == "linear_codes4" ? &table.linear_codes4
                                : kernel == "linear_codes8" ? &table.linear_codes8
                                                            : &table.linear_int4;
    g_honest = *slot;
    if (!kernel.empty()) *slot = sabotaged;
    const char* found = first_difference(table, candidate_of(fallback).table());
    return found == nullptr ? "" : found;
}

// Ends the process, if the guard is one.
void test_read_past_the_end() {
    const GuardedMemory memory(64);
    [[maybe_unused]] const volatile std::byte beyond = memory.as<volatile std::byte>()[64];
}

}  // namespace

void bind_tests(nb::module_& m) {
    m.def("test_read_past_the_end", &test_read_past_the_end);
    m.def("pack", &pack_one);
    m.def("unpack", &unpack_one);
    m.def("test_linear", &test_linear, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg().none(), nb::arg().none(), nb::arg().none() = nb::none(), nb::arg() = 1.0f);
    m.def("test_norm", &test_norm, nb::arg(), nb::arg(), nb::arg(), nb::arg().none(), nb::arg(), nb::arg(),
          nb::arg() = "rms", nb::arg() = nb::none(), nb::arg() = nb::none());
    m.def("test_gated", &test_gated, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg() = true);
    m.def("test_embed", &test_embed, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg().none() = nb::none(), nb::arg() = 0);
    m.def("test_softcap", &test_softcap);
    m.def("test_latents", &test_latents);
    m.def("test_attention", &test_attention, nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(), nb::arg(),
          nb::arg(), nb::arg(), nb::arg().none() = nb::none(), nb::arg().none() = nb::none(),
          nb::arg() = true, nb::arg().none() = nb::none(), nb::arg().none() = nb::none());
    m.def("test_sample", &test_sample);
    m.def("test_self_test", &test_self_test);
    m.def("set_break", [](int kind) { g_break_invariance = kind; });
}

}  // namespace penstock
