// The only file that knows Python: take addresses and integers, release the GIL, call the core.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "common/dtype.hpp"
#include "common/isa.hpp"
#include "covariance/lag_blocks.hpp"
#include "covariance/mirror.hpp"
#include "covariance/pack_patches.hpp"
#include "covariance/sketch.hpp"
#include "covariance/window_moments.hpp"
#include "projector/inspect_symmetric.hpp"
#include "projector/panel_qr.hpp"
#include "projector/tall_product.hpp"
#include "update/panel_product.hpp"
#include "update/perturb.hpp"
#include "update/perturb_plan.hpp"
#include "update/projected_step.hpp"

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
template <int kCount>
using Sizes = std::array<int64_t, kCount>;

void bind_covariance(py::module_& m) {
    m.def(
        "pack_patches",
        [](uintptr_t input, int input_dtype, Sizes<5> sizes, Sizes<5> strides, Sizes<3> kernel, Sizes<3> stride,
           Sizes<6> padding, Sizes<3> dilation, int64_t first, int64_t count, uintptr_t tile, int tile_dtype,
           int threads) {
            igm::pack_patches(
                {reinterpret_cast<const void*>(input), static_cast<igm::DType>(input_dtype), sizes, strides},
                {kernel, stride, padding, dilation}, {first, count}, reinterpret_cast<void*>(tile),
                static_cast<igm::DType>(tile_dtype), threads);
        },
        ReleaseGil());
    m.def(
        "add_lag_blocks",
        [](uintptr_t out, uintptr_t products, int dtype, int64_t channels, int64_t taps, int64_t terms, uintptr_t first,
           uintptr_t code, uintptr_t weight, double alpha, int threads) {
            igm::add_lag_blocks(reinterpret_cast<void*>(out), reinterpret_cast<const void*>(products),
                                static_cast<igm::DType>(dtype), channels, taps, terms,
                                {reinterpret_cast<const int64_t*>(first), reinterpret_cast<const int64_t*>(code),
                                 reinterpret_cast<const double*>(weight)},
                                alpha, threads);
        },
        ReleaseGil());
    m.def(
        "mirror_lower",
        [](uintptr_t data, int dtype, int64_t matrices, int64_t size, int threads) {
            igm::mirror_lower(reinterpret_cast<void*>(data), static_cast<igm::DType>(dtype), matrices, size, threads);
        },
        ReleaseGil());
    m.def(
        "add_conv_sketch",
        [](uintptr_t input, int input_dtype, Sizes<5> sizes, Sizes<5> strides, Sizes<3> kernel, Sizes<3> stride,
           Sizes<6> padding, Sizes<3> dilation, int64_t groups, uintptr_t omega, uintptr_t sketch, int sums,
           int64_t columns, bool winograd, double alpha, int threads) {
            igm::add_conv_sketch(
                {reinterpret_cast<const void*>(input), static_cast<igm::DType>(input_dtype), sizes, strides},
                {kernel, stride, padding, dilation}, groups, reinterpret_cast<const void*>(omega),
                reinterpret_cast<void*>(sketch), static_cast<igm::DType>(sums), columns, winograd, alpha, threads);
        },
        ReleaseGil());
    m.def(
        "add_window_moments",
        [](uintptr_t input, int input_dtype, Sizes<5> sizes, Sizes<5> strides, Sizes<3> kernel, Sizes<3> stride,
           Sizes<6> padding, Sizes<3> dilation, int64_t groups, uintptr_t total, uintptr_t trace, int sums,
           double alpha, int threads) {
            igm::add_window_moments(
                {reinterpret_cast<const void*>(input), static_cast<igm::DType>(input_dtype), sizes, strides},
                {kernel, stride, padding, dilation}, groups, reinterpret_cast<void*>(total),
                reinterpret_cast<void*>(trace), static_cast<igm::DType>(sums), alpha, threads);
        },
        ReleaseGil());
}

// ---- projector ---------------------------------------------------------------------------------------------------
void bind_projector(py::module_& m) {
    m.def(
        "inspect_symmetric",
        [](uintptr_t data, int dtype, int64_t count, int64_t size, int threads) {
            std::vector<std::array<double, 5>> result;
            for (const igm::SymmetricFacts& facts : igm::inspect_symmetric(
                     reinterpret_cast<const void*>(data), static_cast<igm::DType>(dtype), count, size, threads)) {
                result.push_back({static_cast<double>(facts.non_finite), facts.asymmetry, facts.norm, facts.trace,
                                  facts.least_diagonal});
            }
            return result;
        },
        ReleaseGil());
    m.def(
        "tall_product",
        [](uintptr_t matrices, uintptr_t panels, uintptr_t products, int dtype, int64_t count, int64_t size,
           int64_t columns, int threads) {
            igm::tall_product(reinterpret_cast<const void*>(matrices), reinterpret_cast<const void*>(panels),
                              reinterpret_cast<void*>(products), static_cast<igm::DType>(dtype), count, size, columns,
                              threads);
        },
        ReleaseGil());
    m.def(
        "panel_qr",
        [](uintptr_t panels, int dtype, int64_t count, int64_t rows, int64_t columns, int threads) {
            igm::panel_qr(reinterpret_cast<void*>(panels), static_cast<igm::DType>(dtype), count, rows, columns,
                          threads);
        },
        ReleaseGil());
}

// ---- update ------------------------------------------------------------------------------------------------------
using Addresses = std::vector<uintptr_t>;
using ProjectionTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, uintptr_t, uintptr_t, uintptr_t, double>;

