// One row of logits -> one token, its logprob and rank. The definition is sampling/sampler.py, step by step:
//
//   x    raw logits; NaN and what is below -1e30 count as -inf, what is above 1e30 as 1e30
//   w    x; history: w > 0 ? w / repetition : w * repetition, then - frequency * count, then - presence if
//        count; then + bias; then -inf where the mask forbids
//   d    (max(w) - w) * (1 / T): distance below the top, >= 0. Every cut and tie is decided on (d, index)
//   cut  top-k: the k first in order of (d, index). top-p: those with less than top_p of the mass before
//        them, within the top-k. min-p: d <= -ln(min_p). typical-p: what is left, in order of |d - mean d|,
//        index: those with less than typical_p of the mass before them
//   t    argmax of noise(seed, position, t) - d, ties to the lowest index. T < 1e-5: argmax of w
//
// Scratch (sample_scratch_bytes): copies of edited chunks [V] | two key arrays [V] u64 | edits: token,
// before, after, maxima [V/2] | maxima and chunks of two rows | 64 KiB.
#include "sampler_cut.h"
#include "sampler_search.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr float kGreedyBelow = 1e-5f;

struct Space {
    const float **chunks, **edited_chunks;
    float *maxima, *edited_maxima, *tail;
    Edits edits;
    CutSpace cut;
};

Space divide(std::byte* scratch, int64_t vocab) {
    const int64_t v = round_up(vocab, kChunk), num_chunks = v / kChunk;
    const auto take = [&](int64_t num_bytes) {
        std::byte* p = scratch;
        scratch += round_up(num_bytes, 64);
        return p;
    };
    const auto take_floats = [&](int64_t count) { return reinterpret_cast<float*>(take(count * 4)); };
    Space s;
    s.chunks = reinterpret_cast<const float**>(take(num_chunks * 8));
    s.edited_chunks = reinterpret_cast<const float**>(take(num_chunks * 8));
    s.maxima = take_floats(num_chunks * kLanes);
    s.edited_maxima = take_floats(num_chunks * kLanes);
    s.tail = take_floats(kChunk);
    float* nothing = take_floats(kChunk);
    for (int64_t i = 0; i < kChunk; i += kLanes) store(nothing + i, set1(-kInfinity));
    s.cut.histogram = reinterpret_cast<uint32_t*>(take(kRadix * 4));
    const int64_t capacity = v / 2;
    s.edits = {take_floats(v),
               nothing,
               reinterpret_cast<int32_t*>(take_floats(capacity)),
               take_floats(capacity),
               take_floats(capacity),
               take_floats(capacity),
               0,
               capacity,
               false};
    s.cut.a = reinterpret_cast<uint64_t*>(take(v * 8));
    s.cut.b = reinterpret_cast<uint64_t*>(take(v * 8));
    return s;
}

struct Drawn {
    int32_t token;
    uint64_t mass;  // of the row that it was drawn from; 0: nobody has asked for it
};

Drawn draw_cut(const SampleArgs& a, int64_t r, Row row, Space& space) {
    const float top_p = a.top_p[r], typical_p = a.typical_p[r];
    const int64_t top_k = a.top_k[r] > 0 && a.top_k[r] < row.vocab ? a.top_k[r] : 0;
    uint64_t last = last_of_min_p(a.min_p[r]), total = 0;
    const auto at_most = [&](uint64_t other) { last = other < last ? other : last; };
    const auto token_of = [](uint64_t key) { return static_cast<int32_t>(key & 0xffffffffU); };
    if (top_k) {
        at_most(last_of_top_k(row, top_k, top_p, space.cut));
    } else if (top_p < 1.0f) {
        if (!(typical_p < 1.0f)) {  // a winner without the cut that the cut would keep is the winner with it
            const uint64_t winner = draw(row, a.seed[r], a.position[r], last);
            if (a.num_logprobs[r] < 0 && share_before(row, winner).is_surely_below(top_p))
                return {token_of(winner), 0};
            const RowMass mass = mass_of(row, winner);
            total = mass.total;
            if (static_cast<double>(mass.before) < static_cast<double>(top_p) * static_cast<double>(total))
                return {token_of(winner), total};
        } else {
            total = mass_of_all(row);
        }
        at_most(last_of_top_p(row, top_p, total, space.cut));
    }
    if (typical_p < 1.0f) {
        keep_typical(row, typical_p, last, space.cut, space.edits);
        last = kEverything;
    }
    return {token_of(draw(row, a.seed[r], a.position[r], last)), total};
}

