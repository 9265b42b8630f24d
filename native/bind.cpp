// The extension module penstock._native: what the machine is, packing, probes; programs and test entries are
// beside.
#include "bind.h"

#include <chrono>
#include <new>

#include "pack.h"
#include "threads.h"

namespace penstock {

void check(bool holds, const char* what) {
    if (!holds) throw nb::value_error(what);
}

Format format_of(const std::string& name) {
    static constexpr std::pair<const char*, Format> kNames[] = {
        {"float32", Format::kFloat32},           {"float16", Format::kFloat16},
        {"bfloat16", Format::kBFloat16},         {"int8", Format::kInt8},
        {"int4_g32", Format::kInt4G32},          {"int4_g64", Format::kInt4G64},
        {"int4_g128", Format::kInt4G128},        {"int4_g32_zero", Format::kInt4G32Zero},
        {"int4_g64_zero", Format::kInt4G64Zero}, {"int4_g128_zero", Format::kInt4G128Zero},
        {"int4_g32_min", Format::kInt4G32Min},   {"int4_super", Format::kInt4Super},
        {"int8_g32", Format::kInt8G32},          {"int8_g64", Format::kInt8G64},
        {"int8_g128", Format::kInt8G128},        {"int8_g32_zero", Format::kInt8G32Zero},
        {"int8_g64_zero", Format::kInt8G64Zero}, {"int8_g128_zero", Format::kInt8G128Zero},
        {"int8_g32_min", Format::kInt8G32Min},   {"int8_super", Format::kInt8Super},
        {"int8_super16", Format::kInt8Super16},  {"mxfp4", Format::kMXFP4}};
    for (const auto& [known, format] : kNames)
        if (name == known) return format;
    throw nb::value_error(("no weight format " + name).c_str());
}

Activation activation_of(const std::string& name) {
    if (name == "silu") return Activation::kSilu;
    if (name == "gelu") return Activation::kGelu;
    if (name == "gelu_tanh") return Activation::kGeluTanh;
    if (name == "quick_gelu") return Activation::kQuickGelu;
    if (name == "relu") return Activation::kRelu;
    if (name == "relu2") return Activation::kRelu2;
    if (name == "clamped_swiglu") return Activation::kClampedSwiglu;
    throw nb::value_error(("no activation " + name).c_str());
}

bool centers(const std::string& norm_kind) {
    check(norm_kind == "rms" || norm_kind == "layer", "a norm is rms or layer");
    return norm_kind == "layer";
}

OperandKind kind_of(const std::string& name) {
    if (name == "float32") return OperandKind::kFloat32;
    if (name == "bfloat16") return OperandKind::kBFloat16;
    if (name == "int8") return OperandKind::kInt8;
    throw nb::value_error(("no operand kind " + name).c_str());
}

KVDtype kv_dtype_of(const std::string& name) {
    if (name == "float32") return KVDtype::kFloat32;
    if (name == "bfloat16") return KVDtype::kBFloat16;
    if (name == "int8") return KVDtype::kInt8;
    throw nb::value_error(("no KV dtype " + name).c_str());
}

const Candidate& candidate_of(const std::string& isa) {
    const Candidate* found = find_candidate(isa);
    if (found == nullptr) throw nb::value_error(("this build or machine has no ISA " + isa).c_str());
    return *found;
}

PackedWeight weight_of(const std::string& format, const Array<const uint8_t>& packed, int64_t n, int64_t k) {
    const Format f = format_of(format);
    check(n > 0 && k > 0, "a weight needs n > 0 and k > 0");
    PackedWeight w{f,
                   n,
                   k,
                   round_up(k, 64),
                   (n + kPanel - 1) / kPanel,
                   panel_bytes(f, k),
                   reinterpret_cast<const std::byte*>(packed.data())};
    check(static_cast<int64_t>(packed.size()) == w.num_panels * w.panel_bytes,
          "packed size is not panels * panel_bytes");
    check(reinterpret_cast<uintptr_t>(packed.data()) % 64 == 0, "packed weights must be 64-byte aligned");
    return w;
}

namespace {

SourceMatrix source_of(const nb::ndarray<nb::ro, nb::device::cpu>& w, const std::string& dtype) {
    check(w.ndim() == 2 && w.stride(1) == 1, "a source matrix is [n, k] with contiguous rows");
    const Format f = format_of(dtype);
    check(f == Format::kFloat32 || f == Format::kFloat16 || f == Format::kBFloat16,
          "source dtype must be a float");
    check(w.itemsize() == (f == Format::kFloat32 ? 4U : 2U), "source dtype does not match its item size");
    return {w.data(), f, static_cast<int64_t>(w.shape(0)), static_cast<int64_t>(w.shape(1)), w.stride(0)};
}

struct PackJob {
    SourceMatrix source;
    Format format;
    std::byte* out;
    Units* units;
    std::atomic<bool> finite{true};
};

// Packs into `out` with every worker of the pool; false: the source holds NaN or Inf.
bool pack(Pool& pool, const nb::ndarray<nb::ro, nb::device::cpu>& w, const std::string& dtype,
          const std::string& format, Array<uint8_t> out) {
    const SourceMatrix source = source_of(w, dtype);
    const Format f = format_of(format);
    check(!has_codes(f) || is_quantizer(f), "nothing quantizes to this format");
    const int64_t panels = (source.n + kPanel - 1) / kPanel;
    check(static_cast<int64_t>(out.size()) == panels * panel_bytes(f, source.k),
          "out is not panels * panel_bytes");
    Units units(pool.workers());
    units.reset(panels);
    PackJob job{source, f, reinterpret_cast<std::byte*>(out.data()), &units};
    nb::gil_scoped_release release;
    pool.run({[](void* self, int worker) noexcept {
                  auto& job = *static_cast<PackJob*>(self);
                  int64_t begin = 0, end = 0;
                  while (job.units->take(worker, 8, begin, end))
                      if (!pack_panels(job.source, job.format, job.out, begin, end)) job.finite = false;
              },
              &job});
    return job.finite;
}

struct ReadJob {
    Pool* pool;
    ReadProbe* probe;
    const std::byte* data;
    int64_t bytes;  // per worker
    bool in_order;
    std::atomic<uint64_t> sink{0};
};

struct ComputeJob {
    Pool* pool;
    FlopsProbe* probe;
    int64_t rounds;
    std::vector<double> operations;
    std::atomic<int> sink{0};
};

double seconds_of(Pool& pool, Job job) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(job);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Bytes per second of one pass of all workers over `data`, a contiguous part each.
double read_rate(Pool& pool, const std::string& isa, const Array<const uint8_t>& data, bool in_order) {
    const int64_t part = static_cast<int64_t>(data.size()) / pool.workers() / 4096 * 4096;
    check(part > 0, "too few bytes to read");
    ReadJob job{&pool, candidate_of(isa).probes().read, reinterpret_cast<const std::byte*>(data.data()), part,
                in_order};
    nb::gil_scoped_release release;
    const double s = seconds_of(pool, {[](void* self, int worker) noexcept {
                                           auto& j = *static_cast<ReadJob*>(self);
                                           j.pool->barrier();
                                           j.sink += j.probe(j.data + worker * j.bytes, j.bytes, j.in_order);
                                       },
                                       &job});
    return static_cast<double>(part * pool.workers()) / s;
}

FlopsProbe* compute_probe(const ProbeTable& probes, const std::string& what) {
    if (what == "float32") return probes.float32;
    if (what == "int8") return probes.int8;
    if (what == "bfloat16") return probes.bfloat16;
    if (what == "tile_int8") return probes.tile_int8;
    throw nb::value_error(("no compute probe " + what).c_str());
}

// Operations per second of all workers together in one run of about 10 ms; 0 where the ISA has no such unit.
double compute_rate(Pool& pool, const std::string& isa, const std::string& what) {
    const Candidate& candidate = candidate_of(isa);
    FlopsProbe* probe = compute_probe(candidate.probes(), what);
    if (probe == nullptr) return 0;
    ComputeJob job{&pool, probe, candidate.is_for_tests ? 1000 : 2'000'000, {}};
    if (what.starts_with("tile")) job.rounds /= 10;
    job.operations.resize(static_cast<std::size_t>(pool.workers()));
    nb::gil_scoped_release release;
    const double s = seconds_of(pool, {[](void* self, int worker) noexcept {
                                           auto& j = *static_cast<ComputeJob*>(self);
                                           j.pool->barrier();
                                           float sink = 0;
                                           j.operations[static_cast<std::size_t>(worker)] =
                                               j.probe(j.rounds, &sink);
                                           j.sink += static_cast<int>(sink != 0);
                                       },
                                       &job});
    double operations = 0;
    for (double o : job.operations) operations += o;
    return operations / s;
}

}  // namespace
}  // namespace penstock

