#include "residency.h"

#include <sys/mman.h>

#include <algorithm>

namespace penstock {
namespace {

constexpr uintptr_t kPageBytes = 4096;
constexpr uintptr_t kAheadBytes = 128 << 10;  // the system cuts what is asked ahead at one window of its own

}  // namespace

// A fault brings neighbours of its page, too, as far as the mapping reaches. So experts are advised by turns,
// which makes each a mapping of its own, and the pages that two of them share are mappings between.
Residency::Residency(int64_t num_experts, int64_t capacity, const std::array<Span, 2>& spans)
    : spans_(spans), capacity_(capacity), experts_(static_cast<std::size_t>(num_experts)) {
    const auto advice = [](int64_t expert) { return expert % 2 == 0 ? MADV_RANDOM : MADV_SEQUENTIAL; };
    for (const Span& span : spans_) {  // against the tensors before and after
        const auto first = reinterpret_cast<uintptr_t>(span.data) / kPageBytes * kPageBytes;
        const auto end = reinterpret_cast<uintptr_t>(span.data + num_experts * span.expert_bytes);
        madvise(reinterpret_cast<void*>(first), kPageBytes, advice(1));
        madvise(reinterpret_cast<void*>((end - 1) / kPageBytes * kPageBytes), kPageBytes,
                advice(num_experts));
    }
    for (int64_t expert = 0; expert < num_experts; ++expert) {
        advise(expert, advice(expert));
        advise(expert, MADV_DONTNEED);  // whatever loading has left behind
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

// The pages that are this expert's alone.
void Residency::advise(int64_t expert, int advice) const noexcept {
    for (const Span& span : spans_) {
        const auto first = reinterpret_cast<uintptr_t>(span.data + expert * span.expert_bytes);
        const uintptr_t begin = (first + kPageBytes - 1) / kPageBytes * kPageBytes;
        const uintptr_t end = (first + static_cast<uintptr_t>(span.expert_bytes)) / kPageBytes * kPageBytes;
        const uintptr_t step = advice == MADV_WILLNEED ? kAheadBytes : std::max(end, begin) - begin;
        for (uintptr_t at = begin; at < end; at += step)
            madvise(reinterpret_cast<void*>(at), std::min(step, end - at), advice);
    }
}

}  // namespace penstock
