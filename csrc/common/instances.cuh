#pragma once

// The kernels of this build by name. Every instance stands in one list, in the .cu file of its subject:
//
//     namespace igm { IGM_INSTANCE(perturb_kernel<false, float>) … }
//
// nvcc compiles what is listed, NVRTC is asked for the same names, the tests' emulator runs them: none can be
// forgotten. Types inside namespace igm are written igm::BFloat16, as launches name them (launch.hpp). The lists are
// also read as text (igm_fast/ops/nvrtc.py): an instance is spelled out in its own IGM_INSTANCE, not made by another
// macro.

#ifdef __CUDACC_RTC__  // has no standard headers, and is told by name which instances to make

#define IGM_INSTANCE(...)

#else

#include <map>
#include <string>

namespace igm {

inline std::map<std::string, const void*>& kernel_instances() {
    static std::map<std::string, const void*> instances;
    return instances;
}

struct KernelInstance {
    KernelInstance(const char* name, const void* kernel) { kernel_instances()[name] = kernel; }
};

}  // namespace igm

#define IGM_JOIN_(a, b) a##b
#define IGM_JOIN(a, b) IGM_JOIN_(a, b)
#define IGM_INSTANCE(...)                                                                    \
    static const ::igm::KernelInstance IGM_JOIN(instance, __COUNTER__)("igm::" #__VA_ARGS__, \
                                                                       reinterpret_cast<const void*>(&__VA_ARGS__));

#endif
