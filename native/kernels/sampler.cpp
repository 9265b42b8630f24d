// One row of logits -> one token, its logprob and rank. The definition is sampling/sampler.py, step by step:
//
//   x    raw logits; NaN and what is below -1e30 count as -inf, what is above 1e30 as 1e30
//   w    x; history: w > 0 ? w / repetition : w * repetition, then - frequency * count, then - presence if
//   count;
//        then + bias; then -inf where the mask forbids
//   d    top - w / T, top = max(w) / T: distance below the top, >= 0. Every cut and tie is decided on (d,
//   index) cut  top-k: the k first in order of (d, index).  top-p: those with less than top_p of the mass
//   before them,
//        within the top-k.  min-p: d <= -ln(min_p).  typical-p: what is left, in order of |d - mean d|,
//        index: those with less than typical_p of the mass before them
//   t    argmax of noise(seed, position, t) - d, ties to the lowest index. T < 1e-5: argmax of w
//
// Pruning is exact: noise lies in a closed range, so a token whose distance exceeds the best score found so
// far by more than the noise it would need is never looked at; only Philox words above the needed noise meet
// a logarithm.
//
// Scratch (sample_scratch_bytes): w [V] | lane maxima of w and of x [V/16 each] | two key arrays [V] u64 | 64
// KiB.
#include "sampler_cut.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr float kGreedyBelow = 1e-5f;
constexpr float kSlack = 1e-3f;  // rounding of noise and distance is below 1e-4 where it could matter

// Noise above y > 0 needs a word below 2^32 e^-y: the limits for 16 lanes, without the words' lowest bit, so
// that signed comparison does. Lanes that are not alive get -1.
PENSTOCK_INLINE I16 word_limits(F16 needed, I16 alive) {
    const F16 limit = lower(exp(-needed) * 0x1p31f, set1(0x1p31f - 128.0f));
    const I16 always = needed <= zero();
    return (__builtin_convertvector(limit, I16) & ~always) | (always & 0x7fffffff) | ~alive;
}

// argmax of noise - d over the tokens up to `last`, in key order.
uint64_t draw(const Row& row, uint64_t seed, int64_t position, uint64_t last) {
    const RoundKeys keys = round_keys(seed);
    const float d_last = last == kEverything ? kInfinity : distance_of(last);
    float best = -kInfinity;
    uint64_t winner = 0;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const F16 nearest = row.distance(load(row.maxima + c * kLanes));
        const F16 needed = nearest + (best - kSlack);
        const I16 alive = (needed <= set1(kNoiseHigh)) & (nearest <= set1(d_last));
        if (!lanes_of(alive)) continue;
        const I16 limits = word_limits(needed, alive);
        const float* p = row.chunk(c);
        for (int64_t g = 0; g < 4; ++g) {
            uint32_t words[64];
            philox(keys, static_cast<uint64_t>(position), static_cast<uint64_t>(c * 4 + g), words);
            for (int64_t j = 0; j < 4; ++j) {
                U16 word;
                std::memcpy(&word, words + j * kLanes, sizeof word);
                if (!lanes_of(reinterpret_cast<I16>(word >> 1) <= limits)) continue;
                const int64_t first = g * 64 + j * kLanes;
                const F16 d = row.distance(clean(load(p + first)));
                const F16 score = noise(word) - d;
                uint32_t better = lanes_of((score > set1(best)) & (d <= set1(d_last)));
                for (; better; better &= better - 1) {
                    const int lane = __builtin_ctz(better);
                    const uint64_t key = make_key(d[lane], c * kChunk + first + lane);
                    if (!(score[lane] > best) || key > last) continue;
                    best = score[lane];
                    winner = key;
                }
            }
        }
    }
    return winner;
}

struct Space {
    float *edited, *edited_maxima, *raw_maxima, *edited_tail, *raw_tail;
    CutSpace cut;
};

