// Cuts: top-k, top-p, min-p as one last key in the order of (distance, index); typical-p as a smaller row.
#pragma once
#include "sampler_edit.h"
#include "sampler_mass.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int kRadixBits = 11, kRadix = 1 << kRadixBits;

// Keys of all tokens at most `farthest` <= kMassless away, by index. Returns their number.
int64_t collect(const Row& row, float farthest, uint64_t* keys) {
    int64_t n = 0;
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const uint32_t near = lanes_le(row.nearest(c), set1(farthest));
        if (!near) continue;
        for_vectors(row, c, near, [&](int64_t first, F16 x) {
            const F16 d = row.distance(x);
            for (uint32_t hit = lanes_le(d, set1(farthest)); hit; hit &= hit - 1) {
                const int lane = __builtin_ctz(hit);
                keys[n++] = make_key(d[lane], first + lane);
            }
        });
    }
    return n;
}

// Stable counting sort by the distance, three digits of 11 bits; a digit in which all agree is skipped.
// Returns where the sorted keys are: `a` or `b`.
uint64_t* sort(uint64_t* a, uint64_t* b, int64_t n, uint32_t* histogram) {
    uint64_t differing = 0;
    for (int64_t i = 0; i < n; ++i) differing |= a[i] ^ a[0];
    for (int shift = 32; shift < 64; shift += kRadixBits) {
        if (!(differing >> shift & (kRadix - 1))) continue;
        std::memset(histogram, 0, kRadix * sizeof(uint32_t));
        for (int64_t i = 0; i < n; ++i) ++histogram[a[i] >> shift & (kRadix - 1)];
        uint32_t start = 0;
        for (int i = 0; i < kRadix; ++i) {
            const uint32_t count = histogram[i];
            histogram[i] = start;
            start += count;
        }
        for (int64_t i = 0; i < n; ++i) b[histogram[a[i] >> shift & (kRadix - 1)]++] = a[i];
        uint64_t* t = a;
        a = b;
        b = t;
    }
    return a;
}

// A distance within which k tokens lie, or all that have mass: the upper edge of the bucket that holds the
// k-th of the maxima of chunks, or of vectors where there are too few chunks.
float reach_of_top_k(const Row& row, int64_t k, uint32_t* histogram) {
    if (row.num_chunks * kLanes < k) return kMassless;
    const bool by_chunk = k <= row.num_chunks / 4;
    std::memset(histogram, 0, kRadix * sizeof(uint32_t));
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        const F16 d = row.nearest(c);
        const U16 bucket = bits(by_chunk ? set1(-max_lane(-d)) : d) >> (31 - kRadixBits);
        for (int i = 0; i < (by_chunk ? 1 : kLanes); ++i) ++histogram[bucket[i]];
    }
    int64_t count = 0;
    uint32_t bucket = 0;
    while ((count += histogram[bucket]) < k) ++bucket;
    const uint32_t edge = ((bucket + 1) << (31 - kRadixBits)) - 1;
    return edge < bits_1(kMassless) ? float_1(edge) : kMassless;
}

struct CutSpace {
    uint64_t *a, *b;
    uint32_t* histogram;  // [kRadix]
};

// Keys before which less than share * total lies. `keys` are sorted; at least the first stays.
uint64_t last_of_share(const uint64_t* keys, int64_t n, float share, uint64_t total) {
    const double limit = static_cast<double>(share) * static_cast<double>(total);
    uint64_t before = 0, last = keys[0];
    for (int64_t i = 0; i < n; i += kLanes) {
        float d[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) d[j] = i + j < n ? distance_of(keys[i + j]) : kInfinity;
        const Masses m = as_integers(mass_as_float(load(d)));
        for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
            if (!(static_cast<double>(before) < limit)) return last;
            last = keys[i + j];
            before += m.half[j / 8][j % 8];
        }
    }
    return last;
}

uint64_t mass_of_keys(const uint64_t* keys, int64_t n) {
    W8 total[2] = {};
    for (int64_t i = 0; i < n; i += kLanes) {
        float d[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) d[j] = i + j < n ? distance_of(keys[i + j]) : kInfinity;
        const Masses m = as_integers(mass_as_float(load(d)));
        for (int h = 0; h < 2; ++h) total[h] += m.half[h];
    }
    return sum_masses(total[0], total[1]);
}

uint64_t last_of_min_p(float min_p) {
    return min_p > 0.0f ? make_key(min_p < 1.0f ? -log_1(min_p) : 0.0f, 0xffffffff) : kEverything;
}

