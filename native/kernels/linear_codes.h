// y = W x on integer codes under the BF16 contract: W = scale * code + offset per column and group of K.
//
//     for each group of K, ascending:
//         s = +0; for each 32 k of it, ascending:                  (groups of 16: each 16)
//             e, o = the even and the odd chain of linear_bfloat16.cpp over x[t, k] * code[n, k]
//             s = s + (e + o)                                      codes are exact in bf16
//         acc = fma(s, scale[n, group], acc)                       acc from +0
//         with offsets: acc = fma(x, offset[n, group], acc)        x: as s, every code being 1
//     one scale for all of K: acc = acc + (e + o), in the end acc * scale[n]
//     y[t, n] = acc
//
// So a group is one accumulator tile of TDPBF16PS, from zero. Codes become fp32 two at a time or four: a code
// put into the mantissa of a power of two whose last place is worth 1, minus that power (and the bias); on
// AVX-512 a table of sixteen floats where the code is in the lowest bits, or in those of the upper half (four
// codes of eight: more lookups need shifts, which cost what they save). E2M1 is always looked up in a table.
// At one row these conversions take five cycles a line on Zen 4, the FMAs eight. Cost: 0.5 or 1 byte of
// weights and a share of the trailer; 2 operations. Memory-bound up to two rows.
#pragma once
#include "kernels/codes.h"
#include "kernels/linear_float.h"

namespace penstock::PENSTOCK_ISA {

#if defined(__AVX512F__)
typedef __m512i Raw;
PENSTOCK_INLINE Raw raw_load(const std::byte* p) { return _mm512_loadu_si512(p); }
PENSTOCK_INLINE Raw raw_flip(Raw v) { return _mm512_xor_si512(v, _mm512_set1_epi8(-128)); }
PENSTOCK_INLINE Raw raw_shift(Raw v, int bits) { return _mm512_srli_epi32(v, static_cast<unsigned>(bits)); }
PENSTOCK_INLINE Lanes raw_merge(Raw v, int mask, int power) {  // (v & mask) | power
    return _mm512_castsi512_ps(
        _mm512_ternarylogic_epi32(v, _mm512_set1_epi32(mask), _mm512_set1_epi32(power), 0xea));
}
PENSTOCK_INLINE Lanes lanes_sub(Lanes a, float b) { return _mm512_sub_ps(a, _mm512_set1_ps(b)); }
PENSTOCK_INLINE Lanes lanes_broadcast(float x) { return _mm512_set1_ps(x); }
#elif defined(__AVX2__)
typedef __m256i Raw;
PENSTOCK_INLINE Raw raw_load(const std::byte* p) { return lanes_raw(p); }
PENSTOCK_INLINE Raw raw_flip(Raw v) { return _mm256_xor_si256(v, _mm256_set1_epi8(-128)); }
PENSTOCK_INLINE Raw raw_shift(Raw v, int bits) { return _mm256_srli_epi32(v, bits); }
PENSTOCK_INLINE Lanes raw_merge(Raw v, int mask, int power) {
    return _mm256_castsi256_ps(
        _mm256_or_si256(_mm256_and_si256(v, _mm256_set1_epi32(mask)), _mm256_set1_epi32(power)));
}
PENSTOCK_INLINE Lanes lanes_sub(Lanes a, float b) { return _mm256_sub_ps(a, _mm256_set1_ps(b)); }
PENSTOCK_INLINE Lanes lanes_broadcast(float x) { return _mm256_set1_ps(x); }
#else
typedef uint32_t Raw;
PENSTOCK_INLINE Raw raw_load(const std::byte* p) {
    uint32_t v;
    std::memcpy(&v, p, 4);
    return v;
}
PENSTOCK_INLINE Raw raw_flip(Raw v) { return v ^ 0x80808080U; }
PENSTOCK_INLINE Raw raw_shift(Raw v, int bits) { return v >> bits; }
PENSTOCK_INLINE Lanes raw_merge(Raw v, int mask, int power) {
    const uint32_t u = (v & static_cast<uint32_t>(mask)) | static_cast<uint32_t>(power);
    float f;
    std::memcpy(&f, &u, 4);
    return f;
}
PENSTOCK_INLINE Lanes lanes_sub(Lanes a, float b) { return a - b; }
PENSTOCK_INLINE Lanes lanes_broadcast(float x) { return x; }
#endif

// The code of `kBits` bits from bit kAt of every lane, less `bias`; its last place must lie in the mantissa.
template <int kBits, int kAt>
PENSTOCK_INLINE Lanes code_at(Raw v, float bias) {
    static_assert(kAt + kBits <= 23);
    constexpr int kPower = (127 + 23 - kAt) << 23;
    return lanes_sub(raw_merge(v, ((1 << kBits) - 1) << kAt, kPower),
                     static_cast<float>(1 << (23 - kAt)) + bias);
}

template <int kBitsOfCode>
struct CodeLine;

#if defined(__AVX512F__)
// What sixteen codes of four bits stand for, all exact in bf16: looked up by the lowest bits of a lane, or of
// its upper half, where the bf16 is the float.
struct CodeTable {
    __m512 floats;
    __m512i upper;  // 32 words: the fifth bit of an index belongs to the next code

