#pragma once

#include <cstdint>

#include "common/dtype.hpp"
#include "common/launch.hpp"

namespace igm {

// inspect_symmetric() on a GPU: two launches, no host in between (inspect_symmetric.cuh).
struct InspectPlan {
    int64_t pairs;  // of tiles, per matrix
    int64_t workspace_doubles;
    LaunchPlan tiles;
    LaunchPlan totals;
};

InspectPlan inspect_symmetric_plan(int64_t count, int64_t size, const DeviceLimits& limits);

// matrices [count, size, size], facts [count, 5] and workspace lie on the device. None where there is nothing to do.
Launches inspect_symmetric_launches(const void* matrices, DType dtype, int64_t count, int64_t size, double* facts,
                                    double* workspace);

}  // namespace igm
