// One persistent pool: every worker that is awake in time runs the same function; the caller is worker 0.
//
// Workers spin for a moment after a run, then park on a futex. All of them run with FTZ and DAZ set; the
// caller's control register is restored. Which worker does which unit never changes a bit: units write
// disjoint outputs. Nobody waits for a worker, only for units: one that the system has put to sleep between
// two units holds up nothing, and one that wakes when a run is over stays out of it.
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
    // Runs job on the caller and on every worker that joins before the caller is through; returns when all
    // have left.
    void run(Job job) noexcept;
    // For jobs that need every worker at once (probes): returns when all have called it.
    void barrier() noexcept { barrier_.wait(); }

  private:
    void loop(int worker) noexcept;
    void release_scratch() noexcept;
    void stop() noexcept;

    int workers_;
    int64_t scratch_bytes_ = 0;
    std::vector<std::byte*> scratch_;
    Barrier barrier_;
    Job job_{};
    std::atomic<bool> stopping_{false};
    alignas(128) std::atomic<uint32_t> epoch_{0};
    // Run number << 32 | workers in the run; kClosed: nobody may join.
    alignas(128) std::atomic<uint64_t> joined_{kClosed};
    alignas(128) std::atomic<uint32_t> left_{0};
    static constexpr uint64_t kClosed = uint64_t{1} << 31;
    std::vector<std::thread> threads_;
};

// Units 0..count-1 of one op, dealt to workers in contiguous ranges; whoever is done takes from the others.
class Units {
  public:
    explicit Units(int workers) : workers_(workers), next_(new Slot[static_cast<std::size_t>(workers) + 1]) {}
    void reset(int64_t count) noexcept;
    // The next range [begin, end) of at most `grain` units for `worker`; false when nothing is left anywhere.
    // Taking again says that the range before is done.
    bool take(int worker, int64_t grain, int64_t& begin, int64_t& end) noexcept;
    // Returns when every unit is done, by whomever.
    void wait() noexcept;

  private:
    int64_t count_ = 0;
    struct alignas(64) Slot {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
        int64_t held = 0;  // units its own worker works on: that worker's alone
    };
    int workers_;
    std::atomic<int64_t>& done() noexcept { return next_[static_cast<std::size_t>(workers_)].next; }
    std::unique_ptr<Slot[]> next_;  // one per worker; the last one counts the units that are done
};

}  // namespace penstock
