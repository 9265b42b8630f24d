// Experts: who reads a row, the sum of what they make of it, and sums of rows. Orders are fixed: softmax sums
// and slots ascending.
#include "elementary.h"
#include "kernels.h"

namespace penstock::PENSTOCK_ISA {
namespace {

PENSTOCK_INLINE F16 sigmoid(F16 x) { return set1(1.0f) / (exp(zero() - x) + 1.0f); }

float sum_of(const float* x, int64_t count) {
    float total = 0.0f;
    for (int64_t i = 0; i < count; ++i) total += x[i];
    return total;
}

void softmax(const float* x, int64_t count, float* y) {
    float most = x[0];
    for (int64_t i = 1; i < count; ++i) most = x[i] > most ? x[i] : most;
    for (int64_t i = 0; i < count; i += kLanes) {
        const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
        store_n(y + i, exp(load_n(x + i, n) - most), n);
    }
    const float total = sum_of(y, count);
    for (int64_t i = 0; i < count; ++i) y[i] /= total;
}

// The greatest of those not yet taken, of equals the first: always one of them, whatever x holds.
int64_t take_best(const float* x, int64_t count, uint8_t* taken) {
    int64_t best = -1;
    for (int64_t i = 0; i < count; ++i)
        if (!taken[i] && (best < 0 || x[i] > x[best])) best = i;
    taken[best] = 1;
    return best;
}

// Scores of experts outside the best groups become -inf. A group is worth its two best scores together, or
// its best one where nothing corrects them.
void keep_groups(const RouteArgs& args, float* choice, float* worth, uint8_t* taken) {
    const int64_t size = args.num_experts / args.num_groups;
    for (int64_t g = 0; g < args.num_groups; ++g) {
        const float* x = choice + g * size;
        std::memset(taken, 0, static_cast<std::size_t>(size));
        worth[g] = x[take_best(x, size, taken)];
        if (args.correction && size > 1) worth[g] += x[take_best(x, size, taken)];
    }
    std::memset(taken, 0, static_cast<std::size_t>(args.num_groups));
    for (int64_t i = 0; i < args.groups_kept; ++i) take_best(worth, args.num_groups, taken);
    for (int64_t i = 0; i < args.num_experts; ++i)
        if (!taken[i / size]) choice[i] = -__builtin_inff();
}

}  // namespace

void route(const RouteArgs& args, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept {
    const int64_t count = args.num_experts, width = round_up(count, kLanes);
    float* scores = reinterpret_cast<float*>(scratch);
    float *choice = scores + width, *worth = choice + width;
    auto* taken = reinterpret_cast<uint8_t*>(worth + width);
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float* logits = args.logits + row * count;
        float *experts = args.routing + row * 2 * args.top_k, *weights = experts + args.top_k;
        if (args.score == RouterScore::kSoftmax)
            softmax(logits, count, scores);
        else
            for (int64_t i = 0; i < count; i += kLanes) {
                const int n = count - i < kLanes ? static_cast<int>(count - i) : kLanes;
                const F16 x = load_n(logits + i, n);
                store_n(scores + i, args.score == RouterScore::kSigmoid ? sigmoid(x) : x, n);
            }
        for (int64_t i = 0; i < count; ++i)
            choice[i] = args.correction ? scores[i] + args.correction[i] : scores[i];
        if (args.num_groups > 1) keep_groups(args, choice, worth, taken);
        std::memset(taken, 0, static_cast<std::size_t>(count));
        for (int64_t s = 0; s < args.top_k; ++s) {
            const int64_t expert = take_best(choice, count, taken);
            experts[s] = static_cast<float>(expert);
            weights[s] = scores[expert];
        }
        if (args.score == RouterScore::kSoftmaxChosen) softmax(weights, args.top_k, weights);
        const float total = args.renormalizes ? sum_of(weights, args.top_k) : 1.0f;
        for (int64_t s = 0; s < args.top_k; ++s) weights[s] = weights[s] / total * args.scale;
    }
}

void combine(const CombineArgs& args, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float* weights = args.routing + row * 2 * args.top_k + args.top_k;
        const int32_t* place = args.place + row * args.top_k;
        for (int64_t i = 0; i < args.width; i += kLanes) {
            const int n = args.width - i < kLanes ? static_cast<int>(args.width - i) : kLanes;
            F16 y = zero();
            for (int64_t s = 0; s < args.top_k; ++s)
                y = fma(set1(weights[s]), load_n(args.parts + place[s] * args.width + i, n), y);
            store_n(args.y + row * args.width + i, y, n);
        }
    }
}

void add(const AddArgs& args, int64_t row_begin, int64_t row_end) noexcept {
    for (int64_t row = row_begin; row < row_end; ++row) {
        const F16 weight = args.gate ? sigmoid(set1(args.gate[row * args.gate_stride])) : set1(1.0f);
        for (int64_t i = row * args.width, end = i + args.width; i < end; i += kLanes) {
            const int n = end - i < kLanes ? static_cast<int>(end - i) : kLanes;
            store_n(args.z + i, fma(weight, load_n(args.y + i, n), load_n(args.x + i, n)), n);
        }
    }
}

}  // namespace penstock::PENSTOCK_ISA
