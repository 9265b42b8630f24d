// The only file that asks what the CPU can do.
#include "dispatch.h"

#include "self_test.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace penstock {

int g_break_invariance = 0;

#define PENSTOCK_DECLARE(isa)            \
    namespace isa {                      \
    const KernelTable& table() noexcept; \
    const ProbeTable& probes() noexcept; \
    }
PENSTOCK_DECLARE(scalar)
PENSTOCK_DECLARE(avx2)
PENSTOCK_DECLARE(avx512)
PENSTOCK_DECLARE(avx512bf16)
PENSTOCK_DECLARE(amx)
PENSTOCK_DECLARE(amx_emulated)

namespace {

Cpu detect() {
    Cpu cpu;
#if defined(__x86_64__)
    __builtin_cpu_init();
    cpu.avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    cpu.avx512 = cpu.avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                 __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                 __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512vnni") &&
                 __builtin_cpu_supports("avx512vbmi");
    cpu.avx512bf16 = cpu.avx512 && __builtin_cpu_supports("avx512bf16");
    unsigned a = 0, b = 0, c = 0, d = 0;
    if (cpu.avx512 && __get_cpuid_count(7, 0, &a, &b, &c, &d)) {
        constexpr unsigned kAmx = (1U << 22) | (1U << 24) | (1U << 25);  // bf16, tile, int8
        constexpr long kRequestPermission = 0x1023, kTileData = 18;      // ARCH_REQ_XCOMP_PERM, XTILEDATA
        if ((d & kAmx) == kAmx) cpu.amx = syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
    }
    unsigned words[12] = {};
    for (unsigned i = 0; i < 3; ++i)
        __get_cpuid(0x80000002U + i, &words[4 * i], &words[4 * i + 1], &words[4 * i + 2], &words[4 * i + 3]);
    cpu.name.assign(reinterpret_cast<const char*>(words), sizeof words);
    cpu.name.resize(cpu.name.find('\0') == std::string::npos ? cpu.name.size() : cpu.name.find('\0'));
#endif
    return cpu;
}

// Why an instruction set is left out whose bits are promised to be those of `fallback`; empty: it is not.
std::string difference(const char* isa, bool is_there, const KernelTable& (*table)() noexcept,
                       const KernelTable& (*fallback)() noexcept) {
    const char* kernel = is_there ? first_difference(table(), fallback()) : nullptr;
    return kernel == nullptr ? "" : std::string(isa) + ": " + kernel + " differs from its AVX-512 fallback";
}

const std::string& dropped_amx() {
#if defined(PENSTOCK_HAS_AMX)
    static const std::string kWhy = difference("amx", cpu().amx, amx::table, avx512::table);
#else
    static const std::string kWhy;
#endif
    return kWhy;
}

const std::string& dropped_bf16() {
#if defined(PENSTOCK_HAS_AVX512BF16)
    static const std::string kWhy =
        difference("avx512bf16", cpu().avx512bf16, avx512bf16::table, avx512::table);
#else
    static const std::string kWhy;
#endif
    return kWhy;
}

const Candidate kCandidates[] = {
#if defined(PENSTOCK_HAS_AMX)
    {"amx", [](const Cpu& cpu) { return cpu.amx && dropped_amx().empty(); }, amx::table, amx::probes, false},
#endif
#if defined(PENSTOCK_HAS_AVX512BF16)
    {"avx512bf16", [](const Cpu& cpu) { return cpu.avx512bf16 && dropped_bf16().empty(); }, avx512bf16::table,
     avx512bf16::probes, false},
#endif
#if defined(PENSTOCK_HAS_AVX512)
    {"avx512", [](const Cpu& cpu) { return cpu.avx512; }, avx512::table, avx512::probes, false},
#endif
#if defined(PENSTOCK_HAS_AVX2)
    {"avx2", [](const Cpu& cpu) { return cpu.avx2; }, avx2::table, avx2::probes, false},
#endif
    {"scalar", [](const Cpu&) { return true; }, scalar::table, scalar::probes, false},
#if defined(PENSTOCK_HAS_AMX_EMULATED)
    {"amx_emulated", [](const Cpu& cpu) { return cpu.avx512; }, amx_emulated::table, amx_emulated::probes,
     true},
#endif
};

}  // namespace

const Cpu& cpu() {
    static const Cpu kCpu = detect();
    return kCpu;
}

const std::string& dropped() {
    static const std::string kDropped = [] {
        const std::string &amx = dropped_amx(), &bf16 = dropped_bf16();
        return amx + (amx.empty() || bf16.empty() ? "" : "; ") + bf16;
    }();
    return kDropped;
}

std::vector<const Candidate*> candidates() {
    std::vector<const Candidate*> out;
    for (const auto& candidate : kCandidates)
        if (candidate.runs_on(cpu())) out.push_back(&candidate);
    return out;
}

const Candidate* find_candidate(std::string_view isa) {
    for (const Candidate* candidate : candidates())
        if (candidate->isa == isa) return candidate;
    return nullptr;
}

const Candidate& choose() {
    for (const Candidate* candidate : candidates())
        if (!candidate->is_for_tests) return *candidate;
    __builtin_unreachable();  // scalar runs on every machine
}

}  // namespace penstock
