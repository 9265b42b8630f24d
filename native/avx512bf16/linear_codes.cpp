// y = W x on integer codes under the BF16 contract (kernels/linear_codes.h states it) by VDPBF16PS: pairs.h.
//
// Codes become tiles of pairs in scratch, 16 KB, which meet all rows. For few rows the conversion is what
// takes the time: the AVX-512 kernels, which keep it in registers, have the same bits.
#include "avx512bf16/pairs.h"
#include "kernels/code_sums.h"

namespace penstock {

namespace avx512 {
LinearKernel linear_codes4, linear_codes8, linear_mxfp4;
}

namespace PENSTOCK_ISA {
namespace {

constexpr int64_t kFewRows4 = 2, kFewRows8 = 4;  // of 4-bit and of 8-bit codes

// Sixteen codes of four bits as bf16, by the lowest bits of a word. Twice: the fifth bit of an index belongs
// to another code.
PENSTOCK_INLINE __m512i table_of(__m512 values) {
    const __m256i words = _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(values), 16));
    return _mm512_broadcast_i64x4(words);
}

// 64 bytes as stored: four bytes of a column, each a low and a high nibble. 16 columns x 64 k to two tiles.
struct Nibbles {
    static constexpr int64_t kLines = 8;
    __m512i table;

    PENSTOCK_INLINE void write(const __m512i& table, const std::byte* lines, std::byte* low,
                               std::byte* high) {
        for (int64_t i = 0; i < kLines; ++i, lines += 64, low += 128, high += 128) {
            const __m512i raw = _mm512_rol_epi32(_mm512_loadu_si512(lines), 16);  // the first k on top
            _mm512_store_si512(low, _mm512_permutexvar_epi16(raw, table));
            _mm512_store_si512(high, _mm512_permutexvar_epi16(_mm512_srli_epi32(raw, 4), table));
            _mm512_store_si512(low + 64, _mm512_permutexvar_epi16(_mm512_srli_epi32(raw, 8), table));
            _mm512_store_si512(high + 64, _mm512_permutexvar_epi16(_mm512_srli_epi32(raw, 12), table));
        }
    }
};
struct Int4 : Nibbles {
    explicit Int4(const Coding& coding)
        : Nibbles{table_of(_mm512_cvtepi32_ps(
              _mm512_sub_epi32(_mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
                               _mm512_set1_epi32(coding.bias))))} {}
};
struct E2M1 : Nibbles {
    explicit E2M1(const Coding&) : Nibbles{table_of(_mm512_loadu_ps(kE2M1))} {}
};

// 64 bytes as stored: four signed bytes of a column.
struct Int8 {
    static constexpr int64_t kLines = 16;
    __m512i table{};
    explicit Int8(const Coding&) {}

    // Of a lane the byte that ends at bit kEnd, in the upper half.
    template <unsigned kEnd>
    PENSTOCK_INLINE __m512i byte(__m512i raw) {
        const __m512i alone = _mm512_srai_epi32(_mm512_slli_epi32(raw, 32 - kEnd), 24);
        return _mm512_castps_si512(_mm512_cvtepi32_ps(alone));
    }
    PENSTOCK_INLINE void write(const __m512i&, const std::byte* lines, std::byte* low, std::byte* high) {
        for (int64_t i = 0; i < kLines; ++i, lines += 64) {
            const __m512i raw = _mm512_loadu_si512(lines);
            std::byte* const to = (i < kLines / 2 ? low : high) + i % (kLines / 2) * 128;
            _mm512_store_si512(to, _mm512_or_si512(byte<8>(raw), _mm512_srli_epi32(byte<24>(raw), 16)));
            _mm512_store_si512(to + 64, _mm512_or_si512(byte<16>(raw), _mm512_srli_epi32(byte<32>(raw), 16)));
        }
    }
};

// kStepK: k of a pair of chains, 32 or 16. kIsLong: a group is several of them.
template <class Codes, int kStepK, bool kIsLong>
struct CodesKernel : CodePanels {
    using Sums = CodeSums<kStepK, kIsLong>;
    static constexpr int64_t kChunk = 256, kRowChunk = kChunk / 2;
    static constexpr int kMaxRows = 12;  // 24 sums, 2 weights
    struct Room {
        alignas(64) std::byte tiles[kChunk / 32 * 2 * kPairTileBytes];  // [k / 32][half of the panel]
        GroupScales scales[kChunk / kSuperblockK];
    };
    static constexpr int64_t kRoomBytes = sizeof(Room);

