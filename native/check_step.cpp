#include "check_step.h"

#include "bind.h"

namespace penstock {

// A state is read where the rows before have left it, and stored where a step ends.
void check_states(const Batch& batch, const int32_t* block_table) {
    for (int64_t b = 0; b < batch.num_requests; ++b) {
        const int32_t begin = batch.query_start[b], end = batch.query_start[b + 1];
        if (begin == end) continue;
        const int32_t* table = block_table + b * batch.max_blocks;
        const int32_t start = batch.positions[begin];
        for (int32_t t = begin; t < end; ++t)
            check(batch.positions[t] == start + t - begin, "rows of a recurrent state are not in order");
        check(start == 0 || table[(start - 1) / kBlockTokens] != 0, "a state is read from the null block");
        check(table[batch.positions[end - 1] / kBlockTokens] != 0, "the state that a step ends with is lost");
    }
}

// Every index of a step that a kernel will follow, checked once: a wrong one is an error here, never a wild
// read.
void check_step(const Batch& batch, int64_t vocab, int64_t max_context) {
    const int64_t rows = batch.num_rows;
    check(batch.query_start[0] == 0 && batch.query_start[batch.num_requests] == rows,
          "query_start does not span the rows");
    for (int64_t b = 0; b < batch.num_requests; ++b) {
        const int32_t begin = batch.query_start[b], end = batch.query_start[b + 1];
        check(begin <= end && end <= rows, "query_start is not ascending");
        check(batch.context_len[b] <= batch.max_blocks * kBlockTokens && batch.context_len[b] <= max_context,
              "context is longer than its block table");
        for (int32_t t = begin; t < end; ++t) {
            check(batch.tokens[t] >= 0 && batch.tokens[t] < vocab, "token id outside the vocabulary");
            check(batch.positions[t] >= 0 && batch.positions[t] < batch.context_len[b],
                  "position outside the context");
            check(batch.row_request[t] == b, "row_request does not match query_start");
        }
    }
}

// Where rows of a tree of drafts lie: at consecutive slots from their request's first position on. Every
// predecessor is followed once, so that kernels need not doubt one.
void place_tree(const Batch& batch, std::vector<int32_t>& slots) {
    for (int64_t b = 0; b < batch.num_requests; ++b) {
        const int32_t begin = batch.query_start[b], end = batch.query_start[b + 1];
        for (int32_t t = begin; t < end; ++t) {
            const int32_t start = batch.positions[begin], parent = batch.parents[t];
            slots[static_cast<std::size_t>(t)] = start + t - begin;
            check(start + t - begin < batch.context_len[b], "a row's slot lies outside the context");
            check(parent == -1
                      ? batch.positions[t] == start
                      : parent >= begin && parent < t && batch.positions[t] == batch.positions[parent] + 1,
                  "a row does not follow its parent");
            int64_t depth = 0;
            for (int64_t at = t; at >= 0 && !batch.is_in_place(at); at = batch.parents[at]) ++depth;
            check(depth <= kMaxTreeDepth, "a path of the tree is too long");
        }
    }
}

}  // namespace penstock
