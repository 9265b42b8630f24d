// A Mamba-2 mixer between its two products: convolution, scan, gated norm. Position by position, whatever the
// steps were: StateLayer and the formulas in kernels.h.
#include "elementary.h"
#include "kernels/norm_row.h"
#include "kernels/operand_row.h"

namespace penstock::PENSTOCK_ISA {
namespace {

constexpr int64_t kRows = 16;  // of a scan that go through a tile of states while it lies in registers
constexpr int kVecs = 4;       // 64 values of a head
constexpr int kStates = 4;     // of them in a tile
constexpr int kConvVecs = 4;   // 64 channels

// One request's rows, and where its states lie.
struct Rows {
    int64_t begin, end, start;  // rows of the step; the position of the first
    const int32_t* table;

    bool goes_on() const { return start > 0; }
    int64_t source() const { return table[(start - 1) / kBlockTokens]; }
    // The block to store into after row t; 0: none.
    int64_t target(int64_t t) const {
        const int64_t position = start + t - begin;
        return t + 1 == end || (position + 1) % kBlockTokens == 0 ? table[position / kBlockTokens] : 0;
    }
};

PENSTOCK_INLINE Rows rows_of(const Batch& batch, const int32_t* block_table, int64_t request) {
    const int64_t begin = batch.query_start[request], end = batch.query_start[request + 1];
    return {begin, end, begin < end ? batch.positions[begin] : 0, block_table + request * batch.max_blocks};
}

template <int kTaps, int kCount>
void conv_channels(const CausalConvArgs& args, const Rows& rows, int64_t channel) {
    const StateLayer& state = args.state;
    const int64_t channels = state.channels, padded = state.padded_channels();
    int size[kCount];
    F16 seen[kTaps][kCount], weight[kTaps][kCount], bias[kCount];
    const float* before = rows.goes_on() ? state.inputs(rows.source()) + channel : nullptr;
    for (int v = 0; v < kCount; ++v) {
        const int64_t at = channel + v * kLanes, left = channels - at;
        size[v] = left < kLanes ? static_cast<int>(left) : kLanes;
        bias[v] = args.bias ? load_n(args.bias + at, size[v]) : zero();
        for (int k = 0; k < kTaps; ++k) weight[k][v] = load_n(args.weight + k * channels + at, size[v]);
        for (int k = 0; k + 1 < kTaps; ++k)
            seen[k + 1][v] = before ? load(before + k * padded + v * kLanes) : zero();
    }
    for (int64_t t = rows.begin; t < rows.end; ++t) {
        const float* x = args.x + t * args.stride + channel;
        float* y = args.y + t * channels + channel;
        for (int v = 0; v < kCount; ++v) {
            for (int k = 0; k + 1 < kTaps; ++k) seen[k][v] = seen[k + 1][v];
            seen[kTaps - 1][v] = load_n(x + v * kLanes, size[v]);
            F16 total = bias[v];
            for (int k = 0; k < kTaps; ++k) total = fma(weight[k][v], seen[k][v], total);
            store_n(y + v * kLanes, silu(total), size[v]);
        }
        const int64_t target = rows.target(t);
        if (target == 0) continue;
        float* out = state.inputs(target) + channel;
        for (int k = 0; k + 1 < kTaps; ++k)
            for (int v = 0; v < kCount; ++v) store(out + k * padded + v * kLanes, seen[k + 1][v]);
    }
}

template <int kTaps>
void conv_range(const CausalConvArgs& args, const Rows& rows, int64_t begin, int64_t end) {
    int64_t channel = begin;
    for (; channel + kConvVecs * kLanes <= end; channel += kConvVecs * kLanes)
        conv_channels<kTaps, kConvVecs>(args, rows, channel);
    for (; channel < end; channel += kLanes) conv_channels<kTaps, 1>(args, rows, channel);
}

// What a few rows bring to all tiles of a head's states. Rows of x and y have padded_dim floats.
struct Block {
    int64_t num_rows, dims;
    const float *decay, *x;  // x times dt
    const float *b, *c;
    int64_t stride;  // between rows of b, and of c
    float* y;
};

// States [kTall][16 * kWide] at `state` and dim `dim`, through all rows of the block. in: null for zeros.
template <int kTall, int kWide>
PENSTOCK_INLINE void advance(const Block& block, int64_t state, int64_t dim, const float* in, float* out) {
    F16 s[kTall][kWide];
    const int64_t at = state * block.dims + dim;
    for (int j = 0; j < kTall; ++j)
        for (int v = 0; v < kWide; ++v) s[j][v] = in ? load(in + at + j * block.dims + v * kLanes) : zero();
    for (int64_t i = 0; i < block.num_rows; ++i) {
        const float* x = block.x + i * block.dims + dim;
        float* y = block.y + i * block.dims + dim;
        const float *b = block.b + i * block.stride + state, *c = block.c + i * block.stride + state;
        const F16 decay = set1(block.decay[i]);
        F16 input[kWide], sum[kWide];
        for (int v = 0; v < kWide; ++v) {
            input[v] = load(x + v * kLanes);
            sum[v] = load(y + v * kLanes);
        }
        for (int j = 0; j < kTall; ++j) {
            const F16 bj = set1(b[j]), cj = set1(c[j]);
            for (int v = 0; v < kWide; ++v) {
                s[j][v] = fma(input[v], bj, s[j][v] * decay);
                sum[v] = fma(s[j][v], cj, sum[v]);
            }
        }
        for (int v = 0; v < kWide; ++v) store(y + v * kLanes, sum[v]);
    }
    for (int j = 0; j < kTall; ++j)
        for (int v = 0; v < kWide; ++v) store(out + at + j * block.dims + v * kLanes, s[j][v]);
}

template <int kWide>
void advance_all(const Block& block, int64_t state_size, int64_t dim, const float* in, float* out) {
    int64_t state = 0;
    for (; state + kStates <= state_size; state += kStates)
        advance<kStates, kWide>(block, state, dim, in, out);
    for (; state < state_size; ++state) advance<1, kWide>(block, state, dim, in, out);
}

void copy_rows(const float* from, int64_t stride, int64_t width, int64_t num_rows, float* to) {
    for (int64_t i = 0; i < num_rows; ++i)
        std::memcpy(to + i * width, from + i * stride, static_cast<std::size_t>(width) * 4);
}

}  // namespace

void causal_conv(const CausalConvArgs& args, const Batch& batch, int64_t request, int64_t channel_begin,
                 int64_t channel_end) noexcept {
    const Rows rows = rows_of(batch, args.block_table, request);
    if (rows.begin == rows.end) return;
    if (args.state.taps == 2) conv_range<2>(args, rows, channel_begin, channel_end);
    if (args.state.taps == 3) conv_range<3>(args, rows, channel_begin, channel_end);
    if (args.state.taps == 4) conv_range<4>(args, rows, channel_begin, channel_end);
}

void selective_scan(const SelectiveScanArgs& args, const Batch& batch, int64_t request, int64_t head,
                    std::byte* scratch) noexcept {
    const Rows rows = rows_of(batch, args.block_table, request);
    if (rows.begin == rows.end) return;
    const StateLayer& state = args.state;
    const int64_t dims = state.padded_dim(), head_dim = state.head_dim, states = state.state_size;
    const int64_t width = state.num_heads * head_dim, channels = state.channels;
    const int64_t group = head / (state.num_heads / args.num_groups);
    const float* inputs = args.xbc + head * head_dim;
    const float* b = args.xbc + width + group * states;
    const float* c = b + args.num_groups * states;
    float* live = reinterpret_cast<float*>(scratch);  // states between two rows that are stored nowhere
    float *x = live + states * dims, *y = x + kRows * dims, *b_rows = y + kRows * dims;
    float* c_rows = b_rows + kRows * states;
    alignas(64) float dt[kRows], decay[kRows];
    const float rate = -exp_1(args.a_log[head]), skip = args.skip[head];

    const float* in = rows.goes_on() ? state.head(rows.source(), head) : nullptr;
    for (int64_t first = rows.begin, count = 0; first < rows.end; first += count) {
        const int64_t place_left = kBlockTokens - (rows.start + first - rows.begin) % kBlockTokens;
        const int64_t left = rows.end - first < place_left ? rows.end - first : place_left;
        count = left < kRows ? left : kRows;
        for (int64_t i = 0; i < kRows; ++i)
            dt[i] = i < count ? args.dt[(first + i) * args.dt_stride + head] : 0.0f;
        F16 step = softplus(load(dt) + args.dt_bias[head]);
        if (args.has_limit) step = min(set1(args.dt_high), max(set1(args.dt_low), step));
        store(dt, step);
        store(decay, exp(step * rate));
        for (int64_t i = 0; i < count; ++i)
            for (int64_t d = 0; d < dims; d += kLanes) {
                const int n = head_dim - d < kLanes ? static_cast<int>(head_dim - d) : kLanes;
                store(x + i * dims + d, load_n(inputs + (first + i) * channels + d, n) * dt[i]);
                store(y + i * dims + d, zero());
            }
        Block block{count, dims, decay, x, b + first * channels, c + first * channels, channels, y};
        if (count > 1) {  // side by side, so that they stay in L1
            copy_rows(block.b, channels, states, count, b_rows);
            copy_rows(block.c, channels, states, count, c_rows);
            block.b = b_rows;
            block.c = c_rows;
            block.stride = states;
        }
        const int64_t target = rows.target(first + count - 1);
        float* out = target == 0 ? live : state.head(target, head);
        int64_t dim = 0;
        for (; dim + kVecs * kLanes <= dims; dim += kVecs * kLanes)
            advance_all<kVecs>(block, states, dim, in, out);
        for (; dim < dims; dim += kLanes) advance_all<1>(block, states, dim, in, out);
        in = out;
        for (int64_t i = 0; i < count; ++i)
            for (int64_t d = 0; d < dims; d += kLanes) {
                const int n = head_dim - d < kLanes ? static_cast<int>(head_dim - d) : kLanes;
                const F16 own = load_n(inputs + (first + i) * channels + d, n);
                float* row = args.y + (first + i) * width + head * head_dim;
                store_n(row + d, fma(own, set1(skip), load(y + i * dims + d)), n);
            }
    }
}

void gated_norm(const GatedNormArgs& args, int64_t row_begin, int64_t row_end, std::byte* scratch) noexcept {
    float* gated = reinterpret_cast<float*>(scratch);
    NormSpec spec{nullptr, nullptr, args.eps, 0.0f, false};
    for (int64_t row = row_begin; row < row_end; ++row) {
        const float *y = args.y + row * args.width, *z = args.z + row * args.z_stride;
        for (int64_t i = 0; i < args.width; i += kLanes) {
            const int n = args.width - i < kLanes ? static_cast<int>(args.width - i) : kLanes;
            store_n(gated + i, load_n(y + i, n) * silu(load_n(z + i, n)), n);
        }
        for (int64_t at = 0; at < args.width; at += args.span) {
            spec.weight = args.weight + at;
            scale_row(gated + at, spec, args.span, statistics(gated + at, args.span, spec), gated + at);
        }
        write_operand_row(gated, args.width, args.out, row);
    }
}

}  // namespace penstock::PENSTOCK_ISA
