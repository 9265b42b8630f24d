// Integer codes under the BF16 contract on tiles (kernels/linear_codes.h states it): a group of K is one C
// tile from zero, the scales are applied to it in fp32.
//
// Four superblocks of a panel become bf16 tiles in scratch (32 KB), which meet all rows in pairs of tiles.
// One or two rows: reading is all the work, and the AVX-512 kernel has the same bits.
#include "amx/tiles.h"
#include "kernels/codes.h"
#include "kernels/linear_out.h"

namespace penstock {

namespace avx512 {
LinearKernel linear_codes4, linear_codes8, linear_mxfp4;
}

namespace PENSTOCK_ISA {
namespace {

constexpr int64_t kFewRows = 2;
constexpr int64_t kRowGroup = 512;    // rows whose sums wait in scratch
constexpr int64_t kChunkBlocks = 4;   // superblocks
constexpr int64_t kTileBytes = 1024;  // 32 k x 16 columns in bf16
constexpr int64_t kStepBytes = 2 * kTileBytes;
constexpr int64_t kMaxSteps = kChunkBlocks * kSuperblockK / 32;

struct Scratch {
    alignas(64) float sums[kRowGroup][kPanel];
    alignas(64) float first[kRowGroup][kPanel];  // half of K, when tests break the invariance
    alignas(64) float c[2][2][16 * 16];          // [row tile][half of the panel]
    alignas(64) float row_sums[kMaxSteps][32];
    alignas(64) std::byte codes[kMaxSteps * kStepBytes];
    GroupScales scales[kChunkBlocks];
};
static_assert(sizeof(Scratch) <= kScratchBytes);

PENSTOCK_INLINE F16 nibble(U16 pair, int at, float bias) {
    return to_float(reinterpret_cast<I16>((pair >> at) & 15U)) - bias;
}
PENSTOCK_INLINE F16 e2m1(U16 pair, int at) {
    const auto choice = reinterpret_cast<__m512i>(pair >> at);  // by its lowest four bits
    return reinterpret_cast<F16>(_mm512_permutexvar_ps(choice, _mm512_loadu_ps(kE2M1)));
}
PENSTOCK_INLINE F16 signed_byte(U16 four, int at) {
    return to_float((reinterpret_cast<I16>(four) << (24 - at)) >> 24);
}
// Two successive k as a dword of bf16; codes are exact in it.
PENSTOCK_INLINE void store_pair(std::byte* to, F16 even, F16 odd) {
    const U16 pair = (bits(even) >> 16) | (bits(odd) & 0xffff0000U);
    std::memcpy(to, &pair, 64);
}

// `length` K of codes to [length / 32][2 halves of the panel][16 pairs of k][16 columns][2].
void widen_codes(const Coding& coding, const std::byte* from, int64_t length, std::byte* to) {
    const auto bias = static_cast<float>(coding.bias);
    for (int64_t step = 0; step < length / 64; ++step)
        for (int64_t half = 0; half < 2; ++half) {
            std::byte* const low = to + (2 * step * 2 + half) * kTileBytes;
            std::byte* const high = low + kStepBytes;
            if (is_e2m1(coding)) {
                const std::byte* line = from + step * 1024 + half * 512;
                for (int64_t r = 0; r < 8; ++r) {
                    U16 v;
                    std::memcpy(&v, line + r * 64, 64);
                    store_pair(low + r * 128, e2m1(v, 0), e2m1(v, 8));
                    store_pair(low + r * 128 + 64, e2m1(v, 16), e2m1(v, 24));
                    store_pair(high + r * 128, e2m1(v, 4), e2m1(v, 12));
                    store_pair(high + r * 128 + 64, e2m1(v, 20), e2m1(v, 28));
                }
            } else if (coding.bits == 4) {
                const std::byte* line = from + step * 1024 + half * 512;
                for (int64_t r = 0; r < 8; ++r) {
                    U16 v;
                    std::memcpy(&v, line + r * 64, 64);
                    store_pair(low + r * 128, nibble(v, 0, bias), nibble(v, 8, bias));
                    store_pair(low + r * 128 + 64, nibble(v, 16, bias), nibble(v, 24, bias));
                    store_pair(high + r * 128, nibble(v, 4, bias), nibble(v, 12, bias));
                    store_pair(high + r * 128 + 64, nibble(v, 20, bias), nibble(v, 28, bias));
                }
            } else {
                const std::byte* line = from + step * 2048 + half * 1024;
                for (int64_t r = 0; r < 16; ++r) {
                    U16 v;
                    std::memcpy(&v, line + r * 64, 64);
                    std::byte* const tile = (r < 8 ? low : high) + r % 8 * 128;
                    store_pair(tile, signed_byte(v, 0), signed_byte(v, 8));
                    store_pair(tile + 64, signed_byte(v, 16), signed_byte(v, 24));
                }
            }
        }
}

void configure_rows(int64_t rows, int64_t step_k) {
    const int64_t tile_rows = rows < kTileRows ? rows : kTileRows;
    TileConfig config;
    for (int t = 0; t < 4; ++t) config.set(t, tile_rows, 64);
    for (int t = 4; t < 6; ++t) config.set(t, tile_rows, step_k * 2);
    for (int t = 6; t < 8; ++t) config.set(t, step_k / 2, 64);
    configure(config);
}

// C = the chains over k [begin, end) of the chunk, for one or two tiles of rows. `a`: the chunk's first tile.
void multiply(const uint16_t* a, int64_t a_next, const std::byte* codes, int64_t begin, int64_t end,
              int64_t step_k, bool is_tall, Scratch& s) {
    PENSTOCK_TILE_ZERO(0);
    PENSTOCK_TILE_ZERO(1);
    PENSTOCK_TILE_ZERO(2);
    PENSTOCK_TILE_ZERO(3);
    for (int64_t k = begin; k < end; k += step_k) {
        const std::byte* const b = codes + k / 32 * kStepBytes + k % 32 * 32;
        const uint16_t* const rows = a + k / 32 * 512 + k % 32;
        PENSTOCK_TILE_LOAD(6, b, 64);
        PENSTOCK_TILE_LOAD(7, b + kTileBytes, 64);
        PENSTOCK_TILE_LOAD(4, rows, 64);
        PENSTOCK_TILE_DPBF16PS(0, 4, 6);
        PENSTOCK_TILE_DPBF16PS(1, 4, 7);
        if (is_tall) {
            PENSTOCK_TILE_LOAD(5, rows + a_next, 64);
            PENSTOCK_TILE_DPBF16PS(2, 5, 6);
            PENSTOCK_TILE_DPBF16PS(3, 5, 7);
        }
    }
    PENSTOCK_TILE_STORE(0, s.c[0][0], 64);
    PENSTOCK_TILE_STORE(1, s.c[0][1], 64);
    if (is_tall) {
        PENSTOCK_TILE_STORE(2, s.c[1][0], 64);
        PENSTOCK_TILE_STORE(3, s.c[1][1], 64);
    }
}

// The sums of each 32 of the chunk's k, as chains whose codes are all 1.
void sum_rows(const uint16_t* a, int64_t a_next, int64_t rows, int64_t num_k, Scratch& s) {
    for (int64_t k = 0; k < num_k; k += 32)
        for (int64_t m = 0; m < rows; ++m) {
            const uint16_t* x = a + m / kTileRows * a_next + k / 32 * 512 + m % kTileRows * 32;
            float even = 0.0f, odd = 0.0f;
            for (int i = 0; i < 32; i += 2) {
                even += widen_bf16_1(x[i]);
                odd += widen_bf16_1(x[i + 1]);
            }
            s.row_sums[k / 32][m] = even + odd;
        }
}

// The fp32 steps of k [begin, end), group `g` of superblock `block` of the chunk.
void combine(const Coding& coding, int64_t block, int64_t g, int64_t begin, int64_t end, int64_t rows,
             float (*sums)[kPanel], const Scratch& s) {
    const GroupScales& scales = s.scales[block];
    for (int64_t m = 0; m < rows; ++m) {
        float x = 0.0f;
        if (has_offset(coding))
            for (int64_t k = begin; k < end; k += 32) x += s.row_sums[k / 32][m];
        for (int t = 0; t < 2; ++t) {
            float* const sum = sums[m] + t * kLanes;
            const F16 c = load(s.c[m / 16][t] + m % 16 * 16);
            F16 acc = fma(c, load(scales.scale[g] + t * kLanes), load(sum));
            if (has_offset(coding)) acc = fma(set1(x), load(scales.offset[g] + t * kLanes), acc);
            store(sum, acc);
        }
    }
}

// One scale for all of K: every 32 k onto the sums.
void add(int64_t rows, float (*sums)[kPanel], const Scratch& s) {
    for (int64_t m = 0; m < rows; ++m)
        for (int t = 0; t < 2; ++t) {
            float* const sum = sums[m] + t * kLanes;
            store(sum, load(sum) + load(s.c[m / 16][t] + m % 16 * 16));
        }
}

// sums[rows][32] of one panel over k [k_begin, k_end), from what they are. `row` is a multiple of 16.
void sum_panel(const PackedWeight& w, const std::byte* panel, const Operand& a, int64_t row, int64_t rows,
               int64_t k_begin, int64_t k_end, Scratch& s) {
    const Coding coding = coding_of(w.format);
    const int64_t a_next = a.k_padded / 32 * 512, step_k = coding.group == 16 ? 16 : 32;
    constexpr int64_t kChunkK = kChunkBlocks * kSuperblockK;
    const std::byte* at = panel + k_begin / kSuperblockK * superblock_bytes(coding, kSuperblockK);
    for (int64_t k = k_begin; k < k_end; k += kChunkK) {
        const int64_t num_k = k_end - k < kChunkK ? k_end - k : kChunkK;
        for (int64_t b = 0; b * kSuperblockK < num_k; ++b) {
            const int64_t rest = num_k - b * kSuperblockK, length = rest < kSuperblockK ? rest : kSuperblockK;
            widen_codes(coding, at, length, s.codes + b * kSuperblockK / 32 * kStepBytes);
            read_trailer(coding, at + length * 4 * coding.bits, length, s.scales[b]);
            at += superblock_bytes(coding, length);
        }
        for (int64_t r = 0; r < rows; r += 2 * kTileRows) {
            const int64_t count = rows - r < 2 * kTileRows ? rows - r : 2 * kTileRows;
            const uint16_t* tile =
                static_cast<const uint16_t*>(a.data) + (row + r) / kTileRows * a_next + k / 32 * 512;
            if (has_offset(coding)) sum_rows(tile, a_next, count, num_k, s);
            for (int64_t b = 0; b * kSuperblockK < num_k; ++b) {
                const int64_t rest = num_k - b * kSuperblockK;
                const int64_t length = rest < kSuperblockK ? rest : kSuperblockK;
                const int64_t wide = coding.group == 0 ? 32 : coding.group;
                const int64_t group = wide < length ? wide : length;
                for (int64_t g = 0; g < length / group; ++g) {
                    const int64_t begin = b * kSuperblockK + g * group, end = begin + group;
                    multiply(tile, a_next, s.codes, begin, end, step_k, count > kTileRows, s);
                    if (coding.group == 0) {
                        add(count, s.sums + r, s);
                    } else {
                        combine(coding, b, g, begin, end, count, s.sums + r, s);
                    }
                }
            }
        }
    }
}

void run(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out, int64_t panel_begin,
         int64_t panel_end, std::byte* scratch) {
    Scratch& s = *reinterpret_cast<Scratch*>(scratch);
    const Coding coding = coding_of(w.format);
    const int64_t half =
        g_break_invariance == 1 && rows > 1 ? w.k_padded / 2 / kSuperblockK * kSuperblockK : 0;
    configure_rows(rows, coding.group == 16 ? 16 : 32);
    for (int64_t row = 0; row < rows; row += kRowGroup) {
        const int64_t count = rows - row < kRowGroup ? rows - row : kRowGroup, floats = count * kPanel;
        for (int64_t p = panel_begin; p < panel_end; ++p) {
            const std::byte* panel = w.data + p * w.panel_bytes;
            float* const sums = s.sums[0];
            std::memset(sums, 0, static_cast<std::size_t>(floats) * 4);
            if (half > 0) {
                sum_panel(w, panel, a, row, count, 0, half, s);
                std::memcpy(s.first, sums, static_cast<std::size_t>(floats) * 4);
                std::memset(sums, 0, static_cast<std::size_t>(floats) * 4);
            }
            sum_panel(w, panel, a, row, count, half, w.k_padded, s);
            if (half > 0)
                for (int64_t i = 0; i < floats; i += kLanes)
                    store(sums + i, load(s.first[0] + i) + load(sums + i));
            if (coding.trailer == Trailer::kChannel) {
                const auto* scales = reinterpret_cast<const float*>(panel + w.k_padded * kPanel);
                for (int64_t i = 0; i < floats; i += kLanes)
                    store(sums + i, load(sums + i) * load(scales + i % kPanel));
            }
            write_rows(sums, count, w.n, p * kPanel, out, row);
        }
    }
    release();
}

}  // namespace

void linear_codes4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                   int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    if (rows <= kFewRows) return avx512::linear_codes4(w, a, rows, out, panel_begin, panel_end, scratch);
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

void linear_mxfp4(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                  int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    if (rows <= kFewRows) return avx512::linear_mxfp4(w, a, rows, out, panel_begin, panel_end, scratch);
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

void linear_codes8(const PackedWeight& w, const Operand& a, int64_t rows, const LinearOut& out,
                   int64_t panel_begin, int64_t panel_end, std::byte* scratch) noexcept {
    if (rows <= kFewRows) return avx512::linear_codes8(w, a, rows, out, panel_begin, panel_end, scratch);
    run(w, a, rows, out, panel_begin, panel_end, scratch);
}

}  // namespace PENSTOCK_ISA
}  // namespace penstock