NB_MODULE(_native, m) {
    using namespace penstock;
    m.def("isas", [] {
        std::vector<std::string> names;
        for (const Candidate* candidate : candidates()) names.emplace_back(candidate->isa);
        return names;
    });
    m.def("best_isa", [] { return std::string(choose().isa); });
    m.def("dropped_isa", [] { return dropped(); });
    m.def("cpu_name", [] { return cpu().name; });
    m.def("panel_bytes",
          [](const std::string& format, int64_t k) { return panel_bytes(format_of(format), k); });
    m.def("all_finite",
          [](nb::ndarray<nb::ro, nb::c_contig, nb::device::cpu> values, const std::string& dtype) {
              nb::gil_scoped_release release;
              return all_finite(values.data(), format_of(dtype), static_cast<int64_t>(values.size()));
          });
    nb::class_<Pool>(m, "Pool")
        .def("__init__",
             [](Pool* self, int workers) {
                 check(workers >= 1 && workers <= 1024, "a pool has 1 to 1024 workers");
                 new (self) Pool(workers);
             })
        .def_prop_ro("workers", &Pool::workers)
        .def("pack", &pack)
        .def("pack_blocks", &pack_blocks)
        .def("pack_codes", &pack_codes)
        .def("read_rate", &read_rate)
        .def("compute_rate", &compute_rate);
    bind_program(m);
    bind_tests(m);
}
