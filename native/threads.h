// One persistent pool: every worker runs the same function; the caller is worker 0.
//
// Workers spin for a moment after a run, then park on a futex. All of them run with FTZ and DAZ set; the caller's
// control register is restored. Which worker does which unit never changes a bit: units write disjoint outputs.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <vector>

#include "kernels.h"

namespace penstock {

// A free function and its argument: cheaper than std::function and fit for `noexcept` workers.
struct Job {
    void (*run)(void* self, int worker) noexcept;
    void* self;
};

class Barrier {
  public:
    explicit Barrier(int workers) : workers_(workers) {}
    void wait() noexcept;

  private:
    alignas(128) std::atomic<int> arrived_{0};
    alignas(128) std::atomic<uint32_t> phase_{0};
    int workers_;
};

class Pool {
  public:
    explicit Pool(int workers);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int workers() const noexcept { return workers_; }
    std::byte* scratch(int worker) noexcept { return scratch_[static_cast<std::size_t>(worker)]; }
    // Grows every worker's scratch to at least `bytes`; not while a run is under way. Throws std::bad_alloc.
    void reserve_scratch(int64_t bytes);
    // Runs job on all workers and returns when all are done.
    void run(Job job) noexcept;
    void barrier() noexcept { barrier_.wait(); }

  private:
    void loop(int worker) noexcept;
    void release_scratch() noexcept;

    int workers_;
    int64_t scratch_bytes_ = 0;
    std::vector<std::byte*> scratch_;
    Barrier barrier_;
    Job job_{};
    bool stopping_ = false;
    alignas(128) std::atomic<uint32_t> epoch_{0};
    alignas(128) std::atomic<int> running_{0};
    std::vector<std::thread> threads_;
};

// Units 0..count-1 of one op, dealt to workers in contiguous ranges; whoever is done takes from the others.
class Units {
  public:
    explicit Units(int workers) : workers_(workers), next_(new Slot[static_cast<std::size_t>(workers)]) {}
    void reset(int64_t count) noexcept;
    // The next range [begin, end) of at most `grain` units for `worker`; false when nothing is left anywhere.
    bool take(int worker, int64_t grain, int64_t& begin, int64_t& end) noexcept;

  private:
    struct alignas(64) Slot {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };
    int workers_;
    std::unique_ptr<Slot[]> next_;
};

}  // namespace penstock
