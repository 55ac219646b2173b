#pragma once

// csrc/common/instances.cuh for the emulator: a kernel is kept with a function that knows the type of its parameters.

#include <map>
#include <string>

namespace igm {

struct EmulatedKernel {
    void (*call)(const EmulatedKernel& kernel, const void* params);
    void (*kernel)();  // cast back by `call`
    size_t params_bytes;
};

std::map<std::string, EmulatedKernel>& kernel_instances();

struct KernelInstance {
    template <class Params>
    KernelInstance(const char* name, void (*kernel)(Params)) {
        static_assert(__is_trivially_copyable(Params), "parameters travel as bytes");
        static_assert(sizeof(Params) <= 4096, "more than a kernel launch takes");
        kernel_instances()[name] = {
            [](const EmulatedKernel& instance, const void* params) {
                reinterpret_cast<void (*)(Params)>(instance.kernel)(*static_cast<const Params*>(params));
            },
            reinterpret_cast<void (*)()>(kernel), sizeof(Params)};
    }
};

}  // namespace igm

#define IGM_JOIN_(a, b) a##b
#define IGM_JOIN(a, b) IGM_JOIN_(a, b)
#define IGM_INSTANCE(...) \
    static const ::igm::KernelInstance IGM_JOIN(instance, __COUNTER__)("igm::" #__VA_ARGS__, &__VA_ARGS__);
