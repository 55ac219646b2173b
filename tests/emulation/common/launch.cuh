#pragma once

// Runs a kernel's blocks one after another, in random order, as the plan of the host code says.

#include <numeric>

#include "common/device.cuh"
#include "common/launch.hpp"

namespace igm {

inline void use_device(int) {}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchPlan& plan, void*,
            const Arguments&... arguments) {
    check_plan(name, plan, DeviceLimits{});
    std::vector<int64_t> blocks(plan.grid);
    std::iota(blocks.begin(), blocks.end(), 0);
    std::shuffle(blocks.begin(), blocks.end(), emulation::order);
    for (int64_t block : blocks) {
        emulation::run_block(block, static_cast<int>(plan.block), [&] { kernel(arguments...); });
    }
}

}  // namespace igm
