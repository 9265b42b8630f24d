// What the binding files share: array types and checks. Every pointer a kernel sees was checked here.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <optional>
#include <string>

#include "dispatch.h"
#include "kernels.h"

namespace penstock {

namespace nb = nanobind;
class Pool;
template <class T>
using Array = nb::ndarray<T, nb::c_contig, nb::device::cpu>;  // writable, or const T: readable
template <class T>
using NumpyArray = nb::ndarray<nb::numpy, T>;

void check(bool holds, const char* what);  // throws std::invalid_argument
Format format_of(const std::string& name);
KVDtype kv_dtype_of(const std::string& name);
OperandKind kind_of(const std::string& name);
Activation activation_of(const std::string& name);
bool centers(const std::string& norm_kind);
const Candidate& candidate_of(const std::string& isa);
PackedWeight weight_of(const std::string& format, const Array<const uint8_t>& packed, int64_t n, int64_t k);

// A fresh numpy array that owns its memory (64-byte aligned).
template <class T>
NumpyArray<T> make_array(std::initializer_list<std::size_t> shape) {
    std::size_t count = 1;
    for (std::size_t s : shape) count *= s;
    auto* data = static_cast<T*>(::operator new(count * sizeof(T) + 64, std::align_val_t{64}));
    nb::capsule owner(data, [](void* p) noexcept { ::operator delete(p, std::align_val_t{64}); });
    return NumpyArray<T>(data, shape.size(), shape.begin(), owner);
}

// Rows of ggml's blocks, or codes with the parts of the format's trailer (bytes of [n, values]), into `out`.
// False: a scale is NaN or Inf.
bool pack_blocks(Pool& pool, const std::string& kind, const Array<const uint8_t>& rows, int64_t k,
                 const std::string& format, const Array<uint8_t>& out);
bool pack_codes(Pool& pool, const Array<const int8_t>& codes, const std::vector<Array<const uint8_t>>& parts,
                const std::string& format, const Array<uint8_t>& out);

void bind_program(nb::module_& m);
void bind_tests(nb::module_& m);

}  // namespace penstock
