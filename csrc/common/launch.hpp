#pragma once

// What the host asks of a GPU, as plain data. The functions that make lists of launches (…_launches) are ordinary C++:
// tests read them without a GPU, and whoever can start kernels executes them: the CUDA runtime (execute.cu), CuPy
// (igm_fast/ops/nvrtc.py), or the tests' emulator.

#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

#include "common/element.hpp"
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

struct KernelLaunch {
    std::string kernel;  // the instance as an expression: igm::perturb_kernel<false, float>
    LaunchPlan plan;
    std::vector<unsigned char> params;  // the kernel's one argument, by value
};

// Launches on one stream, in order.
using Launches = std::vector<KernelLaunch>;

// What every driver takes as kernel arguments; newer ones take more.
constexpr size_t kMaxParameterBytes = 4096;

template <class Params>
KernelLaunch make_launch(std::string kernel, const LaunchPlan& plan, const Params& params) {
    static_assert(std::is_trivially_copyable<Params>::value, "parameters travel as bytes");
    static_assert(sizeof(Params) <= kMaxParameterBytes, "more than a kernel launch takes");
    std::vector<unsigned char> bytes(sizeof(Params));
    std::memcpy(bytes.data(), &params, sizeof(Params));
    return {std::move(kernel), plan, std::move(bytes)};
}

// Names of template arguments, as instances.cuh spells them.
template <class T>
const char* type_name();
template <>
inline const char* type_name<float>() {
    return "float";
}
template <>
inline const char* type_name<double>() {
    return "double";
}
template <>
inline const char* type_name<BFloat16>() {
    return "igm::BFloat16";
}
template <>
inline const char* type_name<Float16>() {
    return "igm::Float16";
}

inline const char* bool_name(bool value) { return value ? "true" : "false"; }

}  // namespace igm
