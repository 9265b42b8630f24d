// One token's key and value in a block of one head: from fp32, from another block, out of sight. Layouts:
// KVLayer in kernels.h.
#pragma once
#include "kernels.h"
#include "kernels/int8_row.h"

namespace penstock::PENSTOCK_ISA {

constexpr int64_t kMaxHeadDim = 576;
constexpr int64_t kValueGroup = 32;  // tokens that one step of the value product reads together

// Where dims d, d + 1 of a key lie, side by side, and dim d of a value (bf16 and int8).
PENSTOCK_INLINE int64_t key_pair_at(int64_t slot, int64_t d, int64_t dims) {
    return slot / 16 * 16 * dims + slot % 16 * 2 + d * 16;
}
PENSTOCK_INLINE int64_t value_at(int64_t slot, int64_t d, int64_t dims) {
    return (kBlockTokens + slot / 32 * 32) * dims + slot % 32 / 2 * 32 + slot % 2 + d / 16 * 512 + d % 16 * 2;
}
PENSTOCK_INLINE int64_t key_at_float32(int64_t slot, int64_t d, int64_t dims) {
    return slot / 16 * 16 * dims + slot % 16 + d * 16;
}

template <class T>
PENSTOCK_INLINE void scatter_key(T* head, const T* row, int64_t slot, int64_t dims) {
    T* const out = head + key_pair_at(slot, 0, dims);
    for (int64_t d = 0; d < dims; d += 2) std::memcpy(out + d * 16, row + d, 2 * sizeof(T));
}
template <class T>
PENSTOCK_INLINE void scatter_value(T* head, const T* row, int64_t slot, int64_t dims) {
    T* const out = head + value_at(slot, 0, dims);
    for (int64_t d = 0; d < dims; d += 16)
        for (int64_t i = 0; i < 16; ++i) out[d * 32 + i * 2] = row[d + i];
}
template <class T>
PENSTOCK_INLINE void copy_pairs(const KVLayer& kv, const std::byte* from_head, int64_t from_slot,
                                std::byte* to_head, int64_t to_slot) {
    const int64_t dims = kv.padded_dim;
    const T* from = reinterpret_cast<const T*>(from_head);
    T* const to = reinterpret_cast<T*>(to_head);
    const T* key = from + key_pair_at(from_slot, 0, dims);
    T* const key_to = to + key_pair_at(to_slot, 0, dims);
    for (int64_t d = 0; d < dims; d += 2) std::memcpy(key_to + d * 16, key + d * 16, 2 * sizeof(T));
    if (!kv.has_values()) return;
    const T* value = from + value_at(from_slot, 0, dims);
    T* const value_to = to + value_at(to_slot, 0, dims);
    for (int64_t d = 0; d < dims; d += 16)
        for (int64_t i = 0; i < 16; ++i) value_to[d * 32 + i * 2] = value[d * 32 + i * 2];
}

// int8 codes of one token's head; the scale is returned.
PENSTOCK_INLINE float encode_int8(const float* x, int64_t dims, int8_t* codes) {
    F16 v[kMaxHeadDim / kLanes];
    const int count = static_cast<int>(dims / kLanes);
    for (int i = 0; i < count; ++i) v[i] = load(x + i * kLanes);
    const Int8Scale s = int8_scale(largest_magnitude(v, count));
    for (int i = 0; i < count; ++i) store_bytes(codes + i * kLanes, int8_codes(v[i], s));
    return s.scale;
}

// Zeros for the values of slots [begin, end) within one group: probability 0 times a stale NaN would be NaN.
inline void clear_values(const KVLayer& kv, std::byte* head, int64_t begin, int64_t end) {
    const int64_t dims = kv.padded_dim, bytes = kv_element_bytes(kv.dtype);
    if (!kv.has_values()) return;
    for (int64_t slot = begin; slot < end; ++slot) {
        if (kv.dtype == KVDtype::kFloat32) {
            std::memset(head + (kBlockTokens + slot) * dims * 4, 0, static_cast<std::size_t>(dims) * 4);
            continue;
        }
        for (int64_t d = 0; d < dims; ++d)
            std::memset(head + value_at(slot, d, dims) * bytes, 0, static_cast<std::size_t>(bytes));
        if (kv.dtype == KVDtype::kInt8) kv.scales(head)[kBlockTokens + slot] = 0.0f;
    }
}

// The first token of a group clears the group.
inline void open_value_group(const KVLayer& kv, std::byte* head, int64_t slot) {
    if (slot % kValueGroup != 0) return;
    const int64_t token_bytes = kv.padded_dim * kv_element_bytes(kv.dtype);
    std::memset(head + (kBlockTokens + slot) * token_bytes, 0,
                static_cast<std::size_t>(kValueGroup * token_bytes));
    if (kv.dtype == KVDtype::kInt8)
        std::memset(kv.scales(head) + kBlockTokens + slot, 0, static_cast<std::size_t>(kValueGroup) * 4);
}

// k[dims], fp32 with zeros beyond head_dim, into `slot` of `head`.
inline void write_key(const KVLayer& kv, const float* k, std::byte* head, int64_t slot) {
    const int64_t dims = kv.padded_dim;
    if (kv.dtype == KVDtype::kFloat32) {
        float* const out = reinterpret_cast<float*>(head);
        for (int64_t d = 0; d < dims; ++d) out[key_at_float32(slot, d, dims)] = k[d];
    } else if (kv.dtype == KVDtype::kBFloat16) {
        uint16_t row[kMaxHeadDim];
        for (int64_t d = 0; d < dims; d += kLanes) store_bf16(row + d, load(k + d));
        scatter_key(reinterpret_cast<uint16_t*>(head), row, slot, dims);
    } else {
        int8_t row[kMaxHeadDim];
        kv.scales(head)[slot] = encode_int8(k, dims, row);
        scatter_key(reinterpret_cast<int8_t*>(head), row, slot, dims);
    }
}

// The same of v[dims].
inline void write_value(const KVLayer& kv, const float* v, std::byte* head, int64_t slot) {
    const int64_t dims = kv.padded_dim;
    open_value_group(kv, head, slot);
    if (kv.dtype == KVDtype::kFloat32) {
        float* const out = reinterpret_cast<float*>(head);
        std::memcpy(out + (kBlockTokens + slot) * dims, v, static_cast<std::size_t>(dims) * 4);
    } else if (kv.dtype == KVDtype::kBFloat16) {
        uint16_t row[kMaxHeadDim];
        for (int64_t d = 0; d < dims; d += kLanes) store_bf16(row + d, load(v + d));
        scatter_value(reinterpret_cast<uint16_t*>(head), row, slot, dims);
    } else {
        int8_t row[kMaxHeadDim];
        kv.scales(head)[kBlockTokens + slot] = encode_int8(v, dims, row);
        scatter_value(reinterpret_cast<int8_t*>(head), row, slot, dims);
    }
}

// Key and value of one token, as they are stored. Clears nothing.
inline void copy_token(const KVLayer& kv, const std::byte* from, int64_t from_slot, std::byte* to,
                       int64_t to_slot) {
    const int64_t dims = kv.padded_dim;
    if (kv.dtype == KVDtype::kFloat32) {
        const float* in = reinterpret_cast<const float*>(from);
        float* const out = reinterpret_cast<float*>(to);
        for (int64_t d = 0; d < dims; ++d)
            out[key_at_float32(to_slot, d, dims)] = in[key_at_float32(from_slot, d, dims)];
        if (kv.has_values())
            std::memcpy(out + (kBlockTokens + to_slot) * dims, in + (kBlockTokens + from_slot) * dims,
                        static_cast<std::size_t>(dims) * 4);
    } else if (kv.dtype == KVDtype::kBFloat16) {
        copy_pairs<uint16_t>(kv, from, from_slot, to, to_slot);
    } else {
        copy_pairs<int8_t>(kv, from, from_slot, to, to_slot);
        const float* scales = kv.scales(const_cast<std::byte*>(from));
        kv.scales(to)[to_slot] = scales[from_slot];
        if (kv.has_values()) kv.scales(to)[kBlockTokens + to_slot] = scales[kBlockTokens + from_slot];
    }
}

}  // namespace penstock::PENSTOCK_ISA
