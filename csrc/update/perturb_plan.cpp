#include "update/perturb_plan.hpp"

#include <algorithm>

#include "common/parallel.hpp"
#include "update/perturb_list.hpp"

namespace igm {

PerturbPlan perturb_plan(const std::vector<int64_t>& sizes, NormScope scope, const DeviceLimits& limits) {
    PerturbPlan plan{};
    const int64_t count = static_cast<int64_t>(sizes.size());
    std::vector<int64_t> first_chunk{0};
    for (int64_t size : sizes) {
        first_chunk.push_back(first_chunk.back() + divide_up(size, kPerturbChunk));
    }
    for (int64_t first = 0; first < count; first += kPerturbTensors) {
        const int64_t last = std::min(count, first + kPerturbTensors);
        const LaunchPlan chunks{first_chunk[last] - first_chunk[first], kPerturbThreads, 0};
        check_plan("perturb_kernel", chunks, limits);
        plan.batches.push_back({first, last - first, first_chunk[first], chunks});
        if (scope == NormScope::kTensor) {
            plan.norms.push_back({first,
                                  {first_chunk.begin() + first, first_chunk.begin() + last + 1},
                                  {last - first, kPerturbThreads, 0}});
        }
    }
    if (scope == NormScope::kGlobal) {
        plan.norms.push_back({0, {0, first_chunk.back()}, {1, kPerturbThreads, 0}});
    }
    plan.partials = first_chunk.back();
    plan.workspace_doubles = plan.partials + (scope == NormScope::kGlobal ? 1 : count);
    return plan;
}

namespace {

template <class T>
PerturbList<T> make_list(const PerturbTensors& tensors, const PerturbPlan::Batch& batch) {
    PerturbList<T> list{};
    list.count = static_cast<int>(batch.tensors);
    for (int i = 0; i < list.count; ++i) {
        const size_t tensor = static_cast<size_t>(batch.first_tensor + i);
        list.params[i] = reinterpret_cast<T*>(tensors.params[tensor]);
        list.backups[i] = reinterpret_cast<T*>(tensors.backups[tensor]);
        list.grads[i] = reinterpret_cast<const T*>(tensors.grads[tensor]);
        list.sizes[i] = tensors.sizes[tensor];
        const int64_t chunks = divide_up(tensors.sizes[tensor], kPerturbChunk);
        list.first_chunk[i + 1] = list.first_chunk[i] + static_cast<int>(chunks);
    }
    return list;
}

template <class T>
Launches make_launches(const PerturbTensors& tensors, const PerturbOptions& options, float* norm, double* workspace) {
    const PerturbPlan plan = perturb_plan(tensors.sizes, options.scope, DeviceLimits{});
    const std::string instance = text("<", bool_name(options.adaptive), ", ", type_name<T>(), ">");
    double* scales = workspace + plan.partials;
    Launches launches;
    for (const PerturbPlan::Batch& batch : plan.batches) {
        if (batch.chunks.grid > 0) {
            launches.push_back(
                make_launch("igm::norm_partials_kernel" + instance, batch.chunks,
                            NormPartials<T>{make_list<T>(tensors, batch), workspace + batch.first_chunk}));
        }
    }
    for (const PerturbPlan::Norms& norms : plan.norms) {
        NormFinal params{{}, workspace, options.rho, options.total, norm + norms.first_norm, scales + norms.first_norm};
        std::copy(norms.begin.begin(), norms.begin.end(), params.begin);
        launches.push_back(make_launch("igm::norm_final_kernel", norms.launch, params));
    }
    const int per_tensor = options.scope == NormScope::kTensor ? 1 : 0;
    for (const PerturbPlan::Batch& batch : plan.batches) {
        if (batch.chunks.grid > 0) {
            launches.push_back(make_launch(
                "igm::perturb_kernel" + instance, batch.chunks,
                Perturbation<T>{make_list<T>(tensors, batch), scales + per_tensor * batch.first_tensor, per_tensor}));
        }
    }
    return launches;
}

}  // namespace

Launches perturb_launches(const PerturbTensors& tensors, DType dtype, const PerturbOptions& options, float* norm,
                          double* workspace) {
    return dispatch_parameter(dtype, [&](auto tag) {
        return make_launches<typename decltype(tag)::Type>(tensors, options, norm, workspace);
    });
}

}  // namespace igm
