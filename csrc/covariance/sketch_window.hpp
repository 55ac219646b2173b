#pragma once

// The part of a convolution's input that a box of output positions sees, packed so that every tap of the kernel reads
// the inputs of neighbouring outputs from neighbouring places, whatever the stride:
//
//     window[block, n, phase_z, z, phase_y, y, phase_x, x, lane]
//
// holds channel block·kLanes + lane at padded coordinate (q · stride + phase) per axis; only phases that some tap
// needs. The tap at (h, i, j) of output (n, z, y, x) is then at offset(n, z, y, x) + offset(tap): one table each.

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "common/isa.hpp"
#include "common/parallel.hpp"
#include "covariance/pack_patches.hpp"

namespace igm {

// Output positions [first, first + count) per axis of (n, z, y, x).
struct OutputBox {
    std::array<int64_t, 4> first;
    std::array<int64_t, 4> count;

    int64_t positions() const { return count[0] * count[1] * count[2] * count[3]; }
};

// One axis of the window: which phases of the stride occur, and where each tap finds its input.
struct WindowAxis {
    int64_t stride;
    int64_t before;                // padding
    std::vector<int64_t> phases;   // (tap · dilation) mod stride, without repetitions
    std::vector<int64_t> phase;    // of each tap: index into `phases`
    std::vector<int64_t> advance;  // of each tap: (tap · dilation) / stride
    int64_t reach = 0;             // the largest advance

    WindowAxis(int64_t kernel, int64_t stride_, int64_t dilation, int64_t before_) : stride(stride_), before(before_) {
        for (int64_t tap = 0; tap < kernel; ++tap) {
            const int64_t value = tap * dilation % stride;
            const auto found = std::find(phases.begin(), phases.end(), value);
            phase.push_back(found - phases.begin());
            if (found == phases.end()) {
                phases.push_back(value);
            }
            advance.push_back(tap * dilation / stride);
            reach = advance.back();
        }
    }

    int64_t phase_count() const { return static_cast<int64_t>(phases.size()); }
    int64_t length(int64_t outputs) const { return outputs + reach; }                   // per phase
    int64_t entries(int64_t outputs) const { return phase_count() * length(outputs); }  // of all phases
    int64_t offset(int64_t tap, int64_t outputs) const { return phase[tap] * length(outputs) + advance[tap]; }
};

class SketchWindow {
  public:
    SketchWindow(const PatchInput& input, const PatchGeometry& geometry)
        : input_(input),
          axes_{axis(geometry, 0), axis(geometry, 1), axis(geometry, 2)},
          kernel_(geometry.kernel),
          outputs_{input.sizes[0], 1, 1, 1} {
        for (int i = 0; i < 3; ++i) {
            const int64_t* around = &geometry.padding[2 * (2 - i)];
            const int64_t span = geometry.dilation[i] * (geometry.kernel[i] - 1) + 1;
            outputs_[i + 1] = (input.sizes[i + 2] + around[0] + around[1] - span) / geometry.stride[i] + 1;
        }
    }

    int64_t taps() const { return kernel_[0] * kernel_[1] * kernel_[2]; }
    const std::array<int64_t, 4>& outputs() const { return outputs_; }

    // Places per channel that a box takes.
    int64_t places(const OutputBox& box) const {
        return box.count[0] * axes_[0].entries(box.count[1]) * axes_[1].entries(box.count[2]) *
               axes_[2].entries(box.count[3]);
    }

    // The boxes of about `most` positions that cover the output: whole inner axes first, then nearly equal parts of one
    // axis, whose lengths are multiples of `multiple` but for the last one.
    std::vector<OutputBox> boxes(int64_t most, int64_t multiple) const;

    // Offsets in places: of each tap, and of the first position of each row of a box, in order (n, z, y).
    std::vector<int64_t> tap_offsets(const OutputBox& box) const;
    std::vector<int64_t> row_offsets(const OutputBox& box) const;

    // Fills window [divide_up(channels, kLanes), places, kLanes] for the channels from first_channel on; lanes beyond
    // the last one are zero.
    template <int kLanes, class Real>
    void pack(const OutputBox& box, int64_t first_channel, int64_t channels, Real* window, int threads) const {
        dispatch(input_.dtype, [&](auto in) {
            using In = typename decltype(in)::Type;
            pack_from<kLanes, In>(box, first_channel, channels, window, threads);
        });
    }