    Codes codes;
    explicit CodesKernel(const PackedWeight& w) : CodePanels(w), codes(coding) {}
    void copy_rows(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k, float* out,
                   float* row_sums) const {
        copy_pairs<kChunk>(a, row, count, k, num_k, out);
        if (!has_offset(coding)) return;
        for (int64_t i = 0; i < num_k; i += 32)
            for (int64_t r = 0; r < count; ++r)
                row_sums[i / 32 * count + r] =
                    sum_of(out + (i / kChunk * count + r) * kRowChunk + i % kChunk / 2);
        add_up(k, num_k, count, row_sums);
    }

    // Of 32 k, which are the product with ones.
    PENSTOCK_INLINE float sum_of(const float* row) {
        const __m512i ones = _mm512_set1_epi32(0x3f803f80);
        __m512 even[1], odd[1];
        const auto next = [&](int, __m512i& w_even, __m512i& w_odd) { w_even = w_odd = ones; };
        multiply_pairs<1, kRowChunk>(row, even, odd, next, std::make_index_sequence<8>());
        return _mm512_cvtss_f32(_mm512_add_ps(even[0], odd[0]));
    }

    const std::byte* prepare(const std::byte* chunk, int64_t num_k, int64_t, std::byte* memory) const {
        Room& room = *reinterpret_cast<Room*>(memory);
        std::byte* tile = room.tiles;
        for (int64_t k = 0, length; k < num_k; k += length) {
            length = num_k - k < kSuperblockK ? num_k - k : kSuperblockK;
            for (int64_t step = 0; step < length / 64; ++step, tile += 4 * kPairTileBytes)
                for (int64_t half = 0; half < 2; ++half, chunk += Codes::kLines * 64) {
                    std::byte* const low = tile + half * kPairTileBytes;
                    Codes::write(codes.table, chunk, low, low + 2 * kPairTileBytes);
                }
            read_trailer(coding, chunk, length, room.scales[k / kSuperblockK]);
            chunk += trailer_bytes(coding, length);
        }
        return memory;
    }

    template <int R, bool kIsLone>
    static void block(const BlockArgs& args) noexcept {
        const Room& room = *reinterpret_cast<const Room*>(args.weights);
        alignas(64) float parts[R][kPanel] = {};
        const std::byte* tile = room.tiles;
        const float* rows = args.rows;
        Ahead share(args);
        for (int64_t k = 0; k < args.num_k; k += 32, rows += 16) {
            const int64_t inside = k % kSuperblockK, first = k - inside;
            const int64_t length = args.num_k - first < kSuperblockK ? args.num_k - first : kSuperblockK;
            for (int64_t column = 0; column < kPanel; column += kLanes, tile += kPairTileBytes) {
                const typename Sums::Place at{args, room.scales[k / kSuperblockK], first, length, column,
                                              parts};
                Ahead::prefetch(share);
                for (int64_t step = 0; step < 32; step += kStepK) {
                    __m512 even[R], odd[R];
                    multiply_tile<R, kStepK / 4, kRowChunk>(tile + step * 32, rows + step / 2, even, odd);
                    Sums::template add<R>(at, inside + step, even, odd);
                }
            }
        }
    }
};

template <class Codes, int kStepK, bool kIsLong>
constexpr LinearKernel* kRun = LinearFloat<CodesKernel<Codes, kStepK, kIsLong>>::run;

}  // namespace

void linear_codes4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                   int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    LinearKernel* const run = rows <= kFewRows4          ? avx512::linear_codes4
                              : group_of(w.format) == 32 ? kRun<Int4, 32, false>
                                                         : kRun<Int4, 32, true>;
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

void linear_codes8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                   int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    const int64_t group = group_of(w.format);
    LinearKernel* const run = rows <= kFewRows8 ? avx512::linear_codes8
                              : group == 16     ? kRun<Int8, 16, false>
                              : group == 32     ? kRun<Int8, 32, false>
                                                : kRun<Int8, 32, true>;
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

void linear_mxfp4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                  int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    const auto run = rows <= kFewRows4 ? avx512::linear_mxfp4 : kRun<E2M1, 32, false>;
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
