// y = W x under the BF16 contract (kernels/linear_bfloat16.cpp states it) by VDPBF16PS: pairs.h.
//
// One or two rows: reading is all the work, and the AVX-512 kernel has the same bits.
#include "avx512bf16/pairs.h"

namespace penstock {

namespace avx512 {
LinearKernel linear_bfloat16;
}

namespace PENSTOCK_ISA {
namespace {

constexpr int64_t kFewRows = 2;

struct BFloat16Kernel {
    static constexpr int64_t kBytesPerK = 64, kAlign = 32;
    static constexpr int64_t kChunk = kChunkBytes / kBytesPerK, kRowChunk = kChunk / 2;
    static constexpr int64_t kRoomBytes = kChunkBytes;
    static constexpr int kMaxRows = 12;  // 24 sums, 2 weights

    explicit BFloat16Kernel(const PackedWeight&) {}
    static int64_t bytes(int64_t k) { return k * kBytesPerK; }
    static bool is_busy(int64_t num_rows) { return num_rows > 4; }
    static void copy_rows(const Operand& a, int64_t row, int64_t count, int64_t k, int64_t num_k, float* out,
                          float*) {
        copy_pairs<kChunk>(a, row, count, k, num_k, out);
    }
    static void finish(const std::byte*, float*, int64_t) {}

    static const std::byte* prepare(const std::byte* chunk, int64_t num_k, int64_t blocks, std::byte* room) {
        if (blocks == 1) return chunk;
        for (int64_t at = 0; at < num_k * kBytesPerK; at += 128) {
            const __m512i first = _mm512_loadu_si512(chunk + at),
                          second = _mm512_loadu_si512(chunk + at + 64);
            _mm512_store_si512(room + at, even_pairs(first, second));
            _mm512_store_si512(room + at + 64, odd_pairs(first, second));
        }
        return room;
    }

    template <int R, bool kIsLone>
    static void block(const BlockArgs& args) noexcept {
        const std::byte* tile = args.weights;
        const std::byte* ahead = args.ahead;
        const float* rows = args.rows;
        Ahead share(args);
        for (int64_t k = 0; k < args.num_k; k += 32, rows += 16) {
            for (int64_t column = 0; column < kPanel; column += kLanes, tile += kPairTileBytes) {
                __m512 even[R], odd[R];
                if constexpr (kIsLone) {
                    const auto next = [&](int pair, __m512i& w_even, __m512i& w_odd) {
                        if (R > 4)
                            for (int line = 0; line < 2; ++line, ahead += args.ahead_step)
                                __builtin_prefetch(ahead, 0, locality<kIsLone>());
                        const __m512i first = _mm512_loadu_si512(tile + pair * 128),
                                      second = _mm512_loadu_si512(tile + pair * 128 + 64);
                        w_even = even_pairs(first, second);
                        w_odd = odd_pairs(first, second);
                    };
                    multiply_pairs<R, kRowChunk>(rows, even, odd, next, std::make_index_sequence<8>());
                } else {
                    Ahead::prefetch(share);
                    multiply_tile<R, 8, kRowChunk>(tile, rows, even, odd);
                }
                for (int r = 0; r < R; ++r) {
                    float* sum = args.sums + r * kPanel + column;
                    lanes_store(sum, lanes_add(lanes_load(sum), lanes_add(even[r], odd[r])));
                }
            }
        }
    }
};

}  // namespace

void linear_bfloat16(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                     int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    const auto run = rows <= kFewRows ? avx512::linear_bfloat16 : LinearFloat<BFloat16Kernel>::run;
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
