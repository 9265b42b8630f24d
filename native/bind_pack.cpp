// Packing of integer codes with every worker of the pool. Sizes are checked here, so that no kernel reads
// past an array.
#include <atomic>

#include "bind.h"
#include "pack_codes.h"
#include "threads.h"

namespace penstock {
namespace {

CodeLayout layout_of(const std::string& name) {
    static constexpr std::pair<const char*, CodeLayout> kNames[] = {
        {"Q4_0", CodeLayout::kQ4_0}, {"Q4_1", CodeLayout::kQ4_1}, {"Q5_0", CodeLayout::kQ5_0},
        {"Q5_1", CodeLayout::kQ5_1}, {"Q8_0", CodeLayout::kQ8_0}, {"Q4_K", CodeLayout::kQ4_K},
        {"Q5_K", CodeLayout::kQ5_K}, {"Q6_K", CodeLayout::kQ6_K}};
    for (const auto& [known, layout] : kNames)
        if (name == known) return layout;
    throw nb::value_error(("no block type " + name).c_str());
}

struct PackJob {
    const CodeSource& source;
    Format format;
    std::byte* out;
    Units& units;
    std::atomic<bool> finite{true};
};

bool pack_with(Pool& pool, const CodeSource& source, Format format, const Array<uint8_t>& out) {
    check(source.n > 0 && source.k > 0, "a weight needs n > 0 and k > 0");
    check(holds(format, source.layout), "the format does not hold these codes");
    const int64_t panels = (source.n + kPanel - 1) / kPanel;
    check(static_cast<int64_t>(out.size()) == panels * panel_bytes(format, source.k),
          "out is not panels * panel_bytes");
    Units units(pool.workers());
    units.reset(panels);
    PackJob job{source, format, reinterpret_cast<std::byte*>(out.data()), units};
    nb::gil_scoped_release release;
    pool.run({[](void* self, int worker) noexcept {
                  auto& job = *static_cast<PackJob*>(self);
                  int64_t begin = 0, end = 0;
                  while (job.units.take(worker, 8, begin, end))
                      if (!pack_code_panels(job.source, job.format, job.out, begin, end)) job.finite = false;
              },
              &job});
    return job.finite;
}

}  // namespace

bool pack_blocks(Pool& pool, const std::string& kind, const Array<const uint8_t>& rows, int64_t k,
                 const std::string& format, const Array<uint8_t>& out) {
    const CodeLayout layout = layout_of(kind);
    check(rows.ndim() == 2 && k > 0 && block_row_bytes(layout, k) == static_cast<int64_t>(rows.shape(1)),
          "rows are [n, bytes of a row of blocks]");
    return pack_with(pool,
                     {layout, static_cast<int64_t>(rows.shape(0)), k,
                      reinterpret_cast<const std::byte*>(rows.data()), static_cast<int64_t>(rows.shape(1))},
                     format_of(format), out);
}

bool pack_codes(Pool& pool, const Array<const int8_t>& codes, const std::vector<Array<const uint8_t>>& parts,
                const std::string& format, const Array<uint8_t>& out) {
    check(codes.ndim() == 2, "codes are [n, k]");
    const auto n = static_cast<int64_t>(codes.shape(0)), k = static_cast<int64_t>(codes.shape(1));
    CodeSource source{CodeLayout::kRows, n, k, reinterpret_cast<const std::byte*>(codes.data()), k};
    const Format f = format_of(format);
    check(holds(f, CodeLayout::kRows), "the format does not hold these codes");
    const auto expected = parts_of(coding_of(f).trailer);
    for (std::size_t i = 0; i < kMaxParts; ++i) {
        check((i < parts.size()) == (expected[i].bytes > 0), "not as many parts as the format has");
        if (expected[i].bytes == 0) continue;
        const int64_t span = span_of(expected[i], coding_of(f), k);
        check(static_cast<int64_t>(parts[i].size()) == n * ((k + span - 1) / span) * expected[i].bytes,
              "a part is not a value per row and group");
        source.parts[i] = reinterpret_cast<const std::byte*>(parts[i].data());
    }
    return pack_with(pool, source, f, out);
}

}  // namespace penstock
