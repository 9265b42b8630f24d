// Memory that ends where reading ends: the page behind it faults. For the contract tests.
#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>

namespace penstock {

class GuardedMemory {
  public:
    // Poisoned: what a kernel does not write must not be read. The end is exact, so the beginning is as
    // aligned as `bytes`.
    explicit GuardedMemory(std::size_t bytes) {
        const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
        const std::size_t usable = (bytes + page - 1) / page * page;
        mapped_ = usable + page;
        void* const begin = mmap(nullptr, mapped_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (begin == MAP_FAILED) throw std::bad_alloc();
        begin_ = static_cast<std::byte*>(begin);
        data_ = begin_ + usable - bytes;
        if (mprotect(begin_, usable, PROT_READ | PROT_WRITE) != 0) {
            munmap(begin_, mapped_);
            throw std::bad_alloc();
        }
        std::memset(data_, 0x7f, bytes);
    }
    template <class T>
    GuardedMemory(const T* from, std::size_t count) : GuardedMemory(count * sizeof(T)) {
        std::memcpy(data_, from, count * sizeof(T));
    }
    ~GuardedMemory() { munmap(begin_, mapped_); }
    GuardedMemory(const GuardedMemory&) = delete;
    GuardedMemory& operator=(const GuardedMemory&) = delete;

    template <class T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }

  private:
    std::size_t mapped_ = 0;
    std::byte *begin_ = nullptr, *data_ = nullptr;
};

}  // namespace penstock