Drawn choose(const SampleArgs& a, int64_t r, const Row& row, const uint32_t* allowed, Space& space) {
    if (row.highest == -kInfinity) return {lowest_allowed(a, r, allowed), 0};
    if (!(a.temperature[r] >= kGreedyBelow)) return {first_highest(row), 0};
    return draw_cut(a, r, row, space);
}

// 1 + the tokens that are more likely, or as likely with a lower index.
int32_t rank_of(const Row& row, int64_t token) {
    const float logit = clean_1(row.at(token));
    const F16 x = set1(logit);
    const bool is_plain = logit > -kCeiling && logit < kCeiling;  // then others compare to it as they are
    const int64_t own_chunk = token / kChunk;
    int64_t rank = 1;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const uint32_t wanted = lanes_le(x, load(row.maxima + c * kLanes));
        const float* p = row.chunks[c];
        if (!wanted) continue;
        if (is_plain && c < own_chunk)
            for (int64_t i = 0; i < kChunk; i += kLanes) rank += __builtin_popcount(lanes_le(x, load(p + i)));
        else if (is_plain && c > own_chunk)
            for (int64_t i = 0; i < kChunk; i += kLanes) rank += __builtin_popcount(lanes_lt(x, load(p + i)));
        else
            for_vectors(row, c, wanted, [&](int64_t first, F16 other) {
                const I16 index = reinterpret_cast<I16>(iota()) + static_cast<int32_t>(first);
                const uint32_t earlier = lanes_lt(index, set1i(static_cast<int32_t>(token)));
                rank += __builtin_popcount(lanes_lt(x, other) | (lanes_eq(other, x) & earlier));
            });
    }
    return static_cast<int32_t>(rank);
}

// The k >= 1 highest, by logit and then index: an insertion for each that beats the last of those so far.
void top_logits(const Row& row, int64_t k, int32_t* tokens, float* logits) {
    int64_t n = 0;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const uint32_t wanted =
            n < k ? 0xffffU : lanes_lt(set1(logits[k - 1]), load(row.maxima + c * kLanes));
        if (!wanted) continue;
        for_vectors(row, c, wanted, [&](int64_t first, F16 x) {
            uint32_t hit = n < k ? 0xffffU : lanes_lt(set1(logits[k - 1]), x);
            for (; hit; hit &= hit - 1) {
                const int64_t lane = __builtin_ctz(hit);
                const float y = x[lane];
                if (first + lane >= row.vocab || (n == k && !(y > logits[k - 1]))) continue;
                int64_t at = n < k ? n++ : k - 1;
                for (; at > 0 && y > logits[at - 1]; --at) {
                    logits[at] = logits[at - 1];
                    tokens[at] = tokens[at - 1];
                }
                logits[at] = y;
                tokens[at] = static_cast<int32_t>(first + lane);
            }
        });
    }
}

// The mass of the raw row from that of the edited one, where both count from the same top: the edits'
// difference.
uint64_t without(const Edits& edits, const Row& raw, uint64_t total) {
    for (int64_t i = 0; i < edits.count; i += kLanes) {
        const int n = static_cast<int>(edits.count - i < kLanes ? edits.count - i : kLanes);
        F16 x[2] = {clean(load_n(edits.before + i, n)) - raw.highest,
                    clean(load_n(edits.after + i, n)) - raw.highest};
        masses_as_float(x);
        const Masses before = as_integers(x[0]), after = as_integers(x[1]);
        for (int lane = 0; lane < n; ++lane)
            total += before.half[lane / 8][lane % 8] - after.half[lane / 8][lane % 8];
    }
    return total;
}

// `mass` of the raw row; 0: not known.
void report(const SampleArgs& a, int64_t r, const Row& raw, uint64_t mass) {
    const int64_t wanted = a.num_logprobs[r] < a.max_logprobs ? a.num_logprobs[r] : a.max_logprobs;
    const int64_t k = wanted < raw.vocab ? wanted : raw.vocab;
    const bool is_empty = raw.highest == -kInfinity;
    if (mass == 0 && !is_empty) mass = mass_of_all(raw);
    const float log_sum = is_empty ? 0.0f : log_1(static_cast<float>(static_cast<double>(mass) * 0x1p-40));
    const auto logprob = [&](float x) { return is_empty ? -kInfinity : (x - raw.highest) - log_sum; };
    a.logprob[r] = logprob(clean_1(raw.at(a.sampled[r])));
    a.rank[r] = rank_of(raw, a.sampled[r]);
    float* top = a.top_logprob + r * a.max_logprobs;
    if (k > 0) top_logits(raw, k, a.top_token + r * a.max_logprobs, top);
    for (int64_t i = 0; i < k; ++i) top[i] = logprob(top[i]);
}