igm::StepTensors step_tensors(Addresses params, Addresses sources, Addresses grads, Addresses first_states,
                              Addresses second_states, std::vector<int64_t> sizes,
                              const std::vector<ProjectionTuple>& projections) {
    igm::StepTensors tensors{std::move(params),
                             std::move(sources),
                             std::move(grads),
                             std::move(first_states),
                             std::move(second_states),
                             std::move(sizes),
                             {}};
    for (const ProjectionTuple& tuple : projections) {
        tensors.projections.push_back(std::apply([](auto... field) { return igm::Projection{field...}; }, tuple));
    }
    return tensors;
}

igm::NormScope norm_scope(bool per_tensor) { return per_tensor ? igm::NormScope::kTensor : igm::NormScope::kGlobal; }

py::dict launch_dict(const igm::LaunchPlan& plan) {
    py::dict result;
    result["grid"] = plan.grid;
    result["block"] = plan.block;
    result["shared_bytes"] = plan.shared_bytes;
    return result;
}

// The plan as Python lists: what tests look at, with or without a GPU.
py::dict perturb_plan(const std::vector<int64_t>& sizes, bool per_tensor, int64_t max_grid) {
    igm::DeviceLimits limits;
    limits.max_grid = max_grid;
    const igm::PerturbPlan plan = igm::perturb_plan(sizes, norm_scope(per_tensor), limits);
    py::list batches, norms;
    for (const igm::PerturbPlan::Batch& batch : plan.batches) {
        py::dict entry = launch_dict(batch.chunks);
        entry["first_tensor"] = batch.first_tensor;
        entry["tensors"] = batch.tensors;
        entry["first_chunk"] = batch.first_chunk;
        batches.append(entry);
    }
    for (const igm::PerturbPlan::Norms& norm : plan.norms) {
        py::dict entry = launch_dict(norm.launch);
        entry["first_norm"] = norm.first_norm;
        entry["begin"] = norm.begin;
        norms.append(entry);
    }
    py::dict result;
    result["batches"] = batches;
    result["norms"] = norms;
    result["partials"] = plan.partials;
    result["workspace_doubles"] = plan.workspace_doubles;
    return result;
}

void bind_update(py::module_& m) {
    m.attr("panel_columns") = igm::kPanelColumns;
    m.def(
        "sam_perturb",
        [](Addresses params, Addresses backups, Addresses grads, std::vector<int64_t> sizes, int dtype, double rho,
           bool per_tensor, bool adaptive, uintptr_t norm, int threads) {
            igm::perturb({std::move(params), std::move(backups), std::move(grads), std::move(sizes)},
                         static_cast<igm::DType>(dtype), {rho, norm_scope(per_tensor), adaptive},
                         reinterpret_cast<float*>(norm), threads);
        },
        ReleaseGil());
    m.def("sam_restore", &igm::restore, ReleaseGil());
    m.def("perturb_plan", &perturb_plan);
    m.def("perturb_workspace", [](const std::vector<int64_t>& sizes, bool per_tensor) {
        return igm::perturb_plan(sizes, norm_scope(per_tensor), {}).workspace_doubles;
    });
#ifdef IGM_FAST_HAS_CUDA
    m.def(
        "sam_perturb_cuda",
        [](Addresses params, Addresses backups, Addresses grads, std::vector<int64_t> sizes, int dtype, double rho,
           bool per_tensor, bool adaptive, uintptr_t norm, uintptr_t workspace, int device, uintptr_t stream) {
            igm::perturb_cuda({std::move(params), std::move(backups), std::move(grads), std::move(sizes)},
                              static_cast<igm::DType>(dtype), {rho, norm_scope(per_tensor), adaptive},
                              reinterpret_cast<float*>(norm), reinterpret_cast<double*>(workspace), device,
                              reinterpret_cast<void*>(stream));
        },
        ReleaseGil());
#endif
    m.def(
        "projected_sgd_step",
        [](Addresses params, Addresses sources, Addresses grads, Addresses momentum_buffers, std::vector<int64_t> sizes,
           const std::vector<ProjectionTuple>& projections, int dtype, double lr, double momentum, double dampening,
           double weight_decay, bool nesterov, bool maximize, bool first_step, int threads) {
            igm::projected_step(step_tensors(std::move(params), std::move(sources), std::move(grads),
                                             std::move(momentum_buffers), {}, std::move(sizes), projections),
                                static_cast<igm::DType>(dtype),
                                igm::SgdOptions{lr, momentum, dampening, weight_decay, nesterov, maximize, first_step},
                                threads);
        },
        ReleaseGil());
    m.def(
        "projected_adamw_step",
        [](Addresses params, Addresses sources, Addresses grads, Addresses exp_avgs, Addresses exp_avg_sqs,
           std::vector<int64_t> sizes, const std::vector<ProjectionTuple>& projections, int dtype, int64_t step,
           double lr, double beta1, double beta2, double eps, double weight_decay, bool decoupled, bool maximize,
           int threads) {
            igm::projected_step(
                step_tensors(std::move(params), std::move(sources), std::move(grads), std::move(exp_avgs),
                             std::move(exp_avg_sqs), std::move(sizes), projections),
                static_cast<igm::DType>(dtype),
                igm::AdamOptions{lr, beta1, beta2, eps, weight_decay, step, decoupled, maximize}, threads);
        },
        ReleaseGil());
}

}  // namespace

PYBIND11_MODULE(_igm_fast, m) {
    m.doc() = "Kernels of igm_fast. Private: igm_fast.ops is the only importer.";
    bind_common(m);
    bind_covariance(m);
    bind_projector(m);
    bind_update(m);
}
