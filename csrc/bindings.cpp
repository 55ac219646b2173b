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
#include "common/execute.hpp"
#include "common/isa.hpp"
#include "covariance/lag_blocks.hpp"
#include "covariance/lag_product_plan.hpp"
#include "covariance/mirror.hpp"
#include "covariance/moments_plan.hpp"
#include "covariance/pack_patches.hpp"
#include "covariance/patch_plan.hpp"
#include "covariance/sketch.hpp"
#include "covariance/stage_plan.hpp"
#include "covariance/window_moments.hpp"
#include "projector/inspect_symmetric.hpp"
#include "projector/inspect_symmetric_plan.hpp"
#include "projector/jacobi_plan.hpp"
#include "projector/panel_qr.hpp"
#include "projector/panel_qr_params.hpp"
#include "projector/panel_qr_plan.hpp"
#include "projector/tall_product.hpp"
#include "update/panel_product.hpp"
#include "update/perturb.hpp"
#include "update/perturb_plan.hpp"
#include "update/projected_step.hpp"
#include "update/projected_step_plan.hpp"

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
    // Lists of launches are made by every build and executed by those with nvcc, or by igm_fast/ops/nvrtc.py.
    py::class_<igm::KernelLaunch>(m, "KernelLaunch")
        .def_readonly("kernel", &igm::KernelLaunch::kernel)
        .def_property_readonly("grid", [](const igm::KernelLaunch& launch) { return launch.plan.grid; })
        .def_property_readonly("block", [](const igm::KernelLaunch& launch) { return launch.plan.block; })
        .def_property_readonly("shared_bytes", [](const igm::KernelLaunch& launch) { return launch.plan.shared_bytes; })
        .def_property_readonly("params", [](const igm::KernelLaunch& launch) {
            return py::bytes(reinterpret_cast<const char*>(launch.params.data()), launch.params.size());
        });
#ifdef IGM_FAST_HAS_CUDA
    m.def(
        "execute",
        [](const igm::Launches& launches, int device, uintptr_t stream) {
            igm::execute(launches, device, reinterpret_cast<void*>(stream));
        },
        ReleaseGil());
#endif
}

// ---- covariance --------------------------------------------------------------------------------------------------
template <int kCount>
using Sizes = std::array<int64_t, kCount>;

// The plan as Python lists: what tests look at, with or without a GPU.
py::dict patch_plan(const igm::PatchTask& task) {
    const igm::PatchPlan plan = igm::patch_plan(task);
    py::list runs, rounds;
    for (const igm::PatchPlan::Run& run : plan.runs) {
        runs.append(py::make_tuple(run.first_sample, run.first_position, run.positions));
    }
    for (const igm::PatchPlan::Round& round : plan.rounds) {
        rounds.append(py::make_tuple(round.first_group, round.groups, round.first_tile, round.tiles, round.splits));
    }
    py::dict result;
    result["unit"] = plan.unit;
    result["runs"] = runs;
    result["rounds"] = rounds;
    result["tile"] = py::make_tuple(plan.tile_rows, plan.tile_columns);
    result["tiles"] = py::make_tuple(plan.tiles_down, plan.tiles_across);
    result["staged"] = plan.staged_bytes > 0;
    result["together"] = plan.together;
    result["rows"] = plan.rows;
    result["columns"] = plan.columns;
    result["partial_elements"] = plan.partial_elements;
    result["image_elements"] = plan.image_elements;
    result["image_splits"] = plan.image_splits;
    result["staged_bytes"] = plan.staged_bytes;
    return result;
}

