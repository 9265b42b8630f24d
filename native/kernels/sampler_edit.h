// A row's penalties, bias and mask.
#pragma once
#include "sampler_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// What edits change: single logits in place, because the caches hold them and no others, until they are
// undone; whole chunks, or more logits than there is room for, in copies beside the raw row's.
struct Edits {
    float* copies;         // [num_chunks][256]: chunk c, once it is touched
    const float* nothing;  // a chunk of -inf
    int32_t* tokens;       // [capacity]: each logit edited in place, in order, duplicates too
    float *before, *after;
    float* maxima;  // of its vector, before
    int64_t count, capacity;
    bool has_copies;
};

PENSTOCK_INLINE float* own(Row& row, int64_t c, Edits& edits) {
    float* copy = edits.copies + c * kChunk;
    if (row.chunks[c] != copy) {
        std::memcpy(copy, row.chunks[c], kChunk * sizeof(float));
        row.chunks[c] = copy;
    }
    edits.has_copies = true;
    return copy;
}

PENSTOCK_INLINE void find_maximum(const Row& row, int64_t token) {  // of the vector of the token
    const int64_t c = token / kChunk, v = token % kChunk / kLanes;
    row.maxima[c * kLanes + v] = highest_lane(clean(load(row.chunks[c] + v * kLanes)));
}

// `value` is clean.
PENSTOCK_INLINE void replace(Row& row, int64_t token, float value, Edits& edits) {
    const bool has_room = edits.count < edits.capacity;
    float* chunk =
        has_room ? const_cast<float*>(row.chunks[token / kChunk]) : own(row, token / kChunk, edits);
    float& w = chunk[token % kChunk];
    if (has_room) {
        edits.tokens[edits.count] = static_cast<int32_t>(token);
        edits.before[edits.count] = w;
        edits.maxima[edits.count] = row.maxima[token / kLanes];
        edits.after[edits.count++] = value;
    }
    const float old = clean_1(w);
    float& highest = row.maxima[token / kLanes];
    w = value;
    if (value >= highest)
        highest = value;
    else if (old >= highest)  // else another is: to read the vector would wait for the store above
        find_maximum(row, token);
}

// What was edited in place is as it was; copies stay.
PENSTOCK_INLINE void undo(Row& raw, const Edits& edits) {
    for (int64_t i = edits.count; i-- > 0;) {
        const int64_t token = edits.tokens[i];
        const_cast<float*>(raw.chunks[token / kChunk])[token % kChunk] = edits.before[i];
        raw.maxima[token / kLanes] = edits.maxima[i];
    }
}

void mask_chunk(Row& row, int64_t c, const uint32_t* allowed, Edits& edits) {
    constexpr int64_t kWords = kChunk / 32;
    uint32_t words[kWords] = {}, any = 0, all = ~0U;
    for (int64_t i = 0; i < kWords && (c * kWords + i) * 32 < row.vocab; ++i)
        words[i] = allowed[c * kWords + i];
    for (const uint32_t word : words) {
        any |= word;
        all &= word;
    }
    if (any == 0) {
        edits.has_copies = true;
        row.chunks[c] = edits.nothing;
        store(row.maxima + c * kLanes, set1(-kInfinity));
    }
    if (any == 0 || all == ~0U) return;
    float* w = own(row, c, edits);
    for (int64_t i = 0; i < kChunk; i += kLanes) {
        const U16 word = U16{} + (words[i / 32] >> (i % 32));
        const I16 good = reinterpret_cast<I16>(((word >> iota()) & 1U) != U16{});
        store(w + i, select(good, load(w + i), set1(-kInfinity)));
    }
}

// The raw row becomes the edited one. `row` has tables of its own if there is a mask, or less room than
// edits.
void edit(const SampleArgs& a, int64_t r, const uint32_t* allowed, Edits& edits, Row& row) {
    const float repetition = a.repetition_penalty[r], presence = a.presence_penalty[r],
                frequency = a.frequency_penalty[r];
    if (repetition != 1.0f || presence != 0.0f || frequency != 0.0f)
        for (int64_t h = a.history_start[r]; h < a.history_start[r + 1]; ++h) {
            const int64_t t = a.history_token[h];
            if (t < 0 || t >= a.vocab) continue;
            const float w = clean_1(row.at(t));
            float y = w > 0.0f ? w / repetition : w * repetition;
            if (a.history_count[h] > 0) {
                y = y - frequency * static_cast<float>(a.history_count[h]);
                y = y - presence;
            }
            replace(row, t, clean_1(y), edits);
        }
    for (int64_t b = a.bias_start[r]; b < a.bias_start[r + 1]; ++b) {
        const int64_t t = a.bias_token[b];
        if (t >= 0 && t < a.vocab) replace(row, t, clean_1(clean_1(row.at(t)) + a.bias_value[b]), edits);
    }
    for (int64_t c = 0; allowed && c < row.num_chunks; ++c) {
        mask_chunk(row, c, allowed, edits);
        if (row.chunks[c] == edits.copies + c * kChunk)
            store(row.maxima + c * kLanes, maxima_of(row.chunks[c]));
    }
    find_highest(row);
}

}  // namespace
}  // namespace penstock::PENSTOCK_ISA
