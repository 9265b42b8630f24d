// What a step must satisfy before a kernel follows its indices: a wrong one is an error here, never a wild
// read. Called by bind_program.cpp for every step; throws std::invalid_argument.
#pragma once
#include <cstdint>
#include <vector>

#include "kernels.h"

namespace penstock {

void check_step(const Batch& batch, int64_t vocab, int64_t max_context);
void check_states(const Batch& batch, const int32_t* block_table);  // of a group that holds states
void place_tree(const Batch& batch,
                std::vector<int32_t>& slots);  // checks the parents, writes each row's slot

}  // namespace penstock
