#include "program.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>

namespace penstock {
namespace {

// Rows of one pointwise unit: big enough to amortise the counter, small enough to balance two workers.
constexpr int64_t kRowGrain = 4;
// Query rows x heads of one attention unit: long enough that a split's keys and values serve many tiles from
// L2.
constexpr int64_t kAttentionTile = 256;
// Heads of one unit at least: each unit reads its keys and values anew.
constexpr int32_t kLeastHeads = 8;
// Panels of one linear unit are chosen so that a unit streams at least this much.
constexpr int64_t kLinearUnitBytes = 64 << 10;
// More rows than these, and a unit has more panels: each copies the rows anew.
constexpr int64_t kManyRows = 64;
// Channels of one unit of a convolution.
constexpr int64_t kConvChannels = 256;

OperandKernel* operand_kernel(const KernelTable& t, OperandKind kind) {
    return kind == OperandKind::kFloat32    ? t.operand_float32
           : kind == OperandKind::kBFloat16 ? t.operand_bfloat16
                                            : t.operand_int8;
}

}  // namespace

Program::Program(const Candidate& candidate, std::shared_ptr<Pool> pool, int64_t arena_bytes,
                 int64_t max_maxima)
    : kernels_(candidate.table()),
      pool_(std::move(pool)),
      arena_bytes_(round_up(round_up(arena_bytes, 64) + max_maxima * 4, 2 << 20)),
      max_maxima_(max_maxima) {
    void* memory = mmap(nullptr, static_cast<std::size_t>(arena_bytes_), PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    madvise(memory, static_cast<std::size_t>(arena_bytes_), MADV_HUGEPAGE);
    arena_ = static_cast<std::byte*>(memory);
    maxima_ = reinterpret_cast<float*>(arena_ + round_up(arena_bytes, 64));
}

Program::~Program() { munmap(arena_, static_cast<std::size_t>(arena_bytes_)); }

int Program::add_value(const Value& value) {
    values_.push_back(value);
    return static_cast<int>(values_.size()) - 1;
}

int Program::add_residency(std::unique_ptr<Residency> residency) {
    residencies_.push_back(std::move(residency));
    return static_cast<int>(residencies_.size()) - 1;
}

void Program::add_op(OpRecord op) {
    if (op.kind == OpKind::kSample) op.keeps_maxima = keep_maxima(op.input);
    ops_.push_back(op);
    units_.emplace_back(pool_->workers());
    if (op.kind == OpKind::kAttention && find_plan(op) == nullptr)
        attention_plans_.push_back({op.attention.num_heads, op.attention.kv.num_kv_heads, {}});
}

// The linear whose output `logits` is leaves the maxima of its columns for the sampler, if there is one.
bool Program::keep_maxima(int logits) {
    const Value& y = value(logits);
    const auto made =
        std::find_if(ops_.rbegin(), ops_.rend(), [&](const OpRecord& op) { return op.output == logits; });
    if (made == ops_.rend() || made->kind != OpKind::kLinear || made->rows != Rows::kLogits) return false;
    if (y.max_rows * maxima_stride(y.width) > max_maxima_) return false;
    max_maxima_ = 0;  // another sampler's would have no room
    made->keeps_maxima = true;
    return true;
}

float* Program::floats(int index) const { return reinterpret_cast<float*>(arena_ + value(index).offset); }

Operand Program::operand(int index) const {
    const Value& v = value(index);
    const int64_t kp = round_up(v.width, 64), rows = round_up(v.max_rows, kTileRows);
    std::byte* data = arena_ + v.offset;
    Operand out{v.kind, kp, data, nullptr, nullptr};
    if (v.kind == OperandKind::kInt8) {
        std::byte* scale = data + round_up(operand_bytes(v.kind, v.max_rows, v.width), 64);
        out.scale = reinterpret_cast<float*>(scale);
        out.sum = reinterpret_cast<int32_t*>(scale + round_up(rows * ((kp + 127) / 128) * 4, 64));
    }
    return out;
}

// Requests x KV heads x tiles of query rows, in order; every attention op of the step shares the list. Where
// that makes fewer than there are workers, the heads that share a KV head are shared out, too.
const Program::AttentionPlan* Program::find_plan(const OpRecord& op) const noexcept {
    for (const AttentionPlan& plan : attention_plans_)
        if (plan.num_heads == op.attention.num_heads && plan.num_kv_heads == op.attention.kv.num_kv_heads)
            return &plan;
    return nullptr;
}

void Program::cut(const Step& step, AttentionPlan& plan) const {
    plan.parts.clear();
    const int32_t group = plan.num_heads / plan.num_kv_heads;
    const auto rows_of = [](int32_t heads) {
        return std::max(int32_t{1}, static_cast<int32_t>(kAttentionTile) / heads);
    };
    int64_t units = 0;
    for (int64_t b = 0; b < step.batch.num_requests; ++b) {
        const int32_t rows = step.batch.query_start[b + 1] - step.batch.query_start[b];
        units += plan.num_kv_heads * ((rows + rows_of(group) - 1) / rows_of(group));
    }
    int32_t heads = group;
    for (; units < pool_->workers() && heads >= 2 * kLeastHeads; units *= 2) heads = (heads + 1) / 2;
    const int32_t tile_rows = rows_of(heads);
    for (int32_t b = 0; b < step.batch.num_requests; ++b) {
        const int32_t begin = step.batch.query_start[b], end = step.batch.query_start[b + 1];
        for (int32_t kv_head = 0; kv_head < plan.num_kv_heads; ++kv_head)
            for (int32_t head = kv_head * group; head < (kv_head + 1) * group; head += heads)
                for (int32_t row = begin; row < end; row += tile_rows)
                    plan.parts.push_back({b, head, std::min(head + heads, (kv_head + 1) * group), row,
                                          std::min(row + tile_rows, end)});
    }
}

int64_t Program::num_rows(Rows rows) const noexcept {
    if (rows == Rows::kStep) return step_->batch.num_rows;
    return rows == Rows::kLogits ? step_->num_logit_rows : step_->num_hidden_rows;
}

int64_t Program::num_units(const OpRecord& op) const noexcept {
    const int64_t rows = num_rows(op.rows);
    switch (op.kind) {
        case OpKind::kLinear:
            return rows == 0 ? 0 : op.weight.num_panels;
        case OpKind::kRopeWrite:
            return op.rope.kv.num_kv_heads;
        case OpKind::kAttention:
            return static_cast<int64_t>(find_plan(op)->parts.size());
        case OpKind::kHeadsLinear:
            return rows == 0 ? 0 : op.weight.num_panels;
        case OpKind::kLatentWrite:  // the first writes keys
            return 1 + (rows + kRowGrain - 1) / kRowGrain;
        case OpKind::kCausalConv:
            return step_->batch.num_requests * ((op.conv.state.channels + kConvChannels - 1) / kConvChannels);
        case OpKind::kSelectiveScan:
            return step_->batch.num_requests * op.scan.state.num_heads;
        case OpKind::kSortExperts:
        case OpKind::kTrimExperts:
            return 1;
        case OpKind::kForeseeExperts:
            return op.num_experts;
        case OpKind::kGatherExperts:
        case OpKind::kExpertGated:
            return rows * op.top_k;
        case OpKind::kExpertLinear:  // of as many experts as can have rows
            return std::min(rows * op.top_k, op.num_experts) * (op.weight.num_panels / op.num_experts);
        default:
            return rows;
    }
}

void Program::run(const Step& step) noexcept {
    step_ = &step;
    for (AttentionPlan& plan : attention_plans_) cut(step, plan);
    for (std::size_t i = 0; i < ops_.size(); ++i) units_[i].reset(num_units(ops_[i]));
    pool_->run({[](void* self, int worker) noexcept { static_cast<Program*>(self)->work(worker); }, this});
}

void Program::set_profiling(int64_t steps) {
    profile_ = {steps, 0, std::vector<Profile::OpTime>(static_cast<std::size_t>(steps) * ops_.size())};
}

void Program::work(int worker) noexcept {
    if (worker != 0 || profile_.capacity == 0) {
        for (std::size_t i = 0; i < ops_.size(); ++i) {
            run_op(ops_[i], units_[i], worker);
            units_[i].wait();
        }
        return;
    }
    using Clock = std::chrono::steady_clock;
    const auto ns = [](Clock::duration d) { return std::chrono::nanoseconds(d).count(); };
    const auto row = static_cast<std::size_t>(profile_.num_runs++ % profile_.capacity);
    Profile::OpTime* times = profile_.times.data() + row * ops_.size();
    auto start = Clock::now();
    for (std::size_t i = 0; i < ops_.size(); ++i) {
        run_op(ops_[i], units_[i], worker);
        const auto own = Clock::now();
        units_[i].wait();
        const auto end = Clock::now();
        times[i] = {ns(own - start), ns(end - start)};
        start = end;
    }
}

int64_t Program::panel_grain(const OpRecord& op, int64_t rows) const noexcept {
    const int64_t share = op.weight.num_panels / pool_->workers();
    const int64_t least = rows > kManyRows ? 16 : 4;  // four streams
    const int64_t grain = std::max(least, kLinearUnitBytes / op.weight.panel_bytes);
    return grain <= share ? grain : std::max(int64_t{1}, share);
}

// Units are panels of the experts that have rows, one expert after the other.
void Program::run_expert_linear(const OpRecord& op, Units& units, int worker) noexcept {
    const Operand a = operand(op.input);
    const int64_t per_expert = op.weight.num_panels / op.num_experts, width = value(op.output).width;
    LinearKernel* const kernel = linear_kernel(kernels_, op.weight.format, a.kind);
    int64_t begin = 0, end = 0;
    while (units.take(worker, panel_grain(op, 1), begin, end))
        for (int64_t unit = begin; unit < end;) {
            const int64_t index = unit / per_expert, first = unit % per_expert;
            const int64_t last = std::min(per_expert, first + end - unit);
            unit += last - first;
            if (index >= experts_.num_runs) continue;
            const ExpertRows::Run run = experts_.runs[static_cast<std::size_t>(index)];
            const LinearOut out{floats(op.output) + run.first_row * width,
                                width,
                                op.bias ? op.bias + run.expert * width : nullptr,
                                nullptr,
                                0,
                                1.0f};
            kernel(weight_of_expert(op.weight, op.num_experts, run.expert), rows_from(a, run.first_row),
                   run.num_rows, out, first, last, pool_->scratch(worker));
        }
}

// Units are panels, one head's after the other's.
void Program::run_heads_linear(const OpRecord& op, Units& units, int worker) noexcept {
    const Operand a = operand(op.input);
    const int64_t rows = num_rows(op.rows), head_rows = round_up(rows, kTileRows);
    const int64_t per_head = op.weight.num_panels / op.num_heads, width = op.weight.n / op.num_heads;
    LinearKernel* const kernel = linear_kernel(kernels_, op.weight.format, a.kind);
    int64_t begin = 0, end = 0;
    while (units.take(worker, panel_grain(op, rows), begin, end))
        for (int64_t unit = begin; unit < end;) {
            const int64_t head = unit / per_head, first = unit % per_head;
            const int64_t last = std::min(per_head, first + end - unit);
            unit += last - first;
            const LinearOut out{
                floats(op.output) + head * width, value(op.output).width, nullptr, nullptr, 0, 1.0f};
            kernel(weight_of_expert(op.weight, op.num_heads, head), rows_from(a, head * head_rows), rows, out,
                   first, last, pool_->scratch(worker));
        }
}

void Program::run_op(const OpRecord& op, Units& units, int worker) noexcept {
    const Step& step = *step_;
    const int64_t rows = num_rows(op.rows);
    std::byte* scratch = pool_->scratch(worker);
    int64_t begin = 0, end = 0;
    switch (op.kind) {
        case OpKind::kEmbed: {
            EmbedArgs args = op.embed;
            args.y = floats(op.output);
            Batch batch = step.batch;
            if (op.embeds_positions) batch.tokens = batch.positions;
            while (units.take(worker, kRowGrain, begin, end)) kernels_.embed(args, batch, begin, end);
            return;
        }
        case OpKind::kNorm: {
            NormArgs args = op.norm;
            args.x = floats(op.input);
            args.index = op.rows == Rows::kLogits   ? step.logit_rows
                         : op.rows == Rows::kHidden ? step.hidden_rows
                                                    : nullptr;
            if (value(op.output).is_operand)
                args.out = operand(op.output);
            else
                args.y = floats(op.output);
            args.addend = op.addend < 0 ? nullptr : floats(op.addend);
            while (units.take(worker, kRowGrain, begin, end)) kernels_.norm(args, begin, end, scratch);
            return;
        }
        case OpKind::kOperand: {
            const Value& x = value(op.input);
            const Operand out = operand(op.output);
            OperandKernel* kernel = operand_kernel(kernels_, out.kind);
            while (units.take(worker, kRowGrain, begin, end))
                kernel(floats(op.input), x.width, x.width, out, begin, end);
            return;
        }
        case OpKind::kLinear: {
            const Value& y = value(op.output);
            LinearOut out{floats(op.output),
                          y.width,
                          op.bias,
                          op.addend < 0 ? nullptr : floats(op.addend),
                          op.addend < 0 ? 0 : value(op.addend).width,
                          op.scale};
            if (op.keeps_maxima) out.maxima = maxima_;
            const Operand a = operand(op.input);
            LinearKernel* const kernel = linear_kernel(kernels_, op.weight.format, a.kind);
            while (units.take(worker, panel_grain(op, rows), begin, end))
                kernel(op.weight, a, rows, out, begin, end, scratch);
            return;
        }
        case OpKind::kRopeWrite: {
            RopeWriteArgs args = op.rope;
            args.qkv = floats(op.input);
            args.stride = value(op.input).width;
            args.block_table = step.block_tables[static_cast<std::size_t>(op.group)];
            args.q = floats(op.output);
            if (!step.moves.empty()) {
                args.moves = step.moves[static_cast<std::size_t>(op.group)].slots;
                args.num_moves = step.moves[static_cast<std::size_t>(op.group)].count;
            }
            while (units.take(worker, 1, begin, end)) kernels_.rope_write(args, step.batch, begin, scratch);
            return;
        }
        case OpKind::kAttention: {
            AttentionArgs args = op.attention;
            args.q = floats(op.input);
            args.y = floats(op.output);
            args.stride = value(op.output).width;
            args.block_table = step.block_tables[static_cast<std::size_t>(op.group)];
            AttentionKernel* kernel = kernels_.attention(args.kv.dtype);
            const std::vector<AttentionPart>& parts = find_plan(op)->parts;
            while (units.take(worker, 1, begin, end))
                kernel(args, step.batch, parts[static_cast<std::size_t>(begin)], scratch);
            return;
        }
        case OpKind::kHeadsOperand: {
            const Value& x = value(op.input);
            const Operand out = operand(op.output);
            OperandKernel* kernel = operand_kernel(kernels_, out.kind);
            const int64_t width = value(op.output).width, head_rows = round_up(rows, kTileRows);
            while (units.take(worker, kRowGrain, begin, end))
                for (int64_t head = 0; head < op.num_heads; ++head)
                    kernel(floats(op.input) + head * width, x.width, width, rows_from(out, head * head_rows),
                           begin, end);
            return;
        }
        case OpKind::kHeadsLinear:
            run_heads_linear(op, units, worker);
            return;
        case OpKind::kLatentWrite: {
            LatentWriteArgs args = op.latent;
            args.latent = floats(op.input);
            args.q_latent = floats(op.second);
            args.q_rope = floats(op.third);
            args.q = floats(op.output);
            args.block_table = step.block_tables[static_cast<std::size_t>(op.group)];
            if (!step.moves.empty()) {
                args.moves = step.moves[static_cast<std::size_t>(op.group)].slots;
                args.num_moves = step.moves[static_cast<std::size_t>(op.group)].count;
            }
            while (units.take(worker, 1, begin, end)) {
                const int64_t row = (begin - 1) * kRowGrain;
                if (begin == 0)
                    kernels_.latent_key(args, step.batch, scratch);
                else
                    kernels_.latent_query(args, step.batch, row, std::min(row + kRowGrain, rows), scratch);
            }
            return;
        }
        case OpKind::kGated: {
            GatedArgs args = op.gated;
            args.x = floats(op.input);
            args.stride = value(op.input).width;
            args.out = operand(op.output);
            while (units.take(worker, kRowGrain, begin, end)) kernels_.gated(args, begin, end, scratch);
            return;
        }
        case OpKind::kJoin: {  // rows of two values side by side
            const std::size_t left = static_cast<std::size_t>(value(op.input).width);
            const std::size_t right = static_cast<std::size_t>(value(op.addend).width);
            const std::size_t row_floats = left + right;
            while (units.take(worker, kRowGrain, begin, end))
                for (auto row = static_cast<std::size_t>(begin); row < static_cast<std::size_t>(end); ++row) {
                    float* const y = floats(op.output) + row * row_floats;
                    std::memcpy(y, floats(op.input) + row * left, left * 4);
                    std::memcpy(y + left, floats(op.addend) + row * right, right * 4);
                }
            return;
        }
        case OpKind::kAdd: {
            AddArgs args{floats(op.input),       floats(op.addend), nullptr, 0,
                         value(op.output).width, floats(op.output)};
            if (op.gate >= 0) {
                args.gate = floats(op.gate);
                args.gate_stride = value(op.gate).width;
            }
            while (units.take(worker, kRowGrain, begin, end)) kernels_.add(args, begin, end);
            return;
        }
        case OpKind::kRoute: {
            RouteArgs args = op.route;
            args.logits = floats(op.input);
            args.routing = floats(op.output);
            while (units.take(worker, kRowGrain, begin, end)) kernels_.route(args, begin, end, scratch);
            return;
        }
        case OpKind::kSortExperts: {
            while (units.take(worker, 1, begin, end)) {
                experts_.sort(floats(op.input), rows, op.top_k, op.num_experts);
                if (op.residency >= 0) residencies_[static_cast<std::size_t>(op.residency)]->use(experts_);
            }
            return;
        }
        case OpKind::kTrimExperts: {
            while (units.take(worker, 1, begin, end))
                residencies_[static_cast<std::size_t>(op.residency)]->trim();
            return;
        }
        case OpKind::kForeseeExperts: {
            const float* const routing = floats(op.input);
            while (units.take(worker, 1, begin, end)) {
                bool is_chosen = false;
                for (int64_t t = 0; t < rows && !is_chosen; ++t)
                    for (int64_t s = 0; s < op.top_k; ++s)
                        is_chosen |= routing[t * 2 * op.top_k + s] == static_cast<float>(begin);
                if (is_chosen) residencies_[static_cast<std::size_t>(op.residency)]->foresee(begin);
            }
            return;
        }
        case OpKind::kGatherExperts: {
            const Operand a = operand(op.input), out = operand(op.output);
            while (units.take(worker, kRowGrain, begin, end))
                for (int64_t pair = begin; pair < end; ++pair)
                    copy_row(a, pair / op.top_k, out, experts_.place[static_cast<std::size_t>(pair)]);
            return;
        }
        case OpKind::kExpertLinear:
            run_expert_linear(op, units, worker);
            return;
        case OpKind::kExpertGated: {
            GatedArgs args = op.gated;
            args.x = floats(op.input);
            args.stride = value(op.input).width;
            args.out = operand(op.output);
            while (units.take(worker, kRowGrain, begin, end))
                for (int64_t pair = begin; pair < end; ++pair) {
                    const int64_t row = experts_.place[static_cast<std::size_t>(pair)];
                    kernels_.gated(args, row, row + 1, scratch);
                }
            return;
        }
        case OpKind::kCombineExperts: {
            const CombineArgs args{floats(op.addend), experts_.place.data(),
                                   floats(op.input),  value(op.output).width,
                                   op.top_k,          floats(op.output)};
            while (units.take(worker, kRowGrain, begin, end)) kernels_.combine(args, begin, end);
            return;
        }
        case OpKind::kCausalConv: {
            CausalConvArgs args = op.conv;
            args.x = floats(op.input) + op.first_column;
            args.stride = value(op.input).width;
            args.y = floats(op.output);
            args.block_table = step.block_tables[static_cast<std::size_t>(op.group)];
            const int64_t ranges = (args.state.channels + kConvChannels - 1) / kConvChannels;
            while (units.take(worker, 1, begin, end)) {
                const int64_t channel = begin % ranges * kConvChannels;
                kernels_.causal_conv(args, step.batch, begin / ranges, channel,
                                     std::min(int64_t{args.state.channels}, channel + kConvChannels));
            }
            return;
        }
        case OpKind::kSelectiveScan: {
            SelectiveScanArgs args = op.scan;
            args.xbc = floats(op.input);
            args.dt = floats(op.addend) + op.first_column;
            args.dt_stride = value(op.addend).width;
            args.y = floats(op.output);
            args.block_table = step.block_tables[static_cast<std::size_t>(op.group)];
            while (units.take(worker, 1, begin, end))
                kernels_.selective_scan(args, step.batch, begin / args.state.num_heads,
                                        begin % args.state.num_heads, scratch);
            return;
        }
        case OpKind::kGatedNorm: {
            GatedNormArgs args = op.gated_norm;
            args.y = floats(op.input);
            args.z = floats(op.gate);
            args.z_stride = value(op.gate).width;
            args.out = operand(op.output);
            while (units.take(worker, kRowGrain, begin, end)) kernels_.gated_norm(args, begin, end, scratch);
            return;
        }
        case OpKind::kSoftcap: {
            SoftcapArgs args = op.softcap;
            args.x = floats(op.input);
            args.y = floats(op.output);
            while (units.take(worker, 1, begin, end)) kernels_.softcap(args, begin, end);
            return;
        }
        case OpKind::kSample: {
            SampleArgs args = step.sample;
            args.logits = floats(op.input);
            args.vocab = value(op.input).width;
            if (op.keeps_maxima) args.maxima = maxima_;
            while (units.take(worker, 1, begin, end)) kernels_.sample(args, begin, scratch);
            return;
        }
    }
}

}  // namespace penstock
