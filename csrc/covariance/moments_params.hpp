#pragma once

// What the kernels of moments.cuh are given; plain data, no standard headers. Host plan: moments_plan.hpp.

namespace igm {

constexpr int kMomentThreads = 256;
constexpr int kMomentResident = 4;

// Of location_moments_kernel. Axes are ordered by their stride, the smallest last, so that neighbouring threads read
// neighbours in memory.
struct LocationMoments {
    const void* input;        // first of this launch's channels
    int dtype;                // codes of igm_fast/ops/native.py
    bool narrow;              // inputs are rounded to float32 first
    long long sample_stride;  // in bytes, as all strides here
    long long strides[4];
    int sizes[4];
    long long locations;  // product of the sizes
    int samples;
    int run_samples;  // of a run
    double* sums;     // [runs, 2, locations]: Σx and Σx²
};

// Of tap_moments_kernel: a block for each channel of the launch and each tap.
struct TapMoments {
    const double* sums;
    int runs;
    long long locations;
    long long channel_step, axis_step[3];  // in `sums`
    int sizes[3], outputs[3], kernel[3], step[3], before[3], dilation[3];
    int taps;
    double alpha;
    void* total;      // of this launch's channels, [channels, taps]
    double* squares;  // the same shape: Σ of the tap's squares
};

// Of trace_moments_kernel: a block for each group.
struct TraceMoments {
    const double* squares;
    int dim;
    double alpha;
    void* trace;
};

}  // namespace igm