// On a GPU: sums over patches, by patch_product.cuh and moments.cuh.
void bind_patches(py::module_& m) {
    py::class_<igm::PatchTask>(m, "PatchTask")
        .def(py::init([](uintptr_t input, int input_dtype, Sizes<5> sizes, Sizes<5> strides, Sizes<3> kernel,
                         Sizes<3> stride, Sizes<6> padding, Sizes<3> dilation, int64_t groups, int sums,
                         int64_t columns, int64_t capability, bool tf32, Sizes<3> tuning) {
            return igm::PatchTask{
                {reinterpret_cast<const void*>(input), static_cast<igm::DType>(input_dtype), sizes, strides},
                {kernel, stride, padding, dilation},
                groups,
                static_cast<igm::DType>(sums),
                columns,
                {capability, tf32},
                {tuning[0], tuning[1], tuning[2]}};
        }));
    m.def("patch_plan", &patch_plan);
    m.def("patch_workspace",
          [](const igm::PatchTask& task) { return igm::patch_workspace_bytes(igm::patch_plan(task), task.sums); });
    m.def("patch_covariance_launches",
          [](const igm::PatchTask& task, uintptr_t out, double alpha, uintptr_t workspace) {
              return igm::patch_covariance_launches(task, reinterpret_cast<void*>(out), alpha,
                                                    reinterpret_cast<void*>(workspace));
          });
    m.def("patch_sketch_launches", [](const igm::PatchTask& task, uintptr_t omega, uintptr_t sketch, double alpha,
                                      uintptr_t workspace) {
        return igm::patch_sketch_launches(task, reinterpret_cast<const void*>(omega), reinterpret_cast<void*>(sketch),
                                          alpha, reinterpret_cast<void*>(workspace));
    });
    m.def("moments_plan", [](const igm::PatchTask& task) {
        py::list parts;
        for (const igm::MomentsPlan::Part& part : igm::moments_plan(task).parts) {
            parts.append(py::make_tuple(part.first_channel, part.channels, part.runs));
        }
        return parts;
    });
    m.def("moments_workspace", [](const igm::PatchTask& task) {
        const igm::MomentsPlan plan = igm::moments_plan(task);
        return plan.sum_doubles + plan.square_doubles;
    });
    m.def("moments_launches",
          [](const igm::PatchTask& task, uintptr_t total, uintptr_t trace, double alpha, uintptr_t workspace) {
              return igm::moments_launches(task, reinterpret_cast<void*>(total), reinterpret_cast<void*>(trace), alpha,
                                           reinterpret_cast<double*>(workspace));
          });
}

