// Rows of a step by the experts that read them: who is where, and operands that hold them so.
//
// Every expert's rows begin at a whole tile of an operand, so that a linear kernel reads them as its own.
#pragma once
#include <vector>

#include "kernels.h"

namespace penstock {

// Made by one op of a layer, read by those after it.
struct ExpertRows {
    struct Run {
        int32_t expert, first_row, num_rows;
    };
    std::vector<Run> runs;  // of experts that have rows, ascending
    int64_t num_runs = 0;
    std::vector<int32_t> place;  // [rows * top_k]: where (row, slot) lies
    std::vector<int32_t> count;  // per expert

    void reserve(int64_t num_pairs, int64_t num_experts);
    // From `routing`[rows, 2 * top_k]; allocates nothing.
    void sort(const float* routing, int64_t rows, int64_t top_k, int64_t num_experts) noexcept;
};

// Rows of all experts at most, each begun at a tile.
constexpr int64_t expert_rows(int64_t num_pairs, int64_t num_experts) {
    const int64_t most = num_pairs < num_experts ? num_pairs : num_experts;
    return round_up(num_pairs + most * (kTileRows - 1), kTileRows);
}

// The operand from `row` on, a multiple of 16.
Operand rows_from(const Operand& a, int64_t row) noexcept;
// Row `from` of `a` becomes row `to` of `out`, of the same kind and width.
void copy_row(const Operand& a, int64_t from, const Operand& out, int64_t to) noexcept;
// Rows [expert * n / num_experts, ...) of a matrix of all experts, whole panels.
PackedWeight weight_of_expert(const PackedWeight& w, int64_t num_experts, int64_t expert) noexcept;

}  // namespace penstock