Space divide(std::byte* scratch, int64_t vocab) {
    const int64_t v = round_up(vocab, 64), maxima_bytes = (vocab + kChunk - 1) / kChunk * 64;
    const auto take = [&](int64_t num_bytes) {
        std::byte* p = scratch;
        scratch += round_up(num_bytes, 64);
        return p;
    };
    Space s;
    s.edited = reinterpret_cast<float*>(take(v * 4));
    s.cut.a = reinterpret_cast<uint64_t*>(take(v * 8));
    s.cut.b = reinterpret_cast<uint64_t*>(take(v * 8));
    s.edited_maxima = reinterpret_cast<float*>(take(maxima_bytes));
    s.raw_maxima = reinterpret_cast<float*>(take(maxima_bytes));
    s.edited_tail = reinterpret_cast<float*>(take(kChunk * 4));
    s.raw_tail = reinterpret_cast<float*>(take(kChunk * 4));
    s.cut.histogram = reinterpret_cast<uint32_t*>(take(kRadix * 4));
    return s;
}

int32_t draw_cut(const SampleArgs& a, int64_t r, Row row, const Space& space) {
    const float top_p = a.top_p[r], typical_p = a.typical_p[r];
    const int64_t top_k = a.top_k[r] > 0 && a.top_k[r] < row.vocab ? a.top_k[r] : 0;
    uint64_t last = last_of_min_p(a.min_p[r]);
    const auto at_most = [&](uint64_t other) { last = other < last ? other : last; };
    if (top_k) {
        at_most(last_of_top_k(row, top_k, top_p, space.cut));
    } else if (top_p < 1.0f) {
        if (!(typical_p < 1.0f)) {  // a winner without the cut that the cut would keep is the winner with it
            const uint64_t winner = draw(row, a.seed[r], a.position[r], last);
            const RowMass mass = mass_of(row, winner);
            if (static_cast<double>(mass.before) <
                static_cast<double>(top_p) * static_cast<double>(mass.total))
                return static_cast<int32_t>(winner & 0xffffffffU);
            at_most(last_of_top_p(row, top_p, mass.total, space.cut));
        } else {
            at_most(last_of_top_p(row, top_p, mass_of(row, 0).total, space.cut));
        }
    }
    if (typical_p < 1.0f) {
        keep_typical(row, typical_p, last, space.cut, space.edited);
        const float top = row.top;
        row = make_row(space.edited, row.vocab, row.temperature, space.edited_tail, space.edited_maxima);
        row.top = top;
        last = kEverything;
    }
    return static_cast<int32_t>(draw(row, a.seed[r], a.position[r], last) & 0xffffffffU);
}

int32_t choose(const SampleArgs& a, int64_t r, const Row& row, const uint32_t* allowed, const Space& space) {
    if (row.highest == -kInfinity) return lowest_allowed(a, r, allowed);
    if (!(row.temperature >= kGreedyBelow)) return first_highest(row);
    return draw_cut(a, r, row, space);
}

// 1 + the tokens that are more likely, or as likely with a lower index.
int32_t rank_of(const Row& row, int64_t token) {
    const F16 x = set1(clean_1(row.x[token]));
    int64_t rank = 1;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        if (!lanes_of(load(row.maxima + c * kLanes) >= x)) continue;
        const int64_t end = row.vocab - c * kChunk < kChunk ? row.vocab - c * kChunk : kChunk;
        for (int64_t first = 0; first < end; first += kLanes) {
            const F16 other = clean(load(row.chunk(c) + first));
            const I16 index = reinterpret_cast<I16>(iota()) + static_cast<int32_t>(c * kChunk + first);
            const I16 earlier = index < set1i(static_cast<int32_t>(token));
            rank += __builtin_popcount(lanes_of((other > x) | ((other == x) & earlier)));
        }
    }
    return static_cast<int32_t>(rank);
}

