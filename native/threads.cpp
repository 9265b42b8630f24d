#include "threads.h"

#include <sys/mman.h>

#include <cstdlib>
#include <new>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace penstock {
namespace {

void pause() noexcept {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

// Denormals to zero in and out, as the tile unit does it (kernels.md 6, R9).
class FlushDenormals {
  public:
#if defined(__x86_64__)
    FlushDenormals() noexcept : saved_(_mm_getcsr()) { _mm_setcsr(saved_ | 0x8040U); }
    ~FlushDenormals() { _mm_setcsr(saved_); }

  private:
    unsigned saved_;
#endif
};

constexpr int64_t kHugePage = int64_t{2} << 20;
constexpr int kBarrierSpins = 2000;  // then yield: a neighbour may need this core for what is waited for
constexpr int kIdleSpins = 4000;     // about 100 us between steps, then the futex (36 us to wake)

template <class Condition>
void spin_until(Condition&& holds) noexcept {
    for (int spin = 0; !holds(); ++spin) {
        if (spin < kBarrierSpins)
            pause();
        else
            std::this_thread::yield();
    }
}

}  // namespace

void Barrier::wait() noexcept {
    if (workers_ == 1) return;
    const uint32_t phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == workers_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        phase_.store(phase + 1, std::memory_order_release);
        return;
    }
    spin_until([&] { return phase_.load(std::memory_order_acquire) != phase; });
}

Pool::Pool(int workers) : workers_(workers), scratch_(static_cast<std::size_t>(workers)), barrier_(workers) {
    try {
        reserve_scratch(kScratchBytes);
        threads_.reserve(static_cast<std::size_t>(workers - 1));
        for (int worker = 1; worker < workers; ++worker)
            threads_.emplace_back([this, worker] { loop(worker); });
    } catch (...) {  // a thread that was started would end the process if nobody joined it
        stop();
        throw;
    }
}

Pool::~Pool() { stop(); }

void Pool::stop() noexcept {
    stopping_.store(true, std::memory_order_relaxed);  // published by the epoch
    epoch_.fetch_add(1, std::memory_order_release);
    epoch_.notify_all();
    for (auto& thread : threads_) thread.join();
    release_scratch();
}

void Pool::release_scratch() noexcept {
    for (auto& scratch : scratch_) {
        std::free(scratch);
        scratch = nullptr;
    }
}

void Pool::reserve_scratch(int64_t bytes) {
    if (bytes <= scratch_bytes_) return;
    const auto size = static_cast<std::size_t>(round_up(bytes, kHugePage));
    std::vector<std::byte*> larger(scratch_.size());
    for (auto& scratch : larger) {
        scratch = static_cast<std::byte*>(std::aligned_alloc(static_cast<std::size_t>(kHugePage), size));
        if (scratch == nullptr) {  // what was there stays: programs that run know of it
            for (auto* taken : larger) std::free(taken);
            throw std::bad_alloc();
        }
        madvise(scratch, size, MADV_HUGEPAGE);  // weights pass between two uses, and sweep the TLB
    }
    release_scratch();
    scratch_.swap(larger);
    scratch_bytes_ = bytes;
}

void Pool::run(Job job) noexcept {
    FlushDenormals flush;
    if (workers_ > 1) {
        job_ = job;
        left_.store(0, std::memory_order_relaxed);
        const uint64_t run = epoch_.load(std::memory_order_relaxed) + 1U;
        joined_.store(run << 32, std::memory_order_release);
        epoch_.fetch_add(1, std::memory_order_release);
        epoch_.notify_all();
    }
    job.run(job.self, 0);
    if (workers_ == 1) return;
    const auto joined = static_cast<uint32_t>(joined_.fetch_or(kClosed, std::memory_order_acq_rel));
    spin_until([&] { return left_.load(std::memory_order_acquire) == joined; });
}

void Pool::loop(int worker) noexcept {
    FlushDenormals flush;
    uint32_t seen = 0;
    uint64_t last_run = 0;
    for (;;) {
        for (int spin = 0; spin < kIdleSpins && epoch_.load(std::memory_order_acquire) == seen; ++spin)
            pause();
        epoch_.wait(seen, std::memory_order_acquire);
        seen = epoch_.load(std::memory_order_acquire);
        if (stopping_.load(std::memory_order_relaxed)) return;
        // A worker that woke late for one run may find the next one open already: it joins that, and only
        // once.
        uint64_t joined = joined_.load(std::memory_order_acquire);
        const auto may_join = [&] { return (joined & kClosed) == 0 && joined >> 32 != last_run; };
        while (may_join() && !joined_.compare_exchange_weak(joined, joined + 1, std::memory_order_acq_rel)) {
        }
        if (!may_join()) continue;
        last_run = joined >> 32;
        job_.run(job_.self, worker);
        left_.fetch_add(1, std::memory_order_release);
    }
}

void Units::reset(int64_t count) noexcept {
    count_ = count;
    done().store(0, std::memory_order_relaxed);
    for (int worker = 0; worker < workers_; ++worker) {
        Slot& slot = next_[static_cast<std::size_t>(worker)];
        slot.next.store(count * worker / workers_, std::memory_order_relaxed);
        slot.end = count * (worker + 1) / workers_;
        slot.held = 0;
    }
}

bool Units::take(int worker, int64_t grain, int64_t& begin, int64_t& end) noexcept {
    int64_t& held = next_[static_cast<std::size_t>(worker)].held;
    if (held != 0) done().fetch_add(held, std::memory_order_release);
    held = 0;
    for (int i = 0; i < workers_; ++i) {
        Slot& slot = next_[static_cast<std::size_t>((worker + i) % workers_)];
        if (slot.next.load(std::memory_order_relaxed) >= slot.end) continue;
        begin = slot.next.fetch_add(grain, std::memory_order_relaxed);
        if (begin >= slot.end) continue;
        end = begin + grain < slot.end ? begin + grain : slot.end;
        held = end - begin;
        return true;
    }
    return false;
}

void Units::wait() noexcept {
    spin_until([&] { return done().load(std::memory_order_acquire) == count_; });
}

}  // namespace penstock
