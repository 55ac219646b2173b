#include <cuda_runtime.h>

#include "common/execute.hpp"
#include "common/instances.cuh"

namespace igm {

namespace {

void use_device(int device) {
    const cudaError_t status = cudaSetDevice(device);
    if (status != cudaSuccess) {
        throw MachineError(text("cuda route: device ", device, " cannot be used (", cudaGetErrorString(status),
                                "), expected a visible GPU and a driver as new as CUDA ", CUDART_VERSION / 1000,
                                ". Check nvidia-smi; CPU tensors work."));
    }
}

void execute(const KernelLaunch& launch, cudaStream_t stream) {
    const auto found = kernel_instances().find(launch.kernel);
    if (found == kernel_instances().end()) {
        throw MachineError(text(launch.kernel, " is not in this build, expected one of its ", kernel_instances().size(),
                                " kernels. This is a defect of igm_fast: please report it."));
    }
    cudaError_t status = cudaSuccess;
    if (launch.plan.shared_bytes > DeviceLimits{}.max_shared_bytes) {  // more has to be asked for
        status = cudaFuncSetAttribute(found->second, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(launch.plan.shared_bytes));
    }
    if (status == cudaSuccess) {
        void* arguments[] = {const_cast<unsigned char*>(launch.params.data())};
        status = cudaLaunchKernel(found->second, dim3(static_cast<unsigned>(launch.plan.grid)),
                                  dim3(static_cast<unsigned>(launch.plan.block)), arguments,
                                  static_cast<size_t>(launch.plan.shared_bytes), stream);
    }
    if (status != cudaSuccess) {
        cudaGetLastError();  // reported here, not by whoever asks next
        throw MachineError(text(launch.kernel, ": launch with ", describe(launch.plan), " failed (",
                                cudaGetErrorString(status),
                                "), expected a device of one of the architectures in igm_fast.show_config(). ",
                                "Rebuild with IGM_FAST_CUDA_ARCHS if yours is missing."));
    }
}

}  // namespace

void execute(const Launches& launches, int device, void* stream) {
    use_device(device);
    for (const KernelLaunch& launch : launches) {
        execute(launch, static_cast<cudaStream_t>(stream));
    }
}

}  // namespace igm
