#pragma once

// First and second moments of patches (equations: window_moments.hpp), in float64 and a fixed order.
//
//   1. location_moments_kernel  a thread per location (channel, z, y, x) and run of samples: Σx and Σx² over the
//   samples
//   2. tap_moments_kernel       a block per channel and tap: sums over the locations that the tap sees → total
//   3. trace_moments_kernel     a block per group: the taps' squares → trace
//
// The input crosses DRAM once, in 1, where it is all that is read. What 2 reads `taps` times over does not grow with
// the number of samples, and stays in L2: the host takes as few channels at a time as that needs.

#include "covariance/moments_params.hpp"
#include "covariance/patch_source.cuh"

namespace igm {

static IGM_KERNEL IGM_BLOCKS(kMomentThreads, kMomentResident) location_moments_kernel(const LocationMoments params) {
    const long long blocks = (params.locations + kMomentThreads - 1) / kMomentThreads;
    const long long location = block_index() % blocks * kMomentThreads + thread_index();
    const int run = static_cast<int>(block_index() / blocks);
    if (location >= params.locations) {
        return;
    }
    const int first = run * params.run_samples;
    const int last = first + params.run_samples < params.samples ? first + params.run_samples : params.samples;
    const unsigned char* address = static_cast<const unsigned char*>(params.input) + first * params.sample_stride;
    long long rest = location;
    for (int axis = 3; axis >= 0; --axis) {
        address += rest % params.sizes[axis] * params.strides[axis];
        rest /= params.sizes[axis];
    }
    double sum = 0.0, square = 0.0;
    with_element_type(params.dtype, [&](auto tag) {
        using In = typename decltype(tag)::Type;
        for (int sample = first; sample < last; ++sample, address += params.sample_stride) {
            const auto element = to_float(*reinterpret_cast<const In*>(address));
            const double value = params.narrow ? static_cast<float>(element) : element;
            sum += value;
            square += value * value;
        }
    });
    double* sums = params.sums + 2 * run * params.locations + location;
    sums[0] = sum;
    sums[params.locations] = square;
}

// Sums over the block, in a fixed tree; thread 0 gets them.
IGM_DEVICE void sum_block(double& first, double& second) {
    IGM_SHARED double firsts[kMomentThreads];
    IGM_SHARED double seconds[kMomentThreads];
    firsts[thread_index()] = first;
    seconds[thread_index()] = second;
    for (int half = kMomentThreads / 2; half > 0; half /= 2) {
        barrier();
        if (thread_index() < half) {
            firsts[thread_index()] += firsts[thread_index() + half];
            seconds[thread_index()] += seconds[thread_index() + half];
        }
    }
    first = firsts[0];
    second = seconds[0];
}

template <class Sum>
IGM_KERNEL IGM_BLOCKS(kMomentThreads, kMomentResident) tap_moments_kernel(const TapMoments params) {
    const int channel = static_cast<int>(block_index() / params.taps);
    int rest = static_cast<int>(block_index() % params.taps);
    int first[3];  // place that the first output sees, along each axis
    for (int axis = 2; axis >= 0; --axis) {
        first[axis] = rest % params.kernel[axis] * params.dilation[axis] - params.before[axis];
        rest /= params.kernel[axis];
    }
    const long long places = static_cast<long long>(params.outputs[0]) * params.outputs[1] * params.outputs[2];
    double sum = 0.0, square = 0.0;
    for (long long item = thread_index(); item < places * params.runs; item += kMomentThreads) {
        long long left = item;
        long long location = channel * params.channel_step;
        bool inside = true;
        for (int axis = 2; axis >= 0; --axis) {
            const int place = static_cast<int>(left % params.outputs[axis]) * params.step[axis] + first[axis];
            left /= params.outputs[axis];
            inside = inside && place >= 0 && place < params.sizes[axis];
            location += place * params.axis_step[axis];
        }
        if (inside) {
            const double* sums = params.sums + 2 * left * params.locations + location;
            sum += sums[0];
            square += sums[params.locations];
        }
    }
    sum_block(sum, square);
    if (thread_index() == 0) {
        Sum& total = static_cast<Sum*>(params.total)[block_index()];
        total = static_cast<Sum>(total + params.alpha * sum);
        params.squares[block_index()] = square;
    }
}

template <class Sum>
IGM_KERNEL IGM_BLOCKS(kMomentThreads, kMomentResident) trace_moments_kernel(const TraceMoments params) {
    const double* squares = params.squares + block_index() * params.dim;
    double sum = 0.0, unused = 0.0;
    for (int row = thread_index(); row < params.dim; row += kMomentThreads) {
        sum += squares[row];
    }
    sum_block(sum, unused);
    if (thread_index() == 0) {
        Sum& trace = static_cast<Sum*>(params.trace)[block_index()];
        trace = static_cast<Sum>(trace + params.alpha * sum);
    }
}

}  // namespace igm
