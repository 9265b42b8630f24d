// The draw: argmax of noise - distance.
//
// Pruning is exact: noise lies in a closed range, so a token whose distance exceeds the best score found so
// far by more than the noise it would need is never looked at; only Philox words above the needed noise meet
// a logarithm.
#pragma once
#include "../noise.h"
#include "sampler_mass.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr float kSlack = 1e-3f;  // rounding of noise and distance is below 1e-4 where it could matter

// The chunk of the highest logit that the row has.
int64_t highest_chunk(const Row& row) {
    F16 highest = set1(-kInfinity);
    for (int64_t c = 0; c < row.num_chunks; ++c) highest = higher(highest, load(row.maxima + c * kLanes));
    const F16 sought = set1(max_lane(highest));
    for (int64_t c = 0; c < row.num_chunks; ++c)
        if (lanes_le(sought, load(row.maxima + c * kLanes))) return c;
    return 0;
}

// The search for the argmax of noise - d over the tokens up to `last`, in key order.
struct Search {
    static constexpr int kTogether = 4;  // chunks

    const Row& row;
    NoiseStream stream;
    uint64_t last;
    F16 d_last;
    float best = -kInfinity;
    uint64_t winner = 0;

    // Noise above y > 0 needs a word below 2^32 e^-y: the highest that will do, for every vector of up to
    // four chunks. Returns a bit for each chunk that may hold a winner.
    uint32_t find_limits(int64_t first, int64_t count, uint32_t (&limits)[kTogether][kVectors]) const {
        F16 limit[kTogether];
        U16 always[kTogether], alive[kTogether];
        uint32_t living = 0;
        for (int64_t i = 0; i < kTogether; ++i) {
            const F16 nearest = i < count ? row.nearest(first + i) : set1(kInfinity);
            for (int64_t j = 0; row.is_far && i < count && j < kChunk; j += kLanes)
                __builtin_prefetch(row.chunks[first + i] + j, 0, 2);  // memory is idle while noise is made
            const F16 needed = nearest + (best - kSlack);
            const I16 is_alive = (needed <= set1(kNoiseHigh)) & (nearest <= d_last);
            alive[i] = reinterpret_cast<U16>(is_alive);
            always[i] = reinterpret_cast<U16>(needed <= zero()) & alive[i];
            living |= (lanes_of(is_alive) ? 1U : 0U) << i;
            limit[i] = -higher(needed, zero());
        }
        if (!living) return 0;
        masses_as_float(limit);
        for (int i = 0; i < kTogether; ++i) {
            const I16 halves =
                __builtin_convertvector(lower(limit[i] * 0x1p-9f, set1(0x1p31f - 128.0f)), I16);
            const U16 words = ((reinterpret_cast<U16>(halves) << 1 | 1U) & alive[i]) | always[i];
            std::memcpy(limits[i], &words, sizeof words);
        }
        return living;
    }

    void look_at(int64_t chunk, int64_t vector, U16 word) {
        const int64_t first = vector * kLanes;
        const F16 d = row.distance(clean(load(row.chunks[chunk] + first)));
        const F16 score = noise(word) - d;
        for (uint32_t better = lanes_le(set1(best), score) & lanes_le(d, d_last); better;
             better &= better - 1) {
            const int lane = __builtin_ctz(better);
            const uint64_t key = make_key(d[lane], chunk * kChunk + first + lane);
            const bool is_earlier = (key & 0xffffffffU) < (winner & 0xffffffffU);
            if (!(score[lane] > best || (score[lane] == best && is_earlier)) || key > last) continue;
            best = score[lane];
            winner = key;
        }
    }

    void search(int64_t first, int64_t count) {
        uint32_t limits[kTogether][kVectors];
        const uint32_t living = find_limits(first, count, limits);
        for (int64_t i = 0; i < count; ++i) {
            if (!(living >> i & 1U)) continue;
            for (int64_t half = 0; half < 2; ++half) {
                const uint32_t* limit = limits[i] + half * 8;
                uint32_t some = 0, hits = 0;
                for (int j = 0; j < 8; ++j) some |= limit[j];
                if (!some) continue;
                U16 words[8];
                philox(stream, static_cast<uint64_t>((first + i) * 4 + half * 2), words);
                for (int j = 0; j < 8; ++j) hits |= lanes_le(words[j], U16{} + limit[j]);
                if (!hits) continue;
                for (int j = 0; j < 8; ++j)
                    if (lanes_le(words[j], U16{} + limit[j])) look_at(first + i, half * 8 + j, words[j]);
            }
        }
    }
};

// The winner's key. The nearest token's chunk comes first: its score prunes.
uint64_t draw(const Row& row, uint64_t seed, int64_t position, uint64_t last) {
    Search s{row, noise_stream(seed, static_cast<uint64_t>(position)), last,
             set1(last == kEverything ? kInfinity : distance_of(last))};
    s.search(highest_chunk(row), 1);
    for (int64_t c = 0; c < row.num_chunks; c += Search::kTogether)
        s.search(c, row.num_chunks - c < Search::kTogether ? row.num_chunks - c : Search::kTogether);
    return s.winner;
}

}  // namespace
}  // namespace penstock::PENSTOCK_ISA
