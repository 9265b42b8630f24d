#include "experts.h"

#include <algorithm>
#include <cstring>

namespace penstock {
namespace {

constexpr int64_t kChunk = 64;  // bytes of a row that lie together in a tile

int64_t element_bytes(OperandKind kind) {
    return kind == OperandKind::kFloat32 ? 4 : kind == OperandKind::kBFloat16 ? 2 : 1;
}

int64_t num_scales(const Operand& a) { return (a.k_padded + 127) / 128; }

}  // namespace

void ExpertRows::reserve(int64_t num_pairs, int64_t num_experts) {
    const auto grow = [](auto& v, int64_t size) {
        if (static_cast<int64_t>(v.size()) < size) v.resize(static_cast<std::size_t>(size));
    };
    grow(runs, std::min(num_pairs, num_experts));
    grow(place, num_pairs);
    grow(count, num_experts);
}

void ExpertRows::sort(const float* routing, int64_t rows, int64_t top_k, int64_t num_experts) noexcept {
    int32_t* const at = count.data();
    std::fill_n(at, num_experts, 0);
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t s = 0; s < top_k; ++s) ++at[static_cast<int64_t>(routing[t * 2 * top_k + s])];
    int32_t next = 0;
    num_runs = 0;
    for (int64_t e = 0; e < num_experts; ++e) {
        if (at[e] == 0) continue;
        runs[static_cast<std::size_t>(num_runs++)] = {static_cast<int32_t>(e), next, at[e]};
        const auto tiles = static_cast<int32_t>(round_up(at[e], kTileRows));
        at[e] = next;
        next += tiles;
    }
    for (int64_t t = 0; t < rows; ++t)
        for (int64_t s = 0; s < top_k; ++s)
            place[static_cast<std::size_t>(t * top_k + s)] =
                at[static_cast<int64_t>(routing[t * 2 * top_k + s])]++;
}

Operand rows_from(const Operand& a, int64_t row) noexcept {
    Operand out = a;
    out.data = static_cast<std::byte*>(a.data) + row * a.k_padded * element_bytes(a.kind);
    if (a.kind == OperandKind::kInt8) {
        out.scale = a.scale + row * num_scales(a);
        out.sum = a.sum + row * (a.k_padded / 32);
    }
    return out;
}

void copy_row(const Operand& a, int64_t from, const Operand& out, int64_t to) noexcept {
    const int64_t row_bytes = a.k_padded * element_bytes(a.kind);
    const auto* source = static_cast<const std::byte*>(a.data);
    auto* target = static_cast<std::byte*>(out.data);
    if (a.kind == OperandKind::kFloat32) {
        std::memcpy(target + to * row_bytes, source + from * row_bytes, static_cast<std::size_t>(row_bytes));
        return;
    }
    const auto start = [](int64_t row, int64_t per_row, int64_t piece) {  // of a row, in tile-major pieces
        return row / kTileRows * kTileRows * per_row + row % kTileRows * piece;
    };
    source += start(from, row_bytes, kChunk);
    target += start(to, row_bytes, kChunk);
    for (int64_t at = 0; at < row_bytes; at += kChunk)
        std::memcpy(target + at * kTileRows, source + at * kTileRows, kChunk);
    if (a.kind != OperandKind::kInt8) return;
    for (int64_t i = 0; i < num_scales(a); ++i)
        out.scale[start(to, num_scales(a), 1) + i * kTileRows] =
            a.scale[start(from, num_scales(a), 1) + i * kTileRows];
    for (int64_t i = 0; i < a.k_padded / 32; ++i)
        out.sum[start(to, a.k_padded / 32, 1) + i * kTileRows] =
            a.sum[start(from, a.k_padded / 32, 1) + i * kTileRows];
}

PackedWeight weight_of_expert(const PackedWeight& w, int64_t num_experts, int64_t expert) noexcept {
    PackedWeight out = w;
    out.n = w.n / num_experts;
    out.num_panels = out.n / kPanel;
    out.data = w.data + expert * out.num_panels * w.panel_bytes;
    return out;
}

}  // namespace penstock