  private:
    template <int kLanes, class In, class Real>
    void pack_from(const OutputBox& box, int64_t first_channel, int64_t channels, Real* window, int threads) const;

    static WindowAxis axis(const PatchGeometry& geometry, int i) {
        return {geometry.kernel[i], geometry.stride[i], geometry.dilation[i], geometry.padding[2 * (2 - i)]};
    }

    PatchInput input_;
    std::array<WindowAxis, 3> axes_;
    std::array<int64_t, 3> kernel_;
    std::array<int64_t, 4> outputs_;
};

// `count` places of `channels` channels, from source on; a place is kLanes apart from the next one.
template <int kLanes, class In, class Real>
IGM_INLINE void interleave(const In* source, int64_t channel_stride, int64_t step, int64_t channels, int64_t count,
                           Real* target) {
    if (channels < kLanes) {
        std::fill_n(target, count * kLanes, Real(0));
    }
    if (channel_stride == 1) {
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t c = 0; c < channels; ++c) {
                target[i * kLanes + c] = static_cast<Real>(to_float(source[i * step + c]));
            }
        }
        return;
    }
    for (int64_t c = 0; c < channels; ++c) {
        const In* row = source + c * channel_stride;
        for (int64_t i = 0; i < count; ++i) {
            target[i * kLanes + c] = static_cast<Real>(to_float(row[i * step]));
        }
    }
}

template <int kLanes, class In, class Real>
void SketchWindow::pack_from(const OutputBox& box, int64_t first_channel, int64_t channels, Real* window,
                             int threads) const {
    const auto& [az, ay, ax] = axes_;
    const int64_t planes = az.entries(box.count[1]);
    const int64_t rows = ay.entries(box.count[2]);
    const int64_t row_length = ax.length(box.count[3]);
    const int64_t blocks = divide_up(channels, kLanes);
    // Entry e of an axis: input coordinate (first + q)·stride + phase − before.
    const auto coordinate = [](const WindowAxis& axis, int64_t first, int64_t outputs, int64_t entry) {
        const int64_t length = axis.length(outputs);
        return (first + entry % length) * axis.stride + axis.phases[entry / length] - axis.before;
    };
    parallel_for(blocks * box.count[0] * planes, threads, [&](int64_t item) {
        const int64_t plane = item % planes;
        const int64_t n = box.first[0] + item / planes % box.count[0];
        const int64_t channel = item / planes / box.count[0] * kLanes;
        const int64_t filled = std::min<int64_t>(kLanes, channels - channel);
        const int64_t z = coordinate(az, box.first[1], box.count[1], plane);
        const bool plane_inside = z >= 0 && z < input_.sizes[2];
        Real* target = window + item * rows * ax.phase_count() * row_length * kLanes;
        with_best_isa([&](auto) __attribute__((always_inline)) {
            for (int64_t row = 0; row < rows; ++row) {
                const int64_t y = coordinate(ay, box.first[2], box.count[2], row);
                const bool inside = plane_inside && y >= 0 && y < input_.sizes[3];
                for (const int64_t phase : ax.phases) {
                    // Places q with 0 ≤ (first + q)·stride + phase − before < width.
                    const int64_t start = box.first[3] * ax.stride + phase - ax.before;
                    const int64_t least = start >= 0 ? 0 : divide_up(-start, ax.stride);
                    const int64_t past = start >= input_.sizes[4] ? 0 : (input_.sizes[4] - 1 - start) / ax.stride + 1;
                    const int64_t begin = inside ? std::min(least, row_length) : row_length;
                    const int64_t end = inside ? std::clamp(past, begin, row_length) : row_length;
                    std::fill_n(target, begin * kLanes, Real(0));
                    if (begin < end) {
                        const int64_t source = n * input_.strides[0] + (first_channel + channel) * input_.strides[1] +
                                               z * input_.strides[2] + y * input_.strides[3] +
                                               (start + begin * ax.stride) * input_.strides[4];
                        interleave<kLanes>(static_cast<const In*>(input_.data) + source, input_.strides[1],
                                           ax.stride * input_.strides[4], filled, end - begin, target + begin * kLanes);
                    }
                    std::fill_n(target + end * kLanes, (row_length - end) * kLanes, Real(0));
                    target += row_length * kLanes;
                }
            }
        });
    });
}

}  // namespace igm
