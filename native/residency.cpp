#include "residency.h"

#include <sys/mman.h>

#include <algorithm>

namespace penstock {
namespace {

// A fault on a mapped file brings neighbours of the page, too: what is given back is cut at multiples of
// this.
constexpr uintptr_t kFaultBytes = 64 << 10;
constexpr uintptr_t kPageBytes = 4096;

}  // namespace

Residency::Residency(int64_t num_experts, int64_t capacity, const std::array<Span, 2>& spans)
    : spans_(spans), capacity_(capacity), experts_(static_cast<std::size_t>(num_experts)) {
    for (const Span& span : spans_) {  // whatever loading has left behind
        const auto begin = reinterpret_cast<uintptr_t>(span.data);
        const auto end = begin + static_cast<uintptr_t>(num_experts * span.expert_bytes);
        const uintptr_t first = begin / kPageBytes * kPageBytes;
        madvise(reinterpret_cast<void*>(first), end - first, MADV_DONTNEED);
    }
}

void Residency::use(ExpertRows& rows) noexcept {
    ++now_;
    const auto runs = rows.runs.begin(), end = runs + rows.num_runs;
    const auto here = std::stable_partition(runs, end, [&](const ExpertRows::Run& r) {
        return experts_[static_cast<std::size_t>(r.expert)].used > 0;
    });
    counts_.hits += here - runs;
    counts_.misses += end - here;
    for (auto run = runs; run != end; ++run) {
        Expert& expert = experts_[static_cast<std::size_t>(run->expert)];
        if (expert.used == 0) {
            ++num_resident_;
            if (expert.foreseen == now_) ++counts_.foreseen;
            advise(run->expert, MADV_WILLNEED);
        }
        expert.used = now_;
        expert.num_rows = run->num_rows;
    }
    drop_down_to(capacity_, true);
}

void Residency::trim() noexcept { drop_down_to(capacity_, false); }

void Residency::foresee(int64_t expert) noexcept {
    Expert& it = experts_[static_cast<std::size_t>(expert)];
    it.foreseen = now_ + 1;
    if (it.used == 0) advise(expert, MADV_WILLNEED);
}

// Those used longest ago go first, of equals those that fewest rows read.
void Residency::drop_down_to(int64_t count, bool spares_latest) noexcept {
    while (num_resident_ > count) {
        Expert* oldest = nullptr;
        for (Expert& expert : experts_) {
            if (expert.used == 0 || (spares_latest && expert.used == now_)) continue;
            if (!oldest || expert.used < oldest->used ||
                (expert.used == oldest->used && expert.num_rows < oldest->num_rows))
                oldest = &expert;
        }
        if (!oldest) return;
        advise(oldest - experts_.data(), MADV_DONTNEED);
        oldest->used = 0;
        --num_resident_;
    }
}

void Residency::advise(int64_t expert, int advice) const noexcept {
    for (const Span& span : spans_) {
        const auto first = reinterpret_cast<uintptr_t>(span.data);
        const auto last = first + static_cast<uintptr_t>(num_experts() * span.expert_bytes);
        uintptr_t begin = first + static_cast<uintptr_t>(expert * span.expert_bytes);
        uintptr_t end = begin + static_cast<uintptr_t>(span.expert_bytes);
        const uintptr_t step = advice == MADV_DONTNEED ? kFaultBytes : kPageBytes;
        begin = std::max(begin / step * step, first / kPageBytes * kPageBytes);
        end = std::min((end + step - 1) / step * step, last);
        madvise(reinterpret_cast<void*>(begin), end - begin, advice);
    }
}

}  // namespace penstock
