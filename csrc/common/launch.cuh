#pragma once

// Starts a kernel as its plan says. tests/emulation has the body for a CPU.

#include <cuda_runtime.h>

#include "common/launch.hpp"

namespace igm {

inline void use_device(int device) {
    const cudaError_t status = cudaSetDevice(device);
    if (status != cudaSuccess) {
        throw MachineError(text("cuda route: device ", device, " cannot be used (", cudaGetErrorString(status),
                                "), expected a visible GPU and a driver as new as CUDA ", CUDART_VERSION / 1000,
                                ". Check nvidia-smi; CPU tensors work."));
    }
}

template <class... Parameters, class... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const LaunchPlan& plan, void* stream,
            const Arguments&... arguments) {
    check_plan(name, plan, DeviceLimits{});
    kernel<<<static_cast<unsigned>(plan.grid), static_cast<unsigned>(plan.block),
             static_cast<size_t>(plan.shared_bytes), static_cast<cudaStream_t>(stream)>>>(arguments...);
    const cudaError_t status = cudaGetLastError();
    if (status != cudaSuccess) {
        throw MachineError(text(name, ": launch with ", describe(plan), " failed (", cudaGetErrorString(status),
                                "), expected a device of one of the architectures in igm_fast.show_config(). ",
                                "Rebuild with IGM_FAST_CUDA_ARCHS if yours is missing."));
    }
}

}  // namespace igm