// The k >= 1 highest, by logit and then index: an insertion for each that beats the last of those so far.
void top_logits(const Row& row, int64_t k, int32_t* tokens, float* logits) {
    int64_t n = 0;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        if (n == k && !lanes_of(load(row.maxima + c * kLanes) > set1(logits[k - 1]))) continue;
        const int64_t end = row.vocab - c * kChunk < kChunk ? row.vocab - c * kChunk : kChunk;
        for (int64_t first = 0; first < end; first += kLanes) {
            const F16 x = clean(load(row.chunk(c) + first));
            uint32_t hit = n < k ? 0xffffU : lanes_of(x > set1(logits[k - 1]));
            for (; hit; hit &= hit - 1) {
                const int64_t lane = __builtin_ctz(hit);
                const float y = x[lane];
                if (first + lane >= end || (n == k && !(y > logits[k - 1]))) continue;
                int64_t at = n < k ? n++ : k - 1;
                for (; at > 0 && y > logits[at - 1]; --at) {
                    logits[at] = logits[at - 1];
                    tokens[at] = tokens[at - 1];
                }
                logits[at] = y;
                tokens[at] = static_cast<int32_t>(c * kChunk + first + lane);
            }
        }
    }
}

void report(const SampleArgs& a, int64_t r, const Row& raw) {
    const int64_t wanted = a.num_logprobs[r] < a.max_logprobs ? a.num_logprobs[r] : a.max_logprobs;
    const int64_t k = wanted < raw.vocab ? wanted : raw.vocab;
    const bool is_empty = raw.highest == -kInfinity;
    const double sum = is_empty ? 1.0 : static_cast<double>(mass_of(raw, 0).total) * 0x1p-40;
    const float log_sum = log_1(static_cast<float>(sum));
    const auto logprob = [&](float x) { return is_empty ? -kInfinity : (x - raw.highest) - log_sum; };
    a.logprob[r] = logprob(clean_1(raw.x[a.sampled[r]]));
    a.rank[r] = rank_of(raw, a.sampled[r]);
    float* top = a.top_logprob + r * a.max_logprobs;
    if (k > 0) top_logits(raw, k, a.top_token + r * a.max_logprobs, top);
    for (int64_t i = 0; i < k; ++i) top[i] = logprob(top[i]);
}

}  // namespace

void sample(const SampleArgs& a, int64_t r, std::byte* scratch) noexcept {
    const float* x = a.logits + r * a.vocab;
    const Space space = divide(scratch, a.vocab);
    const bool wants_report = a.num_logprobs[r] >= 0, scores = a.target[r] >= 0;
    a.logprob[r] = __builtin_nanf("");
    a.rank[r] = 0;
    for (int64_t i = r * a.max_logprobs; i < (r + 1) * a.max_logprobs; ++i) {
        a.top_token[i] = -1;
        a.top_logprob[i] = __builtin_nanf("");
    }
    const uint32_t* allowed = a.allowed ? a.allowed + r * ((a.vocab + 31) / 32) : nullptr;
    const bool is_penalized =
        a.history_start[r + 1] > a.history_start[r] &&
        (a.repetition_penalty[r] != 1.0f || a.presence_penalty[r] != 0.0f || a.frequency_penalty[r] != 0.0f);
    const bool is_edited = !scores && (allowed || is_penalized || a.bias_start[r + 1] > a.bias_start[r]);
    if (scores) {
        a.sampled[r] = a.target[r] < a.vocab ? a.target[r] : 0;
    } else if (is_edited) {
        edit(a, r, x, allowed, space.edited);
        const Row row =
            make_row(space.edited, a.vocab, a.temperature[r], space.edited_tail, space.edited_maxima);
        a.sampled[r] = choose(a, r, row, allowed, space);
        if (!wants_report) return;
    }
    if (scores && !wants_report) return;
    Row raw = make_row(x, a.vocab, a.temperature[r], space.raw_tail, space.raw_maxima);
    if (!scores && !is_edited) a.sampled[r] = choose(a, r, raw, allowed, space);
    if (!wants_report) return;
    raw.temperature = 1.0f;
    raw.top = raw.highest;
    report(a, r, raw);
}

}  // namespace penstock::PENSTOCK_ISA
