// The loops that the float linears share: which panel, which rows, which part of K, in what order.
//
// A format brings Kernel, made of the weight: kChunk (k of a chunk), kAlign (k at which K may be cut),
// kMaxRows (rows of a register block), bytes(k) (of a panel up to k), copy_rows (operand -> rows in scratch,
// fp32 or two k a float), block<R, whether no other block of rows meets the chunk> (R rows x 32 columns over
// a few k, sums kept in `sums`) and finish (what is left to do with a panel's sums). A kernel with `prepare`
// has a chunk rewritten once, in L1, for all blocks of rows that meet it. Sums are stored and reloaded as
// fp32 between chunks, which changes no bit; so every choice below is about speed:
//
//     for 16 panels, for <= 96 rows, for <= 1024 k (more when rows are few):     rows as fp32 in scratch, L2
//         for each panel, for each chunk of k (16 KB of weights, L1), for each block of rows
//
// Weights are read strictly in the order of their addresses, one panel at a time: hardware prefetchers then
// reach the speed of a plain read loop (four panels in turns: 0.6 of it; two tiles in turns: 0.5). They fall
// behind once arithmetic fills the window, so a block with more than four FMAs per 64-byte line prefetches
// into L2 what comes 8 KB later, or a share of the next chunk where several blocks of rows pass over it (M=8
// fp32: 0.64 to 0.92 of the roofline; into L1 instead: 0.70; the same prefetches with less arithmetic cost a
// third).
#pragma once
#include "kernels.h"
#include "kernels/linear_out.h"
#include "simd.h"

