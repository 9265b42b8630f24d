// Which instruction sets this build has and this machine runs.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "kernels.h"
#include "probes.h"

namespace penstock {

struct Cpu {
    bool avx2 = false, avx512 = false, avx512bf16 = false, amx = false;
    std::string name;
};

struct Candidate {
    std::string_view isa;
    bool (*runs_on)(const Cpu&);
    const KernelTable& (*table)() noexcept;
    const ProbeTable& (*probes)() noexcept;
    bool is_for_tests;  // emulated: never chosen by itself
};

const Cpu& cpu();                            // asked once
std::vector<const Candidate*> candidates();  // best first; all that this machine runs right
// Why instruction sets that this machine has are left out: "amx: linear_int8 ..."; empty: none is.
const std::string& dropped();
const Candidate* find_candidate(std::string_view isa);  // null: not in this build, or not on this machine
const Candidate& choose();                              // the best real one

}  // namespace penstock
