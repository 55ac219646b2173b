#pragma once

// Which kernels of lag_product.cuh run on which parts of a lag plan; plain C++, so that tests check it without a GPU.

#include <array>
#include <cstdint>
#include <vector>

#include "common/dtype.hpp"
#include "common/launch.hpp"
#include "covariance/lag_product_params.hpp"

namespace igm {

// Σ_q left[q] right[q + shift]ᵀ, as igm_fast/ops/lag_plan.py has it: axes (z, y, x), held at a coordinate or (-1) not.
struct LagTerm {
    std::array<int, 3> left;
    std::array<int, 3> right;
    std::array<int, 3> shift;
};

// The input lies channels-last: the channels of a group together, zero behind them up to a multiple of 16 bytes.
struct LagProblem {
    std::vector<LagTerm> terms;
    int64_t samples;
    std::array<int64_t, 3> sizes;    // z, y, x
    std::array<int64_t, 4> strides;  // of sample, z, y, x: bytes, multiples of 16
    int64_t groups;
    int64_t group_stride;  // bytes, a multiple of 16
    int64_t channels;      // per group
    int64_t taps;
    DType dtype;  // float32, float16 or bfloat16
    bool tf32;    // float32 products may be rounded to 11 bits, as torch.backends.cuda.matmul.allow_tf32 says
    int64_t multiprocessors;
    int64_t shared_bytes;  // that a block may have
};

struct LagProductPlan {
    struct Batch {
        std::vector<LagItem> items;  // at most kLagItems
        LaunchPlan products;
        LaunchPlan reduction;
        int stage_elements;
        int stage_rows;
    };
    std::vector<Batch> batches;
    LaunchPlan assembly;
    int chunk;               // positions
    int64_t partial_floats;  // of the workspace, before the products
    int64_t workspace_floats;
};

LagProductPlan lag_product_plan(const LagProblem& problem, const DeviceLimits& limits);

// Adds alpha · Σ u uᵀ to out [groups, channels · taps, channels · taps], symmetric on return if `mirror`; only its
// lower triangle counts on entry. `first` [taps² + 1] and `sources` as in lag_product_params.hpp; all pointers are
// device addresses.
struct LagBuffers {
    const void* input;
    float* workspace;
    float* out;
    const int* first;
    const int* sources;
};
Launches lag_product_launches(const LagProblem& problem, const LagBuffers& buffers, double alpha, bool mirror,
                              const DeviceLimits& limits);

}  // namespace igm
