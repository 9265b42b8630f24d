// Integer codes under the BF16 contract, but for the products: where they lie, what their scales and offsets
// do to the sums. For linear_codes.h and avx512bf16/linear_codes.cpp.
#pragma once
#include "kernels/codes.h"
#include "kernels/linear_float.h"

namespace penstock::PENSTOCK_ISA {

// What every kernel on codes answers to LinearFloat alike.
struct CodePanels {
    static constexpr int64_t kAlign = kSuperblockK;

    Coding coding;
    int64_t k_padded;

    explicit CodePanels(const PackedWeight& w) : coding(coding_of(w.format)), k_padded(w.k_padded) {}
    int64_t bytes(int64_t k) const {
        const int64_t rest = k % kSuperblockK;  // not 0 only at the end of K
        return k / kSuperblockK * superblock_bytes(coding, kSuperblockK) +
               (rest > 0 ? superblock_bytes(coding, rest) : 0);
    }
    static bool is_busy(int64_t) { return true; }

    // What a group's offset is multiplied by: the sums of a row's groups as if every code were 1, up to and
    // with each 32 k, where `sums` gives what the 32 k themselves add up to: [num_k / 32][count].
    void add_up(int64_t k, int64_t num_k, int64_t count, float* sums) const {
        for (int64_t i = 0; i < num_k; i += 32, sums += count)
            for (int64_t r = 0; r < count; ++r)
                sums[r] = ((k + i) % coding.group == 0 ? 0.0f : sums[r - count]) + sums[r];
    }

    void finish(const std::byte* panel, float* sums, int64_t count) const {
        if (coding.trailer != Trailer::kChannel) return;
        const auto* scales = reinterpret_cast<const float*>(panel + k_padded * kPanel);
        for (int64_t i = 0; i < count * kPanel; i += kLanes)
            store(sums + i, load(sums + i) * load(scales + i % kPanel));
    }
};

// kStepK: k of a pair of chains, 32 or 16. kIsLong: a group is several of them.
template <int kStepK, bool kIsLong>
struct CodeSums {
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
    PENSTOCK_INLINE void add(const Place& at, int64_t inside, const Lanes (&even)[R], const Lanes (&odd)[R]) {
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
                const float* x = at.args.row_sums + (at.k + end - 32) / 32 * at.args.row_sums_stride + r;
                acc = lanes_fma(lanes_set1(x), lanes_load(at.scales.offset[g] + at.column), acc);
            }
            lanes_store(sum, acc);
        }
    }
};

}  // namespace penstock::PENSTOCK_ISA
