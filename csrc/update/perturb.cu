// Instantiates the kernels of perturb.cuh and launches them as perturb_plan() says.

#include "common/launch.cuh"
#include "update/perturb.cuh"
#include "update/perturb_plan.hpp"

namespace igm {

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
        const long long chunks = (tensors.sizes[tensor] + kPerturbChunk - 1) / kPerturbChunk;
        list.first_chunk[i + 1] = list.first_chunk[i] + static_cast<int>(chunks);
    }
    return list;
}

template <bool kAdaptive, class T>
void run(const PerturbTensors& tensors, const PerturbOptions& options, float* norm, double* workspace, void* stream) {
    const PerturbPlan plan = perturb_plan(tensors.sizes, options.scope, DeviceLimits{});
    double* scales = workspace + plan.partials;
    for (const PerturbPlan::Batch& batch : plan.batches) {
        if (batch.chunks.grid > 0) {
            launch("norm_partials_kernel", norm_partials_kernel<kAdaptive, T>, batch.chunks, stream,
                   make_list<T>(tensors, batch), workspace + batch.first_chunk);
        }
    }
    for (const PerturbPlan::Norms& norms : plan.norms) {
        NormRanges ranges{};
        for (size_t i = 0; i < norms.begin.size(); ++i) {
            ranges.begin[i] = norms.begin[i];
        }
        launch("norm_final_kernel", norm_final_kernel, norms.launch, stream, ranges, workspace, options.rho,
               norm + norms.first_norm, scales + norms.first_norm);
    }
    const int per_tensor = options.scope == NormScope::kTensor ? 1 : 0;
    for (const PerturbPlan::Batch& batch : plan.batches) {
        if (batch.chunks.grid > 0) {
            launch("perturb_kernel", perturb_kernel<kAdaptive, T>, batch.chunks, stream, make_list<T>(tensors, batch),
                   scales + per_tensor * batch.first_tensor, per_tensor);
        }
    }
}

}  // namespace

void perturb_cuda(const PerturbTensors& tensors, DType dtype, const PerturbOptions& options, float* norm,
                  double* workspace, int device, void* stream) {
    use_device(device);
    dispatch_parameter(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        if (options.adaptive) {
            run<true, T>(tensors, options, norm, workspace, stream);
        } else {
            run<false, T>(tensors, options, norm, workspace, stream);
        }
    });
}

}  // namespace igm