// The parts of a lag plan as the kernels are given them, for tests: one dictionary each.
py::list lag_plan_items(const igm::LagProblem& problem, int64_t max_grid) {
    igm::DeviceLimits limits;
    limits.max_grid = max_grid;
    const igm::LagProductPlan plan = igm::lag_product_plan(problem, limits);
    py::list items;
    for (size_t batch = 0; batch < plan.batches.size(); ++batch) {
        for (const igm::LagItem& item : plan.batches[batch].items) {
            py::dict entry;
            entry["batch"] = batch;
            entry["chunk"] = plan.chunk;
            entry["blocks"] = plan.batches[batch].products.grid;
            entry["shared_bytes"] = plan.batches[batch].products.shared_bytes;
            entry["first_block"] = item.first_block;
            entry["first_unit"] = item.first_unit;
            entry["first_quarter"] = item.first_quarter;
            entry["extent"] = std::vector<int>(item.extent, item.extent + 3);
            entry["inside"] = std::vector<int>(item.inside, item.inside + 3);
            entry["window"] = std::vector<int>(item.window, item.window + 4);
            entry["rows"] = item.rows;
            entry["planes"] = item.planes;
            entry["run_length"] = item.run_length;
            entry["run_chunks"] = item.run_chunks;
            entry["chunks"] = item.chunks;
            entry["splits"] = item.splits;
            entry["parts"] = item.parts;
            entry["only_lower"] = item.only_lower != 0;
            entry["shifts"] = std::vector<int>(item.shift, item.shift + item.lags);
            entry["terms"] = std::vector<int>(item.term, item.term + item.lags);
            items.append(entry);
        }
    }
    return items;
}

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
           uintptr_t code, uintptr_t weight, double alpha, bool mirror, int threads) {
            igm::add_lag_blocks(reinterpret_cast<void*>(out), reinterpret_cast<const void*>(products),
                                static_cast<igm::DType>(dtype), channels, taps, terms,
                                {reinterpret_cast<const int64_t*>(first), reinterpret_cast<const int64_t*>(code),
                                 reinterpret_cast<const double*>(weight)},
                                alpha, mirror, threads);
        },
        ReleaseGil());
    py::class_<igm::LagProblem>(m, "LagProblem")
        .def(py::init([](const std::vector<std::array<std::array<int, 3>, 3>>& terms, int64_t samples, Sizes<3> sizes,
                         Sizes<4> strides, int64_t groups, int64_t group_stride, int64_t channels, int64_t taps,
                         int dtype, bool tf32, int64_t multiprocessors, int64_t shared_bytes) {
            igm::LagProblem problem{{},
                                    samples,
                                    sizes,
                                    strides,
                                    groups,
                                    group_stride,
                                    channels,
                                    taps,
                                    static_cast<igm::DType>(dtype),
                                    tf32,
                                    multiprocessors,
                                    shared_bytes};
            for (const auto& [left, right, shift] : terms) {
                problem.terms.push_back({left, right, shift});
            }
            return problem;
        }))
        .def("workspace",
             [](const igm::LagProblem& problem) { return igm::lag_product_plan(problem, {}).workspace_floats; })
        .def("plan", &lag_plan_items)
        .def("launches", [](const igm::LagProblem& problem, uintptr_t input, uintptr_t workspace, uintptr_t out,
                            uintptr_t first, uintptr_t sources, double alpha, bool mirror) {
            return igm::lag_product_launches(problem,
                                             {reinterpret_cast<const void*>(input), reinterpret_cast<float*>(workspace),
                                              reinterpret_cast<float*>(out), reinterpret_cast<const int*>(first),
                                              reinterpret_cast<const int*>(sources)},
                                             alpha, mirror, {});
        });
    m.def(
        "mirror_lower",
        [](uintptr_t data, int dtype, int64_t matrices, int64_t size, int threads) {
            igm::mirror_lower(reinterpret_cast<void*>(data), static_cast<igm::DType>(dtype), matrices, size, threads);
        },
        ReleaseGil());
    m.def("mirror_launches", [](uintptr_t data, int dtype, int64_t matrices, int64_t size) {
        return igm::mirror_launches(reinterpret_cast<void*>(data), static_cast<igm::DType>(dtype), matrices, size);
    });
    m.def("stage_input_launch", [](uintptr_t input, int dtype, Sizes<5> sizes, Sizes<5> strides, int64_t groups,
                                   int64_t pitch, uintptr_t output) {
        const igm::DType type = static_cast<igm::DType>(dtype);
        return igm::stage_input_launch({reinterpret_cast<const void*>(input), type, sizes, strides}, groups, type,
                                       pitch, reinterpret_cast<void*>(output));
    });
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
    bind_patches(m);
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
    // On a GPU.
    m.attr("panel_widest") = igm::kPanelWidest;
    m.def("inspect_symmetric_workspace",
          [](int64_t count, int64_t size) { return igm::inspect_symmetric_plan(count, size, {}).workspace_doubles; });
    m.def("inspect_symmetric_launches",
          [](uintptr_t matrices, int dtype, int64_t count, int64_t size, uintptr_t facts, uintptr_t workspace) {
              return igm::inspect_symmetric_launches(
                  reinterpret_cast<const void*>(matrices), static_cast<igm::DType>(dtype), count, size,
                  reinterpret_cast<double*>(facts), reinterpret_cast<double*>(workspace));
          });
    m.def("panel_qr_workspace", [](int64_t count, int64_t rows, int64_t columns) {
        return igm::panel_qr_plan(count, rows, columns, {}).workspace_doubles;
    });
    m.def("panel_qr_launches", [](uintptr_t panels, uintptr_t overlap, int dtype, int64_t count, int64_t rows,
                                  int64_t columns, int64_t overlap_rows, int round, double noise_squared,
                                  uintptr_t workspace) {
        return igm::panel_qr_launches(
            reinterpret_cast<void*>(panels), reinterpret_cast<const void*>(overlap), static_cast<igm::DType>(dtype),
            {count, rows, columns, overlap_rows, round, noise_squared}, reinterpret_cast<double*>(workspace));
    });
    m.def("jacobi_most", &igm::jacobi_most);
    m.def("jacobi_launches", [](uintptr_t matrices, uintptr_t eigenvalues, uintptr_t vectors, int64_t count,
                                int64_t size, int64_t max_shared_bytes) {
        return igm::jacobi_launches(reinterpret_cast<const double*>(matrices), reinterpret_cast<double*>(eigenvalues),
                                    reinterpret_cast<double*>(vectors), count, size, max_shared_bytes);
    });
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

