// The only file that knows Python: take addresses and integers, release the GIL, call the core.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstdint>
#include <string>
#include <vector>

#include "common/dtype.hpp"
#include "common/isa.hpp"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace {

using ReleaseGil = py::call_guard<py::gil_scoped_release>;

py::dict build_info() {
    py::dict info;
    info["build_type"] = IGM_FAST_BUILD_TYPE;
    info["flags"] = IGM_FAST_FLAGS;
    info["compiler"] = IGM_FAST_COMPILER;
#ifdef _OPENMP
    info["openmp"] = _OPENMP;
#else
    info["openmp"] = 0;
#endif
    info["cuda_architectures"] = IGM_FAST_CUDA_ARCHITECTURES;
    info["cuda_note"] = IGM_FAST_CUDA_NOTE;
    return info;
}

// ---- common ------------------------------------------------------------------------------------------------------
void bind_common(py::module_& m) {
    m.attr("version") = IGM_FAST_VERSION;
    m.def("build_info", &build_info);
    m.def("isa", [] { return std::string(igm::isa_name(igm::isa())); });
    // How many threads a parallel region gets: tests check that torch.set_num_threads is what decides.
    m.def("openmp_threads", [](int threads) {
        int count = 1;
#ifdef _OPENMP
#pragma omp parallel num_threads(threads)
        {
#pragma omp single
            count = omp_get_num_threads();
        }
#else
        (void)threads;
#endif
        return count;
    });
}

// ---- covariance --------------------------------------------------------------------------------------------------
void bind_covariance(py::module_&) {}

// ---- projector ---------------------------------------------------------------------------------------------------
void bind_projector(py::module_&) {}

// ---- update ------------------------------------------------------------------------------------------------------
void bind_update(py::module_&) {}

}  // namespace

PYBIND11_MODULE(_igm_fast, m) {
    m.doc() = "Kernels of igm_fast. Private: igm_fast.ops is the only importer.";
    bind_common(m);
    bind_covariance(m);
    bind_projector(m);
    bind_update(m);
}
