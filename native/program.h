// A recorded program: built once per model, run in one native call per step.
//
// Values live in an arena at offsets that Python's lowering planned by liveness. Every op is dealt to the
// workers in units that write disjoint outputs; the next op begins when all units of this one are done.
#pragma once
#include <memory>
#include <vector>

#include "dispatch.h"
#include "experts.h"
#include "kernels.h"
#include "residency.h"
#include "threads.h"

namespace penstock {

// A value of the program: fp32 rows, an operand, or the query rows.
struct Value {
    int64_t offset;  // bytes into the arena
    int64_t width;   // floats of a row, or K of an operand
    OperandKind kind;
    bool is_operand;
    int64_t max_rows;
};

enum class OpKind : uint8_t {
    kEmbed,
    kNorm,
    kOperand,
    kLinear,
    kRopeWrite,
    kHeadsOperand,  // each head's rows an operand of its own, one after the other
    kHeadsLinear,   // each head's with its own part of the weight
    kLatentWrite,
    kAttention,
    kGated,
    kSoftcap,
    kJoin,
    kAdd,
    kRoute,
    kSortExperts,    // routing -> ExpertRows
    kGatherExperts,  // an operand's rows, by expert
    kExpertLinear,   // of rows by expert, each expert's with its own part of the weight
    kExpertGated,
    kTrimExperts,     // of a layer whose experts are not all in memory: those used longest ago leave it
    kForeseeExperts,  // routing of a layer to come -> its experts are asked for
    kCombineExperts,
    kCausalConv,
    kSelectiveScan,
    kGatedNorm,
    kSample
};
// An op's rows: all of the step's, those that need logits, or those whose hidden values are wanted.
enum class Rows : uint8_t { kStep, kLogits, kHidden };

struct OpRecord {
    OpKind kind;
    Rows rows = Rows::kStep;
    int input = -1, output = -1, addend = -1, gate = -1;
    int second = -1, third = -1;  // further inputs
    int group = 0;
    int64_t first_column = 0;  // of the input that is read in part
    int64_t num_experts = 0, top_k = 0, num_heads = 0;
    int residency = -1;  // of the layer, if not all of its experts are in memory
    PackedWeight weight{};
    const float* bias = nullptr;
    float scale = 1.0f;
    bool keeps_maxima = false;  // a linear for the sampler, and the sampler after it
    EmbedArgs embed{};
    bool embeds_positions = false;  // rows of the table by positions, not by tokens
    NormArgs norm{};
    GatedArgs gated{};
    RopeWriteArgs rope{};
    LatentWriteArgs latent{};
    AttentionArgs attention{};
    SoftcapArgs softcap{};
    RouteArgs route{};
    CausalConvArgs conv{};
    SelectiveScanArgs scan{};
    GatedNormArgs gated_norm{};
};

// What one step brings: StepInput and StepOutput as raw pointers (all checked by the binding).
struct Step {
    Batch batch;
    int64_t num_logit_rows;
    const int32_t* logit_rows;
    int64_t num_hidden_rows;
    const int32_t* hidden_rows;
    std::vector<const int32_t*> block_tables;  // per group
    struct Moves {
        const int32_t* slots;  // [count][2]
        int64_t count;
    };
    std::vector<Moves> moves;  // per group, or none at all
    SampleArgs sample;
};

// A ring over the last runs, on the clock of worker 0: two readings an op, about 50 ns, and no bit changes.
struct Profile {
    struct OpTime {
        int64_t own_ns = 0;    // until worker 0 found no more unit to take
        int64_t whole_ns = 0;  // until every worker's units were done: the times of a run's ops add up to it
    };
    int64_t capacity = 0;       // runs; 0: off
    int64_t num_runs = 0;       // seen since it was switched on; run i is in row i % capacity
    std::vector<OpTime> times;  // [capacity][ops]
};

class Program {
  public:
    // `max_maxima`: floats of the maxima of all logits (LinearOut).
    Program(const Candidate& candidate, std::shared_ptr<Pool> pool, int64_t arena_bytes, int64_t max_maxima);
    ~Program();
    Program(const Program&) = delete;
    Program& operator=(const Program&) = delete;

    int add_value(const Value& value);
    void add_op(OpRecord op);
    void reserve_experts(int64_t num_pairs, int64_t num_experts) { experts_.reserve(num_pairs, num_experts); }
    // In the order of the layers.
    int add_residency(std::unique_ptr<Residency> residency);
    const std::vector<std::unique_ptr<Residency>>& residencies() const { return residencies_; }
    const Value& value(int index) const { return values_.at(static_cast<std::size_t>(index)); }
    float* floats(int index) const;
    Operand operand(int index) const;
    const std::vector<OpRecord>& ops() const { return ops_; }
    const char* isa() const { return kernels_.isa; }
    Pool& pool() { return *pool_; }

    void run(const Step& step) noexcept;
    // Keeps the times of every op in the last `steps` runs from now on; 0: no clock is read. Not while a run
    // is under way; after the last op was added.
    void set_profiling(int64_t steps);
    const Profile& profile() const { return profile_; }

  private:
    // How the rows of a step are cut for all layers that have these heads.
    struct AttentionPlan {
        int32_t num_heads, num_kv_heads;
        std::vector<AttentionPart> parts;
    };
    void cut(const Step& step, AttentionPlan& plan) const;
    const AttentionPlan* find_plan(const OpRecord& op) const noexcept;
    int64_t num_rows(Rows rows) const noexcept;
    void work(int worker) noexcept;
    void run_op(const OpRecord& op, Units& units, int worker) noexcept;
    void run_expert_linear(const OpRecord& op, Units& units, int worker) noexcept;
    void run_heads_linear(const OpRecord& op, Units& units, int worker) noexcept;
    int64_t num_units(const OpRecord& op) const noexcept;
    bool keep_maxima(int logits);
    int64_t panel_grain(const OpRecord& op, int64_t rows) const noexcept;

    const KernelTable& kernels_;
    std::shared_ptr<Pool> pool_;
    std::byte* arena_;
    int64_t arena_bytes_;
    std::vector<Value> values_;
    float* maxima_;  // of the logits, if a linear makes what the sampler reads; behind the values
    int64_t max_maxima_;
    std::vector<OpRecord> ops_;
    std::vector<Units> units_;                    // one per op
    std::vector<AttentionPlan> attention_plans_;  // one per pair of head counts; made by add_op
    ExpertRows experts_;                          // of the layer under way
    std::vector<std::unique_ptr<Residency>> residencies_;
    const Step* step_ = nullptr;
    Profile profile_;
};

}  // namespace penstock
