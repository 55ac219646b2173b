// Runs the kernels of kernels/matrix_unit.cu on a GPU, as emulate.cpp runs them on a CPU; compiled by on_device.py.

#include "common/execute.hpp"
#include "kernels/matrix_unit.cu"

extern "C" const char* igm_device_run(const char* kernel, int64_t grid, int64_t block, int64_t shared_bytes,
                                      const unsigned char* params, int64_t params_bytes) {
    static std::string error;
    error.clear();
    try {
        igm::execute({{kernel, {grid, block, shared_bytes}, {params, params + params_bytes}}}, 0, nullptr);
    } catch (const std::exception& failure) {
        error = failure.what();
    }
    return error.empty() ? nullptr : error.c_str();
}