namespace penstock::PENSTOCK_ISA {

// The registers of this ISA: kWidth columns each.
#if defined(__AVX512F__)
typedef __m512 Lanes;
constexpr int kWidth = 16;
PENSTOCK_INLINE Lanes lanes_zero() { return _mm512_setzero_ps(); }
PENSTOCK_INLINE Lanes lanes_load(const float* p) { return _mm512_loadu_ps(p); }
PENSTOCK_INLINE void lanes_store(float* p, Lanes v) { _mm512_storeu_ps(p, v); }
PENSTOCK_INLINE Lanes lanes_set1(const float* p) { return _mm512_set1_ps(*p); }
PENSTOCK_INLINE Lanes lanes_add(Lanes a, Lanes b) { return _mm512_add_ps(a, b); }
PENSTOCK_INLINE Lanes lanes_fma(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
PENSTOCK_INLINE Lanes lanes_fp16(const std::byte* p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
}
PENSTOCK_INLINE Lanes lanes_even(const std::byte* p) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16));
}
PENSTOCK_INLINE Lanes lanes_odd(const std::byte* p) {
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), _mm512_set1_epi32(-65536)));
}
#elif defined(__AVX2__)
typedef __m256 Lanes;
constexpr int kWidth = 8;
PENSTOCK_INLINE Lanes lanes_zero() { return _mm256_setzero_ps(); }
PENSTOCK_INLINE Lanes lanes_load(const float* p) { return _mm256_loadu_ps(p); }
PENSTOCK_INLINE void lanes_store(float* p, Lanes v) { _mm256_storeu_ps(p, v); }
PENSTOCK_INLINE Lanes lanes_set1(const float* p) { return _mm256_broadcast_ss(p); }
PENSTOCK_INLINE Lanes lanes_add(Lanes a, Lanes b) { return _mm256_add_ps(a, b); }
PENSTOCK_INLINE Lanes lanes_fma(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
PENSTOCK_INLINE Lanes lanes_fp16(const std::byte* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
PENSTOCK_INLINE __m256i lanes_raw(const std::byte* p) {
    return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
PENSTOCK_INLINE Lanes lanes_even(const std::byte* p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(lanes_raw(p), 16));
}
PENSTOCK_INLINE Lanes lanes_odd(const std::byte* p) {
    return _mm256_castsi256_ps(_mm256_and_si256(lanes_raw(p), _mm256_set1_epi32(-65536)));
}
#else
typedef float Lanes;
constexpr int kWidth = 1;
PENSTOCK_INLINE Lanes lanes_zero() { return 0.0f; }
PENSTOCK_INLINE Lanes lanes_load(const float* p) { return *p; }
PENSTOCK_INLINE void lanes_store(float* p, Lanes v) { *p = v; }
PENSTOCK_INLINE Lanes lanes_set1(const float* p) { return *p; }
PENSTOCK_INLINE Lanes lanes_add(Lanes a, Lanes b) { return a + b; }
PENSTOCK_INLINE Lanes lanes_fma(Lanes a, Lanes b, Lanes c) { return __builtin_fmaf(a, b, c); }
PENSTOCK_INLINE uint16_t half_at(const std::byte* p) {
    uint16_t h;
    std::memcpy(&h, p, 2);
    return h;
}
PENSTOCK_INLINE Lanes lanes_fp16(const std::byte* p) { return widen_fp16_1(half_at(p)); }
PENSTOCK_INLINE Lanes lanes_even(const std::byte* p) { return widen_bf16_1(half_at(p)); }
PENSTOCK_INLINE Lanes lanes_odd(const std::byte* p) { return widen_bf16_1(half_at(p + 2)); }
#endif

constexpr int64_t kChunkBytes = 16384;            // weights of a chunk
constexpr int64_t kAheadBytes = 8192;             // prefetch distance of a lone block
constexpr int64_t kPanelGroup = 16;               // panels whose sums wait in scratch
constexpr int64_t kRowGroup = 96;                 // rows expanded at a time
constexpr int64_t kRowFloats = kRowGroup * 1024;  // their fp32 values, 384 KB
constexpr int64_t kRowSums = kRowFloats / 32;     // and the sums of each 32 of them
constexpr int64_t kFloatScratch = (2 * kPanelGroup * kRowGroup * kPanel + kRowFloats + kRowSums) * 4;
static_assert(kFloatScratch <= kScratchBytes && kFloatScratch % 64 == 0);

// Where a block reads and adds; `ahead` walks over weights needed soon, `ahead_step` bytes per 64 read of a
// chunk as stored, `ahead_bytes` in all.
struct BlockArgs {
    const std::byte* weights;
    const float* rows;  // [R][kChunk], or half of it
    float* sums;        // [R][32]
    int64_t num_k;      // a multiple of 32
    const std::byte* ahead;
    int64_t ahead_step, ahead_bytes;
    const Coding& coding;
    const float* row_sums;  // of groups up to each 32 k, for offsets: [num_k / 32][row_sums_stride]
    int64_t row_sums_stride;
};

// Row `row` of a bf16 operand from `k` on, a multiple of 32; 32 of them lie side by side.
PENSTOCK_INLINE const uint16_t* bfloat16_row(const Operand& a, int64_t row, int64_t k) {
    const int64_t tile = row / kTileRows * (a.k_padded / 32) + k / 32;
    return static_cast<const uint16_t*>(a.data) + (tile * kTileRows + row % kTileRows) * 32;
}

// Rows [row, row + count) of k [k, k + num_k) of a bf16 operand as [num_k / kChunk][count][kChunk] fp32.
template <int64_t kChunk>
PENSTOCK_INLINE void copy_bfloat16_rows(const Operand& a, int64_t row, int64_t count, int64_t k,
                                        int64_t num_k, float* out) {
    for (int64_t i = 0; i < num_k; i += 32)  // sixteen rows lie side by side
        for (int64_t r = 0; r < count; ++r) {
            const uint16_t* from = bfloat16_row(a, row + r, k + i);
            float* to = out + (i / kChunk * kChunk * count + r * kChunk + i % kChunk);
            store(to, widen_bf16(from));
            store(to + kLanes, widen_bf16(from + kLanes));
        }
}

// Of a block's prefetches: L2 for one that goes through the weights alone, L1 for a share of the next chunk.
template <bool kIsLone>
constexpr int locality() {
    return kIsLone ? 2 : 3;
}

template <class Kernel>
struct LinearFloat {
    static constexpr int64_t kChunk = Kernel::kChunk;
    static constexpr int64_t kRowChunk = [] {  // floats of a row's chunk
        if constexpr (requires { Kernel::kRowChunk; }) return Kernel::kRowChunk;
        return kChunk;
    }();
    using Block = void(const BlockArgs&) noexcept;

    // What blocks of rows read in place of a chunk.
    static const std::byte* prepared(const Kernel& kernel, const std::byte* chunk, int64_t num_k,
                                     int64_t blocks, std::byte* room) {
        if constexpr (requires { Kernel::kRoomBytes; }) {
            static_assert(kFloatScratch + Kernel::kRoomBytes <= kScratchBytes);
            return kernel.prepare(chunk, num_k, blocks, room);
        }
        return chunk;
    }

    template <int R, bool kIsLone>
    static Block* block_of(int64_t rows) {
        if constexpr (R == 0) {
            return nullptr;
        } else {
            return rows == R ? &Kernel::template block<R, kIsLone> : block_of<R - 1, kIsLone>(rows);
        }
    }

    // Chunk by chunk: a chunk of weights meets all blocks of rows while it is in L1.
    static void panel(const Kernel& kernel, const Coding& coding, const std::byte* weights, const float* rows,
                      const float* row_sums, int64_t num_rows, int64_t num_k, float* sums, std::byte* room) {
        const int64_t blocks = (num_rows + Kernel::kMaxRows - 1) / Kernel::kMaxRows;
        const int64_t base = num_rows / blocks, larger = num_rows % blocks;
        Block* const small =
            blocks == 1 ? block_of<Kernel::kMaxRows, true>(base) : block_of<Kernel::kMaxRows, false>(base);
        Block* const large = block_of<Kernel::kMaxRows, false>(base + 1);
        // Half a line at a time also hides the order of addresses from the hardware.
        const bool is_ahead = kernel.is_busy(num_rows) || (kWidth < 16 && num_rows > 2);
        for (int64_t k = 0; k < num_k; k += kChunk) {
            const int64_t here = num_k - k < kChunk ? num_k - k : kChunk;
            const int64_t bytes = kernel.bytes(k + here) - kernel.bytes(k);
            const std::byte* const at = weights + kernel.bytes(k);
            const std::byte* const chunk = prepared(kernel, at, here, blocks, room);
            const float* const chunk_rows = rows + k / kChunk * kRowChunk * num_rows;
            int64_t row = 0;
            for (int64_t b = 0; b < blocks; ++b) {
                const std::byte* soon = blocks == 1 ? at + kAheadBytes : at + bytes + bytes / blocks * b;
                (b < larger ? large : small)({chunk, chunk_rows + row * kRowChunk, sums + row * kPanel, here,
                                              is_ahead ? soon : at, is_ahead ? 64 / blocks : 0,
                                              is_ahead ? bytes / blocks : 0, coding,
                                              row_sums + k / 32 * num_rows + row, num_rows});
                row += base + (b < larger ? 1 : 0);
            }
        }
    }

    static void run(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                    int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
        float* const sums = reinterpret_cast<float*>(scratch);
        float* const expanded = sums + kPanelGroup * kRowGroup * kPanel;
        float* const first = expanded + kRowFloats;  // half of K, when tests break the invariance
        float* const row_sums = first + kPanelGroup * kRowGroup * kPanel;
        std::byte* const room = scratch + kFloatScratch;
        const Kernel kernel(w);
        const Coding coding = coding_of(w.format);
        const int64_t half =
            g_break_invariance == 1 && rows > 1 ? w.k_padded / 2 / Kernel::kAlign * Kernel::kAlign : 0;
        const int64_t groups = (rows + kRowGroup - 1) / kRowGroup;
        const int64_t group_rows =
            groups <= 1 ? rows : round_up((rows + groups - 1) / groups, Kernel::kMaxRows);
        for (int64_t p = panel_begin; p < panel_end; p += kPanelGroup) {
            const int64_t panels = panel_end - p < kPanelGroup ? panel_end - p : kPanelGroup;
            for (int64_t row = 0; row < rows; row += group_rows) {
                const int64_t count = rows - row < group_rows ? rows - row : group_rows;
                const int64_t step = kRowFloats / count / kChunk * kChunk;
                const int64_t floats = panels * count * kPanel;
                std::memset(sums, 0, static_cast<std::size_t>(floats) * 4);
                for (int64_t k = 0, here; k < w.k_padded; k += here) {
                    const int64_t end = k < half ? half : w.k_padded;
                    here = end - k < step ? end - k : step;
                    kernel.copy_rows(a, row, count, k, here, expanded, row_sums);
                    for (int64_t i = 0; i < panels; ++i)
                        panel(kernel, coding, w.data + (p + i) * w.panel_bytes + kernel.bytes(k), expanded,
                              row_sums, count, here, sums + i * count * kPanel, room);
                    if (k + here == half) {
                        std::memcpy(first, sums, static_cast<std::size_t>(floats) * 4);
                        std::memset(sums, 0, static_cast<std::size_t>(floats) * 4);
                    }
                }
                if (half > 0)
                    for (int64_t i = 0; i < floats; i += kLanes)
                        store(sums + i, load(first + i) + load(sums + i));
                for (int64_t i = 0; i < panels; ++i) {
                    kernel.finish(w.data + (p + i) * w.panel_bytes, sums + i * count * kPanel, count);
                    write_rows(sums + i * count * kPanel, count, w.n, (p + i) * kPanel, out, row);
                }
            }
        }
    }
};

}  // namespace penstock::PENSTOCK_ISA