std::vector<igm::DeviceProjection> device_projections(const std::vector<ProjectionTuple>& tuples) {
    std::vector<igm::DeviceProjection> projections;
    for (const ProjectionTuple& tuple : tuples) {
        projections.push_back(std::apply([](auto... field) { return igm::DeviceProjection{field...}; }, tuple));
    }
    return projections;
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

py::list step_plan(const std::vector<int64_t>& sizes, const std::vector<ProjectionTuple>& projections, int dtype,
                   int64_t max_grid) {
    igm::DeviceLimits limits;
    limits.max_grid = max_grid;
    py::list batches;
    for (const igm::StepPlan::Batch& batch :
         igm::step_plan(sizes, device_projections(projections), static_cast<igm::DType>(dtype), limits).batches) {
        py::dict entry = launch_dict(batch.launch);
        entry["projected"] = batch.projected;
        entry["tensors"] = batch.tensors;
        entry["first"] = batch.first;
        batches.append(entry);
    }
    return batches;
}

void bind_update(py::module_& m) {
    m.attr("panel_columns") = igm::kPanelColumns;
    m.def(
        "sam_perturb",
        [](Addresses params, Addresses backups, Addresses grads, std::vector<int64_t> sizes, int dtype, double rho,
           bool per_tensor, bool adaptive, uintptr_t norm, uintptr_t total, int threads) {
            igm::perturb({std::move(params), std::move(backups), std::move(grads), std::move(sizes)},
                         static_cast<igm::DType>(dtype),
                         {rho, norm_scope(per_tensor), adaptive, reinterpret_cast<const float*>(total)},
                         reinterpret_cast<float*>(norm), threads);
        },
        ReleaseGil());
    m.def("sam_restore", &igm::restore, ReleaseGil());
    m.def("perturb_plan", &perturb_plan);
    m.def("perturb_workspace", [](const std::vector<int64_t>& sizes, bool per_tensor) {
        return igm::perturb_plan(sizes, norm_scope(per_tensor), {}).workspace_doubles;
    });
    m.def(
        "perturb_launches",
        [](Addresses params, Addresses backups, Addresses grads, std::vector<int64_t> sizes, int dtype, double rho,
           bool per_tensor, bool adaptive, uintptr_t norm, uintptr_t workspace, uintptr_t total) {
            return igm::perturb_launches({std::move(params), std::move(backups), std::move(grads), std::move(sizes)},
                                         static_cast<igm::DType>(dtype),
                                         {rho, norm_scope(per_tensor), adaptive, reinterpret_cast<const float*>(total)},
                                         reinterpret_cast<float*>(norm), reinterpret_cast<double*>(workspace));
        },
        py::arg("params"), py::arg("backups"), py::arg("grads"), py::arg("sizes"), py::arg("dtype"), py::arg("rho"),
        py::arg("per_tensor"), py::arg("adaptive"), py::arg("norm"), py::arg("workspace"), py::arg("total") = 0);
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
    m.def("step_plan", &step_plan);
    m.def("projected_sgd_launches", [](Addresses params, Addresses sources, Addresses grads, Addresses momentum_buffers,
                                       std::vector<int64_t> sizes, const std::vector<ProjectionTuple>& projections,
                                       int dtype, double lr, double momentum, double dampening, double weight_decay,
                                       bool nesterov, bool maximize, bool first_step, bool tensor_cores) {
        return igm::projected_step_launches(
            step_tensors(std::move(params), std::move(sources), std::move(grads), std::move(momentum_buffers), {},
                         std::move(sizes), {}),
            device_projections(projections), static_cast<igm::DType>(dtype),
            igm::SgdOptions{lr, momentum, dampening, weight_decay, nesterov, maximize, first_step}, tensor_cores);
    });
    m.def("projected_adamw_launches",
          [](Addresses params, Addresses sources, Addresses grads, Addresses exp_avgs, Addresses exp_avg_sqs,
             std::vector<int64_t> sizes, const std::vector<ProjectionTuple>& projections, int dtype, int64_t step,
             double lr, double beta1, double beta2, double eps, double weight_decay, bool decoupled, bool maximize,
             bool tensor_cores) {
              return igm::projected_step_launches(
                  step_tensors(std::move(params), std::move(sources), std::move(grads), std::move(exp_avgs),
                               std::move(exp_avg_sqs), std::move(sizes), {}),
                  device_projections(projections), static_cast<igm::DType>(dtype),
                  igm::AdamOptions{lr, beta1, beta2, eps, weight_decay, step, decoupled, maximize}, tensor_cores);
          });
}

}  // namespace

PYBIND11_MODULE(_igm_fast, m) {
    m.doc() = "Kernels of igm_fast. Private: igm_fast.ops is the only importer.";
    bind_common(m);
    bind_covariance(m);
    bind_projector(m);
    bind_update(m);
}
