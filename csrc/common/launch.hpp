#pragma once

#include <cstdint>
#include <string>

#include "common/error.hpp"

namespace igm {

// How a kernel is started: a plain function of the problem, made on the host, shown in errors and checked by tests.
struct LaunchPlan {
    int64_t grid;   // blocks along x; the kernels of this package use one dimension (y and z stop at 65535)
    int64_t block;  // threads per block
    int64_t shared_bytes;
};

struct DeviceLimits {
    int64_t max_grid = 2147483647;  // compute capability 3.0 and later
    int64_t max_block = 1024;
    int64_t max_shared_bytes = 48 * 1024;
};

inline std::string describe(const LaunchPlan& plan) {
    return text("grid ", plan.grid, ", block ", plan.block, ", ", plan.shared_bytes, " bytes of shared memory");
}

inline void check_plan(const char* kernel, const LaunchPlan& plan, const DeviceLimits& limits) {
    IGM_EXPECT(plan.grid >= 0 && plan.grid <= limits.max_grid && plan.block > 0 && plan.block <= limits.max_block &&
                   plan.shared_bytes <= limits.max_shared_bytes,
               text(kernel, ": ", describe(plan)),
               text("at most ", limits.max_grid, " blocks of ", limits.max_block, " threads with ",
                    limits.max_shared_bytes, " bytes"),
               "Split the list of tensors over several calls.");
}

}  // namespace igm
