// Paged attention by fused multiply-adds: the BF16 contract as TDPBF16PS would do it, and the FP32 contract.
// Softmax, splits and merging are in attention_tile.h; here are the two products of a tile of rows.
#include "kernels/attention_tile.h"

namespace penstock::PENSTOCK_ISA {
namespace {

// The widest vector of the machine, for loops whose lanes never meet. kBlockRows rows by kGroups groups of 16
// columns, twice for bf16 (even and odd chain), fill the registers with sums.
#if defined(__AVX2__) && !defined(__AVX512F__)
typedef float Vector __attribute__((vector_size(32)));
typedef uint32_t Words __attribute__((vector_size(32)));
constexpr int kGroups = 1;
template <class T>
constexpr int kBlockRows = sizeof(T) < 4 ? 2 : 6;
PENSTOCK_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
#else
using Vector = F16;
using Words = U16;
PENSTOCK_INLINE Vector multiply_add(Vector a, Vector b, Vector c) { return fma(a, b, c); }
#if defined(__AVX512F__)
constexpr int kGroups = 2;
template <class T>
constexpr int kBlockRows = 6;
#else
constexpr int kGroups = 1;
template <class T>
constexpr int kBlockRows = 2;
#endif
#endif
// Into L2: twice the rate of fetching into L1, which has too few places for misses (Zen 4, batch-1 decode).
constexpr int kSecondLevel = 2;
constexpr int kVectorLanes = sizeof(Vector) / 4, kPerGroup = 16 / kVectorLanes;

PENSTOCK_INLINE Vector splat(float x) { return x - Vector{}; }  // 0 + x would cost an addition and lose -0
PENSTOCK_INLINE Vector read(const float* p) {
    Vector v;
    std::memcpy(&v, p, sizeof v);
    return v;
}
PENSTOCK_INLINE void write(float* p, Vector v) { std::memcpy(p, &v, sizeof v); }
PENSTOCK_INLINE void read_even_odd(const uint16_t* p, Vector* even, Vector* odd) {
    Words pairs;
    std::memcpy(&pairs, p, sizeof pairs);
    *even = reinterpret_cast<Vector>(pairs << 16);
    *odd = reinterpret_cast<Vector>(pairs & 0xffff0000U);
}

typedef int16_t Halves __attribute__((vector_size(sizeof(Vector) / 2)));
typedef int32_t Ints __attribute__((vector_size(sizeof(Vector))));
PENSTOCK_INLINE void read_even_odd(const int8_t* p, Vector* even, Vector* odd) {
    Halves pairs;
    std::memcpy(&pairs, p, sizeof pairs);
    const Ints wide = __builtin_convertvector(pairs, Ints);
    *even = __builtin_convertvector((wide << 24) >> 24, Vector);
    *odd = __builtin_convertvector(wide >> 8, Vector);
}

// Operands of one step: a[row][k] broadcast, b by columns of 16 (kGroups of them, b_stride elements apart),
// c[row][columns]. `ahead` has b's strides and is prefetched line by line.
template <class T>
struct Step {
    const float* a;
    int64_t a_stride;
    const T *b, *ahead;
    int64_t b_stride, num_k;
    float* c;
    int64_t c_stride;
    bool from_zero;
};

// 32 of K: C += (even chain from +0) + (odd chain from +0). T: bf16, or int8 codes, which bf16 holds exactly.
template <int kR, int kG, class T>
void multiply(const Step<T>& step) {
    constexpr int kN = kG * kPerGroup;
    Vector even[kR][kN] = {}, odd[kR][kN] = {};
    const float* a = step.a;
    const T *b = step.b, *ahead = step.ahead;
    float* const c = step.c;  // in registers: the stores below may alias `step`
    const int64_t c_stride = step.c_stride;
    const bool from_zero = step.from_zero;
    for (int r = 0; r < 16; ++r, a += 2, b += 32, ahead += 32) {
        Vector b_even[kN], b_odd[kN];
        for (int n = 0; n < kN; ++n)
            read_even_odd(b + n / kPerGroup * step.b_stride + n % kPerGroup * kVectorLanes * 2, &b_even[n],
                          &b_odd[n]);
        for (int g = 0; g < kG; ++g) __builtin_prefetch(ahead + g * step.b_stride, 0, kSecondLevel);
        for (int i = 0; i < kR; ++i) {
            const Vector a_even = splat(a[i * step.a_stride]), a_odd = splat(a[i * step.a_stride + 1]);
            for (int n = 0; n < kN; ++n) {
                even[i][n] = multiply_add(a_even, b_even[n], even[i][n]);
                odd[i][n] = multiply_add(a_odd, b_odd[n], odd[i][n]);
            }
        }
    }
    for (int i = 0; i < kR; ++i)
        for (int n = 0; n < kN; ++n) {
            float* at = c + i * c_stride + n * kVectorLanes;
            const Vector before = from_zero ? splat(0.0f) : read(at);
            write(at, before + (even[i][n] + odd[i][n]));
        }
}

// One chain over num_k; b[k][16] per group of columns, rows of b b_row apart.
template <int kR, int kG>
void multiply_float32(const Step<float>& step, int64_t b_row) {
    constexpr int kN = kG * kPerGroup;
    Vector sums[kR][kN];
    for (int i = 0; i < kR; ++i)
        for (int n = 0; n < kN; ++n)
            sums[i][n] = step.from_zero ? splat(0.0f) : read(step.c + i * step.c_stride + n * kVectorLanes);
    const float *a = step.a, *b = step.b, *ahead = step.ahead;
    for (int64_t k = 0; k < step.num_k; ++k, ++a, b += b_row, ahead += b_row) {
        Vector row[kN];
        for (int n = 0; n < kN; ++n)
            row[n] = read(b + n / kPerGroup * step.b_stride + n % kPerGroup * kVectorLanes);
        for (int g = 0; g < kG; ++g) __builtin_prefetch(ahead + g * step.b_stride, 0, kSecondLevel);
        for (int i = 0; i < kR; ++i) {
            const Vector factor = splat(a[i * step.a_stride]);
            for (int n = 0; n < kN; ++n) sums[i][n] = multiply_add(factor, row[n], sums[i][n]);
        }
    }
    for (int i = 0; i < kR; ++i)
        for (int n = 0; n < kN; ++n) write(step.c + i * step.c_stride + n * kVectorLanes, sums[i][n]);
}

// The rows of a tile in equal parts of at most kBlockRows; only the first part needs to prefetch.
template <int kG, class T>
PENSTOCK_INLINE void multiply_rows(Step<T> step, int64_t num_rows, int64_t b_row) {
    constexpr int kMost = kBlockRows<T>;
    const int64_t parts = (num_rows + kMost - 1) / kMost;
    for (int64_t part = 0, row = 0; part < parts; ++part) {
        const int64_t count = (num_rows - row + parts - part - 1) / (parts - part);
        Step<T> some = step;
        some.a += row * step.a_stride;
        some.c += row * step.c_stride;
        if (part > 0) some.ahead = step.b;
        row += count;
        const auto run = [&]<int kR>() {
            if constexpr (sizeof(T) < 4)
                multiply<kR, kG, T>(some);
            else
                multiply_float32<kR, kG>(some, b_row);
        };
        switch (count) {
            case 1:
                run.template operator()<1>();
                break;
            case 2:
                run.template operator()<2>();
                break;
            case 3:
                if constexpr (kMost > 2) run.template operator()<3>();
                break;
            case 4:
                if constexpr (kMost > 2) run.template operator()<4>();
                break;
            case 5:
                if constexpr (kMost > 2) run.template operator()<5>();
                break;
            default:
                if constexpr (kMost > 2) run.template operator()<6>();
                break;
        }
    }
}

template <class T>
struct FmaProducts {
    using Element = T;
    static constexpr int64_t kAheadBytes = 16384;
    static constexpr int64_t kUnpackedBytes = 0;
    static constexpr KVDtype kDtype = sizeof(T) == 4   ? KVDtype::kFloat32
                                      : sizeof(T) == 2 ? KVDtype::kBFloat16
                                                       : KVDtype::kInt8;
    static constexpr bool kIsFloat32 = kDtype == KVDtype::kFloat32;

