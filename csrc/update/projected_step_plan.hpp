#pragma once

#include <cstdint>
#include <vector>

#include "common/launch.hpp"
#include "update/projected_step.hpp"

namespace igm {

// T of one tensor as the device takes it. Row-major, contiguous, of the compute type; rank 0: no projection.
struct DeviceProjection {
    int64_t groups;  // as in Projection
    int64_t rows;
    int64_t dim;
    int64_t rank;
    uintptr_t product;    // (G U)ᵀ [groups, k, rows / groups], made before
    uintptr_t transpose;  // Uᵀ [groups, k, d]
    uintptr_t sigma;      // Σ [groups, k]
    double complement;
};

// Which kernels of projected_step.cuh run on which tensors; plain C++, so that tests check it without a GPU.
struct StepPlan {
    struct Batch {
        bool projected;                // step_tiles_kernel, otherwise step_chunks_kernel
        std::vector<int64_t> tensors;  // empty tensors are in no batch
        std::vector<int64_t> first;    // the first chunk or tile of each, and their number
        LaunchPlan launch;
    };
    std::vector<Batch> batches;
};

StepPlan step_plan(const std::vector<int64_t>& sizes, const std::vector<DeviceProjection>& projections, DType dtype,
                   const DeviceLimits& limits);

// projected_step() for tensors on a CUDA device; tensors.projections is not looked at. tensor_cores: the device has
// them for float32 (compute capability 8.0).
Launches projected_step_launches(const StepTensors& tensors, const std::vector<DeviceProjection>& projections,
                                 DType dtype, const SgdOptions& options, bool tensor_cores);
Launches projected_step_launches(const StepTensors& tensors, const std::vector<DeviceProjection>& projections,
                                 DType dtype, const AdamOptions& options, bool tensor_cores);

}  // namespace igm
