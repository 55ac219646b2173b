#pragma once

#include <cstdint>
#include <vector>

#include "common/launch.hpp"
#include "update/perturb.hpp"

namespace igm {

// Which kernels of perturb.cuh run on which tensors; plain C++, so that tests check it without a GPU.
struct PerturbPlan {
    struct Batch {
        int64_t first_tensor;
        int64_t tensors;
        int64_t first_chunk;  // in the workspace's list of partial sums
        LaunchPlan chunks;    // norm_partials_kernel and perturb_kernel; grid 0: nothing to launch
    };
    struct Norms {
        int64_t first_norm;
        std::vector<int64_t> begin;  // partial sums of norm i: begin[i] … begin[i + 1]
        LaunchPlan launch;           // norm_final_kernel
    };
    std::vector<Batch> batches;
    std::vector<Norms> norms;
    int64_t partials;           // doubles in the workspace before the scales
    int64_t workspace_doubles;  // partials and one scale per norm
};

PerturbPlan perturb_plan(const std::vector<int64_t>& sizes, NormScope scope, const DeviceLimits& limits);

// perturb() for tensors on a CUDA device: norm and workspace (plan.workspace_doubles) lie there.
Launches perturb_launches(const PerturbTensors& tensors, DType dtype, const PerturbOptions& options, float* norm,
                          double* workspace);

}  // namespace igm