    static void prepare(AttentionTile& tile) {
        float* a = reinterpret_cast<float*>(tile.a);
        for (int64_t i = 0; i < tile.num_rows; ++i)
            for (int64_t d = 0; d < tile.dims; d += kLanes) {
                if constexpr (kIsFloat32)
                    store(a + i * tile.dims + d, load(static_cast<const float*>(tile.q[i]) + d));
                else
                    store(a + i * tile.dims + d, widen_bf16(static_cast<const uint16_t*>(tile.q[i]) + d));
            }
    }

    // What to fetch while a chunk of 32 tokens is read: a later one, some 16 KB on, or itself.
    static const T* fetched(const AttentionTile& tile, int64_t token, bool is_value, const T* self) {
        const int64_t chunk_bytes =
            32 * (is_value ? tile.value_dims : tile.dims) * static_cast<int64_t>(sizeof(T));
        const T* chunk = tile.chunk_after<T>(token, is_value, (kAheadBytes + chunk_bytes - 1) / chunk_bytes);
        return chunk ? chunk : self;
    }

    // Two groups of 16 tokens at a time.
    static void scores(AttentionTile& tile) {
        for (int64_t token = tile.key_begin; token < tile.key_end;) {
            const bool pair = kGroups == 2 && token % 32 == 0 && token + 16 < tile.key_end;
            const int64_t next = token + (pair ? 32 : 16);
            const T* keys = tile.keys<T>(token);
            const T* ahead = fetched(tile, token & ~int64_t{31}, false, keys);
            constexpr int64_t kStep = kIsFloat32 ? kMaxHeadDim : 32;
            for (int64_t d = 0; d < tile.dims; d += kStep) {
                const Step<T> step{reinterpret_cast<const float*>(tile.a) + d,
                                   tile.dims,
                                   keys + d * 16,
                                   ahead + d * 16,
                                   16 * tile.dims,
                                   tile.dims,
                                   tile.s + (token - tile.split_begin),
                                   kScoreStride,
                                   d == 0};
                if (pair)
                    multiply_rows<kGroups>(step, tile.num_rows, 16);
                else
                    multiply_rows<1>(step, tile.num_rows, 16);
            }
            token = next;
        }
    }

