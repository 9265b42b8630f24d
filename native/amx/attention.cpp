// Paged attention of bf16 and int8 blocks with tiles; int8 codes are unpacked to bf16 first. Same bits as
// kernels/attention.cpp: TDPBF16PS is the BF16 contract, and everything between the two products is shared
// (kernels/attention_tile.h).
#include "amx/tiles.h"
#include "kernels/attention_tile.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kProbabilityStride = kScoreStride;  // bf16 elements

// Tiles 0-3: C, two groups of columns for rows 0-15, then for rows 16-31 (up to 16 rows: four groups); 4, 5:
// A; 6, 7: B.
void configure_rows(int64_t num_rows) {
    TileConfig config;
    const int64_t low = num_rows < 16 ? num_rows : 16, high = num_rows > 16 ? num_rows - 16 : low;
    config.set(0, low, 64);
    config.set(1, low, 64);
    config.set(2, high, 64);
    config.set(3, high, 64);
    config.set(4, low, 64);
    config.set(5, high, 64);
    config.set(6, 16, 64);
    config.set(7, 16, 64);
    configure(config);
}

// 32 of K: a[rows][32] with rows a_stride bytes apart, and the first of B's groups of 16 columns.
struct TileStep {
    const std::byte* a;
    int64_t a_stride;
    const std::byte* b;
};

PENSTOCK_INLINE void zero_tiles() {
    PENSTOCK_TILE_ZERO(0);
    PENSTOCK_TILE_ZERO(1);
    PENSTOCK_TILE_ZERO(2);
    PENSTOCK_TILE_ZERO(3);
}

// What store_tiles() left there.
PENSTOCK_INLINE void load_tiles(const float* c, int64_t stride_floats, bool is_tall, bool is_four) {
    const int64_t stride = stride_floats * 4;
    PENSTOCK_TILE_LOAD(0, c, stride);
    PENSTOCK_TILE_LOAD(1, c + 16, stride);
    if (is_tall) {
        PENSTOCK_TILE_LOAD(2, c + 16 * stride_floats, stride);
        PENSTOCK_TILE_LOAD(3, c + 16 * stride_floats + 16, stride);
    } else if (is_four) {
        PENSTOCK_TILE_LOAD(2, c + 32, stride);
        PENSTOCK_TILE_LOAD(3, c + 48, stride);
    }
}

// 17 to 32 rows, two groups of columns.
PENSTOCK_INLINE void multiply_tall(const TileStep& step, int64_t b_group) {
    PENSTOCK_TILE_LOAD(4, step.a, step.a_stride);
    PENSTOCK_TILE_LOAD(6, step.b, 64);
    PENSTOCK_TILE_DPBF16PS(0, 4, 6);
    PENSTOCK_TILE_LOAD(7, step.b + b_group, 64);
    PENSTOCK_TILE_DPBF16PS(1, 4, 7);
    PENSTOCK_TILE_LOAD(5, step.a + 16 * step.a_stride, step.a_stride);
    PENSTOCK_TILE_DPBF16PS(2, 5, 6);
    PENSTOCK_TILE_DPBF16PS(3, 5, 7);
}

// Up to 16 rows, two or four groups of columns.
PENSTOCK_INLINE void multiply_flat(const TileStep& step, int64_t b_group, bool is_four) {
    PENSTOCK_TILE_LOAD(4, step.a, step.a_stride);
    PENSTOCK_TILE_LOAD(6, step.b, 64);
    PENSTOCK_TILE_DPBF16PS(0, 4, 6);
    PENSTOCK_TILE_LOAD(7, step.b + b_group, 64);
    PENSTOCK_TILE_DPBF16PS(1, 4, 7);
    if (!is_four) return;
    PENSTOCK_TILE_LOAD(6, step.b + 2 * b_group, 64);
    PENSTOCK_TILE_DPBF16PS(2, 4, 6);
    PENSTOCK_TILE_LOAD(7, step.b + 3 * b_group, 64);
    PENSTOCK_TILE_DPBF16PS(3, 4, 7);
}

PENSTOCK_INLINE void store_tiles(float* c, int64_t stride_floats, bool is_tall, bool is_four) {
    const int64_t stride = stride_floats * 4;
    PENSTOCK_TILE_STORE(0, c, stride);
    PENSTOCK_TILE_STORE(1, c + 16, stride);
    if (is_tall) {
        PENSTOCK_TILE_STORE(2, c + 16 * stride_floats, stride);
        PENSTOCK_TILE_STORE(3, c + 16 * stride_floats + 16, stride);
    } else if (is_four) {
        PENSTOCK_TILE_STORE(2, c + 32, stride);
        PENSTOCK_TILE_STORE(3, c + 48, stride);
    }
}

PENSTOCK_INLINE void prefetch(const std::byte* p, int64_t bytes) {
    for (int64_t at = 0; at < bytes; at += 64) __builtin_prefetch(p + at);
}

// Signed bytes to bf16, which holds them exactly; in place of a block that holds bf16.
PENSTOCK_INLINE void unpack(const int8_t* codes, int64_t count, uint16_t* out) {
    for (int64_t i = 0; i < count; i += kLanes) {
        const __m512i wide =
            _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(codes + i)));
        const __m512i bits = _mm512_castps_si512(_mm512_cvtepi32_ps(wide));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i),
                            _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    }
}

