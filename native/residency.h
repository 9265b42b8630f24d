// The experts of a layer that are kept in memory, of a model whose experts do not all fit.
//
// Weights lie in a mapped file, and are read where they lie: an expert comes in page by page as kernels touch
// it, and goes when its pages are given back. So no bit depends on who is resident. At most `capacity`
// experts stay when the layer is done, those that were used last; while it runs, those of the step, too.
#pragma once
#include <array>
#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "experts.h"

namespace penstock {

class Residency {
  public:
    // One of the matrices: expert e is bytes [e * expert_bytes, (e + 1) * expert_bytes) from `data` on.
    struct Span {
        const std::byte* data;
        int64_t expert_bytes;
    };
    struct Counts {
        std::atomic<int64_t> hits{0}, misses{0}, foreseen{0};  // foreseen: of the misses
    };

    Residency(int64_t num_experts, int64_t capacity, const std::array<Span, 2>& spans);

    // Those of `rows` are about to be read: asks for what is missing, makes room for it, and puts the runs of
    // experts that are here first, so that the others are read meanwhile.
    void use(ExpertRows& rows) noexcept;
    // The layer is done.
    void trim() noexcept;
    // Asks for `expert`, if it is not here, ahead of a `use` to come.
    void foresee(int64_t expert) noexcept;

    int64_t num_experts() const noexcept { return static_cast<int64_t>(experts_.size()); }
    const Counts& counts() const noexcept { return counts_; }

  private:
    struct Expert {
        int64_t used = 0;  // when last, in uses; 0: not here
        int64_t foreseen = 0;
        int32_t num_rows = 0;  // then
    };
    void advise(int64_t expert, int advice) const noexcept;
    void drop_down_to(int64_t count, bool spares_latest) noexcept;

    std::array<Span, 2> spans_;
    int64_t capacity_, num_resident_ = 0, now_ = 0;
    std::vector<Expert> experts_;
    Counts counts_;
};

}  // namespace penstock