// Top-k, then top-p of what that leaves.
uint64_t last_of_top_k(const Row& row, int64_t k, float top_p, const CutSpace& space) {
    int64_t n = collect(row, reach_of_top_k(row, k, space.histogram), space.a);
    const uint64_t* keys = sort(space.a, space.b, n, space.histogram);
    n = n < k ? n : k;
    return top_p < 1.0f ? last_of_share(keys, n, top_p, mass_of_keys(keys, n)) : keys[n - 1];
}

// Top-p alone. Few tokens hold most of the mass, so the nearest are tried first.
uint64_t last_of_top_p(const Row& row, float top_p, uint64_t total, const CutSpace& space) {
    constexpr float kReaches[] = {2.0f, 4.0f, 6.0f, 9.0f, 12.0f, 16.0f, kMassless};
    const double limit = static_cast<double>(top_p) * static_cast<double>(total);
    for (const float reach : kReaches) {
        const int64_t n = collect(row, reach, space.a);
        if (static_cast<double>(mass_of_keys(space.a, n)) < limit && reach < kMassless) continue;
        return last_of_share(sort(space.a, space.b, n, space.histogram), n, top_p, total);
    }
    return kEverything;
}

// Typical decoding (Meister et al. 2022, arXiv:2202.00666) among the tokens up to `last`: the row keeps what
// stays, in `copies`. |-ln p - entropy| of a token is |d - mean d|: the normaliser cancels.
void keep_typical(Row& row, float typical_p, uint64_t last, const CutSpace& space, Edits& edits) {
    const float reach = lower(set1(kMassless), set1(last == kEverything ? kInfinity : distance_of(last)))[0];
    int64_t n = 0;
    double weight = 0.0, moment = 0.0;
    for (int64_t i = 0, m = collect(row, reach, space.a); i < m; ++i)
        if (space.a[i] <= last) space.a[n++] = space.a[i];
    for (int64_t i = 0; i < n; i += kLanes) {
        float d[kLanes], e[kLanes];
        for (int64_t j = 0; j < kLanes; ++j) d[j] = i + j < n ? distance_of(space.a[i + j]) : kInfinity;
        store(e, mass_as_float(load(d)));
        for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
            weight += static_cast<double>(e[j]);
            moment += static_cast<double>(e[j]) * static_cast<double>(d[j]);
        }
    }
    const float mean = static_cast<float>(moment / weight);
    const uint64_t total = mass_of_keys(space.a, n);
    for (int64_t i = 0; i < n; ++i) {
        const float surprise = distance_of(space.a[i]) - mean;
        space.a[i] =
            make_key(surprise < 0.0f ? -surprise : surprise, static_cast<int64_t>(space.a[i] & 0xffffffffU));
    }
    const uint64_t* keys = sort(space.a, space.b, n, space.histogram);
    const double limit = static_cast<double>(typical_p) * static_cast<double>(total);
    // The row's chunks may be the copies, so the logits that stay wait in the other key array, as distances
    // do.
    uint64_t* spare = keys == space.a ? space.b : space.a;
    int64_t kept = 0;
    uint64_t before = 0;
    for (int64_t i = 0; i < n; i += kLanes) {
        float x[kLanes];
        for (int64_t j = 0; j < kLanes; ++j)
            x[j] = i + j < n ? clean_1(row.at(static_cast<int64_t>(keys[i + j] & 0xffffffffU))) : -kInfinity;
        const Masses m = as_integers(mass_as_float(row.distance(load(x))));
        for (int64_t j = 0; j < kLanes && i + j < n; ++j) {
            if (kept > 0 && !(static_cast<double>(before) < limit)) break;
            spare[kept++] = make_key(x[j], static_cast<int64_t>(keys[i + j] & 0xffffffffU));
            before += m.half[j / 8][j % 8];
        }
    }
    for (int64_t c = 0; c < row.num_chunks; ++c) {
        row.chunks[c] = edits.nothing;
        store(row.maxima + c * kLanes, set1(-kInfinity));
    }
    for (int64_t i = 0; i < kept; ++i) {
        const auto token = static_cast<int64_t>(spare[i] & 0xffffffffU);
        const float x = distance_of(spare[i]);
        own(row, token / kChunk, edits)[token % kChunk] = x;
        float& highest = row.maxima[token / kLanes];
        highest = x > highest ? x : highest;
    }
}

}  // namespace
}  // namespace penstock::PENSTOCK_ISA