    explicit CodeTable(__m512 values) : floats(values) {
        const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(values), 16));
        upper = _mm512_broadcast_i64x4(words);
    }
};
PENSTOCK_INLINE Lanes by_low_bits(const CodeTable& t, Raw v) { return _mm512_permutexvar_ps(v, t.floats); }
PENSTOCK_INLINE Lanes by_high_bits(const CodeTable& t, Raw v) {
    return _mm512_castsi512_ps(_mm512_maskz_permutexvar_epi16(0xaaaaaaaaU, v, t.upper));
}
#endif

// 64 bytes as stored: four bytes of a column, each a low and a high nibble.
template <>
struct CodeLine<4> {
    static constexpr int kBits = 4;
    static constexpr int kLines = 8;  // of 64 k
    Raw raw, shifted;
    float bias;
#if defined(__AVX512F__)
    // From bit 12 on: then four codes lie where one lookup finds them. The others go through the mantissa,
    // because lookups and shifts share two of the four pipes.
    static constexpr int kShift = 12;
    CodeTable table;
    explicit CodeLine(int32_t b)
        : bias(static_cast<float>(b)),
          table(_mm512_cvtepi32_ps(
              _mm512_sub_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                               _mm512_set1_epi32(b)))) {}
#else
    static constexpr int kShift = 20;
    explicit CodeLine(int32_t b) : bias(static_cast<float>(b)) {}
#endif
    PENSTOCK_INLINE void read(CodeLine& line, const std::byte* p) {
        line.raw = raw_load(p);
        line.shifted = raw_shift(line.raw, kShift);
    }
    // Nibble i of the lane: byte i / 2, low or high.
    template <int i>
    PENSTOCK_INLINE Lanes code(const CodeLine& line) {
#if defined(__AVX512F__)
        if constexpr (i == 0) return by_low_bits(line.table, line.raw);
        if constexpr (i == 3) return by_low_bits(line.table, line.shifted);
        if constexpr (i == 4) return by_high_bits(line.table, line.raw);
        if constexpr (i == 7) return by_high_bits(line.table, line.shifted);
#endif
        constexpr bool is_shifted =
            4 * i + 4 > 20 || 4 * i >= kShift;  // else it lies in the mantissa as it is
        constexpr int kAt = is_shifted ? 4 * i - kShift : 4 * i;
        return code_at<4, kAt>(is_shifted ? line.shifted : line.raw, line.bias);
    }
};