// T: what blocks hold, bf16 or int8.
template <class T>
struct TileProducts {
    using Element = T;
    static constexpr bool kIsCoded = sizeof(T) == 1;
    static constexpr KVDtype kDtype = kIsCoded ? KVDtype::kInt8 : KVDtype::kBFloat16;
    static constexpr int64_t kUnpackedBytes = kIsCoded ? kUnpackedSplitBytes : 0;

    // Keys of the groups of 16 from `token` on, or values of the group of 32, as bf16.
    static const std::byte* keys(const AttentionTile& tile, int64_t token) {
        if constexpr (!kIsCoded) return reinterpret_cast<const std::byte*>(tile.keys<T>(token));
        return tile.unpacked + (token - tile.split_begin) * tile.dims * 2;
    }
    static const std::byte* values_at(const AttentionTile& tile, int64_t token) {
        if constexpr (!kIsCoded) return reinterpret_cast<const std::byte*>(tile.values<T>(token));
        return tile.unpacked + (kSplitTokens + token - tile.split_begin) * tile.dims * 2;
    }

    static uint16_t* queries(const AttentionTile& tile) { return reinterpret_cast<uint16_t*>(tile.a); }
    static uint16_t* probabilities(const AttentionTile& tile) {
        return queries(tile) + kMaxTileRows * tile.dims;
    }

    static void prepare(AttentionTile& tile) {
        for (int64_t i = 0; i < tile.num_rows; ++i)
            std::memcpy(queries(tile) + i * tile.dims, tile.q[i], static_cast<std::size_t>(tile.dims) * 2);
    }

    // Groups of 32 tokens, of which the last may compute 16 scores that nobody reads.
    static void scores(AttentionTile& tile) {
        configure_rows(tile.num_rows);
        const bool is_tall = tile.num_rows > 16;
        if constexpr (kIsCoded)
            for (int64_t token = tile.key_begin & ~int64_t{31}; token < tile.key_end; token += 32)
                unpack(tile.keys<T>(token), 32 * tile.dims,
                       reinterpret_cast<uint16_t*>(const_cast<std::byte*>(keys(tile, token))));
        const std::byte* a = reinterpret_cast<const std::byte*>(queries(tile));
        for (int64_t token = tile.key_begin & ~int64_t{31}; token < tile.key_end;) {
            const bool is_four = !is_tall && token % 64 == 0 && token + 32 < tile.key_end;
            const int64_t next = token + (is_four ? 64 : 32), bytes = (next - token) * tile.dims * 2;
            const std::byte* b = keys(tile, token);
            if constexpr (!kIsCoded)
                prefetch(next < tile.key_end ? keys(tile, next) : values_at(tile, tile.value_begin),
                         next < tile.key_end ? bytes : 32 * tile.value_dims * 2);
            zero_tiles();
            for (int64_t d = 0; d < tile.dims; d += 32) {
                const TileStep step{a + d * 2, tile.dims * 2, b + d * 32};
                if (is_tall)
                    multiply_tall(step, 32 * tile.dims);
                else
                    multiply_flat(step, 32 * tile.dims, is_four);
            }
            store_tiles(tile.s + (token - tile.split_begin), kScoreStride, is_tall, is_four);
            token = next;
        }
    }

    static void values(AttentionTile& tile) {
        configure_rows(tile.num_rows);
        const bool is_tall = tile.num_rows > 16;
        if constexpr (kIsCoded)
            for (int64_t token = tile.value_begin; token < tile.value_end; token += 32)
                unpack(tile.values<T>(token), 32 * tile.value_dims,
                       reinterpret_cast<uint16_t*>(const_cast<std::byte*>(values_at(tile, token))));
        const int64_t from = tile.value_begin - tile.split_begin, to = tile.value_end - tile.split_begin;
        uint16_t* p = probabilities(tile);
        for (int64_t i = 0; i < tile.num_rows; ++i)
            for (int64_t j = from; j < to; j += kLanes)
                store_bf16(p + i * kProbabilityStride + j, load(tile.s + i * kScoreStride + j));
        for (int64_t d = 0; d < tile.value_dims;) {
            const bool is_four = !is_tall && d + 64 <= tile.value_dims;
            if (tile.goes_on)
                load_tiles(tile.o + d, tile.value_dims, is_tall, is_four);
            else
                zero_tiles();
            for (int64_t token = tile.value_begin; token < tile.value_end; token += 32) {
                const std::byte* b = values_at(tile, token);
                if constexpr (!kIsCoded)
                    if (d == 0 && token + 32 < tile.value_end)
                        prefetch(values_at(tile, token + 32), 64 * tile.value_dims);
                const TileStep step{reinterpret_cast<const std::byte*>(p + (token - tile.split_begin)),
                                    kProbabilityStride * 2, b + d * 64};
                if (is_tall)
                    multiply_tall(step, 1024);
                else
                    multiply_flat(step, 1024, is_four);
            }
            store_tiles(tile.o + d, tile.value_dims, is_tall, is_four);
            d += is_four ? 64 : 32;
        }
    }
};

}  // namespace

void attention_bfloat16(const AttentionArgs& args, const Batch& batch, const AttentionPart& part,
                        std::byte* scratch) noexcept {
    attend<TileProducts<uint16_t>>(args, batch, part, scratch);
    release();
}

void attention_int8(const AttentionArgs& args, const Batch& batch, const AttentionPart& part,
                    std::byte* scratch) noexcept {
    attend<TileProducts<int8_t>>(args, batch, part, scratch);
    release();
}

}  // namespace penstock::PENSTOCK_ISA
