// Values out of keys: latents are stored once, as keys, and attention's second product wants them as values
// lie. Called by attention_tile.h for the tokens of a split, so that all rows of a pass share the work.
#pragma once
#include <type_traits>

#include "kernels.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

// A word is one token's share of a row of keys (two dims; one of fp32), a lane two words: what rows of values
// are made of.
typedef uint16_t Words1 __attribute__((vector_size(32)));
typedef uint32_t Words4 __attribute__((vector_size(64)));
typedef uint32_t Lanes1 __attribute__((vector_size(32)));
typedef uint64_t Lanes4 __attribute__((vector_size(64)));
// T: what a block holds.
template <class T>
using Words = std::conditional_t<sizeof(T) == 1, Words1, Words4>;
template <class T>
using Lanes = std::conditional_t<sizeof(T) == 1, Lanes1, Lanes4>;
template <class T>
using Word = std::conditional_t<sizeof(T) == 1, uint16_t, uint32_t>;
template <class T>
using Lane = std::conditional_t<sizeof(T) == 1, uint32_t, uint64_t>;

// One step of a transposition of 8 x 8 lanes: blocks of kS x kS off the diagonal change places.
template <int kS>
constexpr int low(int j) {
    return j & kS ? 8 + j - kS : j;
}
template <int kS>
constexpr int high(int j) {
    return j & kS ? 8 + j : j + kS;
}
template <int kS, class T>
PENSTOCK_INLINE void exchange(Lanes<T>* v) {
    for (int i = 0; i < 8; ++i) {
        if (i & kS) continue;
        const Lanes<T> a = v[i], b = v[i + kS];
        v[i] = __builtin_shufflevector(a, b, low<kS>(0), low<kS>(1), low<kS>(2), low<kS>(3), low<kS>(4),
                                       low<kS>(5), low<kS>(6), low<kS>(7));
        v[i + kS] = __builtin_shufflevector(a, b, high<kS>(0), high<kS>(1), high<kS>(2), high<kS>(3),
                                            high<kS>(4), high<kS>(5), high<kS>(6), high<kS>(7));
    }
}

template <class T>
PENSTOCK_INLINE void transpose(Lanes<T>* v) {
    exchange<1, T>(v);
    exchange<2, T>(v);
    exchange<4, T>(v);
}

// Sixteen dims of 16 tokens, of which the first `count` exist: from `keys` on in rows of 16 tokens, into
// `values`. fp32: rows of one dim, and value rows (of 16 dims) `stride` elements apart. Else rows of two
// dims, and of two tokens, 32 elements each.
template <class T>
PENSTOCK_INLINE void turn_square(const T* keys, int64_t count, T* values, int64_t stride) {
    Words<T> exists;
    for (int j = 0; j < 16; ++j) exists[j] = static_cast<Word<T>>(j < count ? -1 : 0);
    if constexpr (sizeof(T) == 4) {
        const auto row = [&](int64_t d) {
            Words<T> v;
            std::memcpy(&v, keys + d * 16, sizeof v);
            return v & exists;
        };
        const auto turn_half = [&](int half, auto interleave) {
            Lanes<T> v[8];
            for (int r = 0; r < 8; ++r)
                v[r] = reinterpret_cast<Lanes<T>>(interleave(row(2 * r), row(2 * r + 1)));
            transpose<T>(v);
            for (int token = 0; token < 8; ++token)
                std::memcpy(values + (8 * half + token) * stride, &v[token], 64);
        };
        turn_half(0, [](Words<T> a, Words<T> b) {
            return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
        });
        turn_half(1, [](Words<T> a, Words<T> b) {
            return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15,
                                           31);
        });
    } else {
        constexpr int kBits = 8 * sizeof(T);
        constexpr Lane<T> kUnit = (Lane<T>{1} << kBits) - 1;
        Lanes<T> v[8];
        for (int r = 0; r < 8; ++r) {
            Words<T> w;
            std::memcpy(&w, keys + r * 32, sizeof w);
            const Lanes<T> x = reinterpret_cast<Lanes<T>>(w & exists);
            // (d, d + 1) of a token, then of the next  ->  both tokens' d, then their d + 1
            v[r] = (x & (kUnit | kUnit << 3 * kBits)) | ((x & (kUnit << kBits)) << kBits) |
                   ((x >> kBits) & (kUnit << kBits));
        }
        transpose<T>(v);
        for (int pair = 0; pair < 8; ++pair) std::memcpy(values + pair * stride, &v[pair], sizeof v[pair]);
    }
}

// Values of the 16 tokens whose keys begin at `keys`, the first `count` of them; those of the others are
// zero. `values`: the group of 32 that holds them, [dims][..] as KVLayer says; `half`: which half of it they
// are.
template <class T>
void turn_keys(const T* keys, int64_t count, T* values, int64_t half, int64_t dims) {
    for (int64_t d = 0; d < dims; d += 16) {
        if constexpr (sizeof(T) == 4)
            turn_square(keys + d * 16, count, values + half * 16 * dims + d, dims);
        else
            turn_square(keys + d * 16, count, values + d * 32 + half * 256, 32);
    }
}

}  // namespace penstock::PENSTOCK_ISA