// 64 bytes as stored: four signed bytes of a column.
template <>
struct CodeLine<8> {
    static constexpr int kBits = 8;
    static constexpr int kLines = 16;
    Raw raw, high;
    explicit CodeLine(int32_t) {}
    PENSTOCK_INLINE void read(CodeLine& line, const std::byte* p) {
        line.raw = raw_flip(raw_load(p));
        line.high = raw_shift(line.raw, 16);
    }
    template <int i>
    PENSTOCK_INLINE Lanes code(const CodeLine& line) {
        return code_at<8, i % 2 * 8>(i < 2 ? line.raw : line.high, 128.0f);
    }
};

// 64 bytes as stored: four bytes of a column, each a low and a high nibble, which are E2M1.
struct E2M1Line {
    static constexpr int kBits = 4;
    Raw raw;
#if defined(__AVX512F__)
    Raw by4, by8, by12;
    CodeTable table;
    explicit E2M1Line(int32_t) : table(_mm512_loadu_ps(kE2M1)) {}
    PENSTOCK_INLINE void read(E2M1Line& line, const std::byte* p) {
        line.raw = raw_load(p);
        line.by4 = raw_shift(line.raw, 4);
        line.by8 = raw_shift(line.raw, 8);
        line.by12 = raw_shift(line.raw, 12);
    }
#elif defined(__AVX2__)
    __m256 table;
    explicit E2M1Line(int32_t) : table(_mm256_loadu_ps(kE2M1)) {}
    PENSTOCK_INLINE void read(E2M1Line& line, const std::byte* p) { line.raw = raw_load(p); }
#else
    explicit E2M1Line(int32_t) {}
    PENSTOCK_INLINE void read(E2M1Line& line, const std::byte* p) { line.raw = raw_load(p); }
#endif
    // Nibble i of the lane: byte i / 2, low or high.
    template <int i>
    PENSTOCK_INLINE Lanes code(const E2M1Line& line) {
#if defined(__AVX512F__)
        const Raw v = i % 4 == 0 ? line.raw : i % 4 == 1 ? line.by4 : i % 4 == 2 ? line.by8 : line.by12;
        return i < 4 ? by_low_bits(line.table, v) : by_high_bits(line.table, v);
#elif defined(__AVX2__)
        const __m256i at = i == 0 ? line.raw : raw_shift(line.raw, 4 * i);  // by its lowest three bits
        const __m256i sign =
            _mm256_and_si256(_mm256_slli_epi32(line.raw, 28 - 4 * i), _mm256_set1_epi32(INT32_MIN));
        return _mm256_or_ps(_mm256_permutevar8x32_ps(line.table, at), _mm256_castsi256_ps(sign));
#else
        return kE2M1[raw_shift(line.raw, 4 * i) & 15U];
#endif
    }
};

// kStepK: k of a pair of chains, 32 or 16. kIsLong: a group is several of them.
template <class Line, int kStepK, bool kIsLong>
struct CodesKernel {
    static constexpr int kBits = Line::kBits;
    static constexpr int64_t kChunk = 512, kAlign = kSuperblockK;
    static constexpr int64_t kTileBytes = kBits * 128, kStepBytes = 2 * kTileBytes;  // of 64 k
#if defined(__AVX512F__)
    static constexpr int kMaxRows = 8, kTogether = 5;  // rows whose low and high nibbles go together
#elif defined(__AVX2__)
    static constexpr int kMaxRows = 4, kTogether = 1;
#else
    static constexpr int kMaxRows = 2, kTogether = 1;
#endif

    Coding coding;
    explicit CodesKernel(const PackedWeight& w) : coding(coding_of(w.format)), k_padded(w.k_padded) {}
    int64_t bytes(int64_t k) const {
        const int64_t rest = k % kSuperblockK;  // not 0 only at the end of K
        return k / kSuperblockK * superblock_bytes(coding, kSuperblockK) +
               (rest > 0 ? superblock_bytes(coding, rest) : 0);
    }
    static bool is_busy(int64_t) { return true; }