    // 32 tokens at a time, two groups of 16 dims side by side.
    static void values(AttentionTile& tile) {
        for (int64_t token = tile.value_begin; token < tile.value_end; token += 32) {
            const T* values = tile.values<T>(token);
            const T* ahead = fetched(tile, token, true, values);
            // bf16 holds a group of dims in 512 elements, fp32 in 16 of every row.
            const int64_t group = kIsFloat32 ? 16 : 512;
            for (int64_t j = 0; j < tile.value_dims / 16; j += kGroups) {
                const Step<T> step{tile.s + (token - tile.split_begin),
                                   kScoreStride,
                                   values + j * group,
                                   ahead + j * group,
                                   group,
                                   32,
                                   tile.o + j * 16,
                                   tile.value_dims,
                                   token == tile.value_begin && !tile.goes_on};
                multiply_rows<kGroups>(step, tile.num_rows, tile.value_dims);
            }
        }
    }
};

}  // namespace

void attention_bfloat16(const AttentionArgs& args, const Batch& batch, const AttentionPart& part,
                        std::byte* scratch) noexcept {
    attend<FmaProducts<uint16_t>>(args, batch, part, scratch);
}

void attention_float32(const AttentionArgs& args, const Batch& batch, const AttentionPart& part,
                       std::byte* scratch) noexcept {
    attend<FmaProducts<float>>(args, batch, part, scratch);
}

void attention_int8(const AttentionArgs& args, const Batch& batch, const AttentionPart& part,
                    std::byte* scratch) noexcept {
    attend<FmaProducts<int8_t>>(args, batch, part, scratch);
}

}  // namespace penstock::PENSTOCK_ISA