// Since the last step all weights have passed through the caches: what a row needs is asked for at once.
void fetch(const SampleArgs& a, int64_t r) {
    const void* const lines[] = {a.temperature + r,
                                 a.top_p + r,
                                 a.min_p + r,
                                 a.typical_p + r,
                                 a.top_k + r,
                                 a.repetition_penalty + r,
                                 a.presence_penalty + r,
                                 a.frequency_penalty + r,
                                 a.target + r,
                                 a.num_logprobs + r,
                                 a.seed + r,
                                 a.position + r,
                                 a.history_start + r,
                                 a.bias_start + r,
                                 a.sampled + r,
                                 a.logprob + r,
                                 a.rank + r,
                                 a.top_token + r * a.max_logprobs,
                                 a.top_logprob + r * a.max_logprobs};
    for (const void* line : lines) __builtin_prefetch(line);
}
void fetch_history(const SampleArgs& a, int64_t r) {
    for (int64_t h = a.history_start[r]; h < a.history_start[r + 1]; ++h)
        if (const int64_t t = a.history_token[h]; t >= 0 && t < a.vocab)
            __builtin_prefetch(a.logits + r * a.vocab + t, 1);
}

}  // namespace

void sample(const SampleArgs& a, int64_t r, std::byte* scratch) noexcept {
    fetch(a, r);
    const bool wants_report = a.num_logprobs[r] >= 0, scores = a.target[r] >= 0;
    a.logprob[r] = __builtin_nanf("");
    a.rank[r] = 0;
    for (int64_t i = r * a.max_logprobs; i < (r + 1) * a.max_logprobs; ++i) {
        a.top_token[i] = -1;
        a.top_logprob[i] = __builtin_nanf("");
    }
    if (scores) a.sampled[r] = a.target[r] < a.vocab ? a.target[r] : 0;
    if (scores && !wants_report) return;
    const uint32_t* allowed = a.allowed ? a.allowed + r * ((a.vocab + 31) / 32) : nullptr;
    const bool is_penalized =
        a.history_start[r + 1] > a.history_start[r] &&
        (a.repetition_penalty[r] != 1.0f || a.presence_penalty[r] != 0.0f || a.frequency_penalty[r] != 0.0f);
    if (is_penalized) fetch_history(a, r);
    Space space = divide(scratch, a.vocab);
    float* const maxima = a.maxima ? a.maxima + r * maxima_stride(a.vocab) : space.maxima;
    Row raw =
        make_row(a.logits + r * a.vocab, a.vocab, a.maxima != nullptr, space.chunks, maxima, space.tail);
    raw.is_far = a.maxima != nullptr && (wants_report || (a.top_p[r] < 1.0f && a.top_k[r] <= 0));
    uint64_t mass = 0;
    if (!scores) {
        Row row = raw;
        const int64_t num_edits =
            a.history_start[r + 1] - a.history_start[r] + a.bias_start[r + 1] - a.bias_start[r];
        const bool is_edited = allowed || is_penalized || a.bias_start[r + 1] > a.bias_start[r];
        if (allowed || a.typical_p[r] < 1.0f || num_edits > space.edits.capacity) {
            const auto num_chunks = static_cast<std::size_t>(raw.num_chunks);
            row.chunks = space.edited_chunks;
            row.maxima = space.edited_maxima;
            std::memcpy(row.chunks, raw.chunks, num_chunks * sizeof(float*));
            std::memcpy(row.maxima, raw.maxima, num_chunks * kLanes * sizeof(float));
        }
        if (is_edited) edit(a, r, allowed, space.edits, row);
        row.rate = 1.0f / a.temperature[r];
        const Drawn drawn = choose(a, r, row, allowed, space);
        a.sampled[r] = drawn.token;
        const bool counts_alike = row.rate == 1.0f && row.highest == raw.highest && !space.edits.has_copies;
        if (wants_report && counts_alike && drawn.mass) mass = without(space.edits, raw, drawn.mass);
        undo(raw, space.edits);
    }
    if (wants_report) report(a, r, raw, mass);
}

}  // namespace penstock::PENSTOCK_ISA