    void copy_rows(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k, float* out,
                   float* row_sums) const {
        copy_bfloat16_rows<kChunk>(a, row, count, k, num_k, out);
        if (!has_offset(coding)) return;
        for (int64_t i = 0; i < num_k; i += 32)
            for (int64_t r = 0; r < count; ++r) {
                const float* x = out + (i / kChunk * kChunk * count + r * kChunk + i % kChunk);
                float even = 0.0f, odd = 0.0f;
                for (int j = 0; j < 32; j += 2) {
                    even += x[j];
                    odd += x[j + 1];
                }
                row_sums[i / 32 * count + r] = even + odd;
            }
    }

    void finish(const std::byte* panel, float* sums, int64_t count) const {
        if (coding.trailer != Trailer::kChannel) return;
        const auto* scales = reinterpret_cast<const float*>(panel + k_padded * kPanel);
        for (int64_t i = 0; i < count * kPanel; i += kLanes)
            store(sums + i, load(sums + i) * load(scales + i % kPanel));
    }

    // R rows x kWidth columns of a superblock: where everything is.
    struct Place {
        const BlockArgs& args;
        const GroupScales& scales;
        int64_t k, length;  // the superblock's first k in this block, its K
        int64_t column;
        float (*parts)[kPanel];  // the group's sums so far
    };

    // The chains of kStepK k that begin at `inside` the superblock are done.
    template <int R>
    PENSTOCK_INLINE void finish_step(const Place& at, int64_t inside, const Lanes (&even)[R],
                                     const Lanes (&odd)[R]) {
        const Coding& coding = at.args.coding;
        if (coding.group == 0) {
            for (int r = 0; r < R; ++r) {
                float* sum = at.args.sums + r * kPanel + at.column;
                lanes_store(sum, lanes_add(lanes_load(sum), lanes_add(even[r], odd[r])));
            }
            return;
        }
        const int64_t end = inside + kStepK, group = kIsLong ? coding.group : kStepK;
        const bool is_end = !kIsLong || end % group == 0 || end == at.length;
        const int64_t g = inside / group;
        const Lanes scale = lanes_load(at.scales.scale[g] + at.column);
        for (int r = 0; r < R; ++r) {
            Lanes s = lanes_add(even[r], odd[r]);
            float* part = at.parts[r] + at.column;
            s = lanes_add(kIsLong ? lanes_load(part) : lanes_zero(), s);
            if (!is_end) {
                lanes_store(part, s);
                continue;
            }
            if (kIsLong) lanes_store(part, lanes_zero());
            float* sum = at.args.sums + r * kPanel + at.column;
            Lanes acc = lanes_fma(s, scale, lanes_load(sum));
            if (has_offset(coding)) {
                float x = 0.0f;
                for (int64_t k = at.k + g * group; k < at.k + end; k += 32)
                    x += at.args.row_sums[k / 32 * at.args.row_sums_stride + r];
                acc = lanes_fma(lanes_broadcast(x), lanes_load(at.scales.offset[g] + at.column), acc);
            }
            lanes_store(sum, acc);
        }
    }

    template <int R, int i>
    PENSTOCK_INLINE void multiply(const Lanes& w, const float* x, Lanes (&even)[R], Lanes (&odd)[R]) {
        for (int r = 0; r < R; ++r) {
            Lanes& acc = i % 2 ? odd[r] : even[r];
            acc = lanes_fma(lanes_set1(x + r * kChunk), w, acc);
        }
    }

