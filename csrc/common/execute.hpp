#pragma once

#include "common/launch.hpp"

namespace igm {

// Starts the kernels on a stream of a device, in order; nothing waits. Only when built with nvcc.
void execute(const Launches& launches, int device, void* stream);

}  // namespace igm