    // 64 k of kWidth columns, 4-bit codes: low nibbles are the first 32.
    template <int R, int kLocality>
    PENSTOCK_INLINE void step4(const Place& at, int64_t step, const std::byte* lines, Line& line,
                               const std::byte*& ahead) {
        constexpr int kPasses = R <= kTogether ? 1 : 2;
        const float* const x = at.args.rows + at.k + step * 64;
        Lanes even[2][R], odd[2][R];
        for (int half = 0; half < 2; ++half)
            for (int r = 0; r < R; ++r) even[half][r] = odd[half][r] = lanes_zero();
        for (int pass = 0; pass < kPasses; ++pass) {
            const bool low = kPasses == 1 || pass == 0, high = kPasses == 1 || pass == 1;
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i) {
                if (low && at.column % 16 == 0)
                    __builtin_prefetch(ahead, 0, kLocality), ahead += at.args.ahead_step;
                Line::read(line, lines + i * 64);
                if (low) {
                    multiply<R, 0>(Line::template code<0>(line), x + 4 * i, even[0], odd[0]);
                    multiply<R, 1>(Line::template code<2>(line), x + 4 * i + 1, even[0], odd[0]);
                    multiply<R, 0>(Line::template code<4>(line), x + 4 * i + 2, even[0], odd[0]);
                    multiply<R, 1>(Line::template code<6>(line), x + 4 * i + 3, even[0], odd[0]);
                }
                if (high) {
                    const float* y = x + 32 + 4 * i;
                    multiply<R, 0>(Line::template code<1>(line), y, even[1], odd[1]);
                    multiply<R, 1>(Line::template code<3>(line), y + 1, even[1], odd[1]);
                    multiply<R, 0>(Line::template code<5>(line), y + 2, even[1], odd[1]);
                    multiply<R, 1>(Line::template code<7>(line), y + 3, even[1], odd[1]);
                }
            }
            if (low) finish_step<R>(at, step * 64, even[0], odd[0]);
            if (high) finish_step<R>(at, step * 64 + 32, even[1], odd[1]);
        }
    }

    // 64 k of kWidth columns, 8-bit codes.
    template <int R, int kLocality>
    PENSTOCK_INLINE void step8(const Place& at, int64_t step, const std::byte* lines, Line& line,
                               const std::byte*& ahead) {
        for (int part = 0; part < 64; part += kStepK) {
            const float* const x = at.args.rows + at.k + step * 64 + part;
            Lanes even[R], odd[R];
            for (int r = 0; r < R; ++r) even[r] = odd[r] = lanes_zero();
#pragma GCC unroll 8
            for (int i = 0; i < kStepK / 4; ++i) {
                if (at.column % 16 == 0) __builtin_prefetch(ahead, 0, kLocality), ahead += at.args.ahead_step;
                Line::read(line, lines + (part / 4 + i) * 64);
                multiply<R, 0>(Line::template code<0>(line), x + 4 * i, even, odd);
                multiply<R, 1>(Line::template code<1>(line), x + 4 * i + 1, even, odd);
                multiply<R, 0>(Line::template code<2>(line), x + 4 * i + 2, even, odd);
                multiply<R, 1>(Line::template code<3>(line), x + 4 * i + 3, even, odd);
            }
            finish_step<R>(at, step * 64 + part, even, odd);
        }
    }

    template <int R, int kLocality>
    static void block(const BlockArgs& args) noexcept {
        const Coding coding = args.coding;
        Line line(coding.bias);
        GroupScales scales;
        alignas(64) float parts[R][kPanel] = {};
        const std::byte *weights = args.weights, *ahead = args.ahead;
        for (int64_t k = 0; k < args.num_k; k += kSuperblockK) {
            const int64_t length = args.num_k - k < kSuperblockK ? args.num_k - k : kSuperblockK;
            const std::byte* const trailer = weights + length * 4 * kBits;
            read_trailer(coding, trailer, length, scales);
            for (int64_t step = 0; step < length / 64; ++step)
                for (int64_t column = 0; column < kPanel; column += kWidth) {
                    const Place at{args, scales, k, length, column, parts};
                    const std::byte* const lines =
                        weights + step * kStepBytes + column / 16 * kTileBytes + column % 16 * 4;
                    if constexpr (kBits == 4) {
                        step4<R, kLocality>(at, step, lines, line, ahead);
                    } else {
                        step8<R, kLocality>(at, step, lines, line, ahead);
                    }
                }
            const int64_t bytes = trailer_bytes(coding, length);
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(ahead + i, 0, kLocality);
            ahead += bytes / 64 * args.ahead_step;
            weights = trailer + bytes;
        }
    }

  private:
    int64_t k_padded;
};

}  // namespace penstock::PENSTOCK_ISA
