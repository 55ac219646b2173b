#include "update/projected_step_plan.hpp"

#include "common/parallel.hpp"
#include "update/base_options.hpp"
#include "update/projected_step_params.hpp"

namespace igm {

namespace {

int64_t count_tiles(const DeviceProjection& p, int64_t tile_columns) {
    return p.groups * divide_up(p.rows / p.groups, kTileRows) * divide_up(p.dim, tile_columns);
}

void check_extents(const DeviceProjection& p) {
    constexpr int64_t kMost = 2147483647;  // the kernels count rows, columns and ranks, not elements, in 32 bits
    IGM_EXPECT(p.rows <= kMost && p.dim <= kMost && p.rank <= kMost,
               text("projected step: a matrix of ", p.rows, " × ", p.dim, " with rank ", p.rank),
               text("at most ", kMost, " of each"), "Split the parameter, or leave its projector out.");
}

}  // namespace

StepPlan step_plan(const std::vector<int64_t>& sizes, const std::vector<DeviceProjection>& projections, DType dtype,
                   const DeviceLimits& limits) {
    const int64_t tile_columns = dtype == DType::kFloat64 ? kTileColumns<double> : kTileColumns<float>;
    StepPlan plan;
    for (const bool projected : {true, false}) {  // tiles first: they take longer
        const size_t most = projected ? kTileTensors : kStepTensors;
        const int64_t shared_bytes = projected ? kTileBytes : 0;
        StepPlan::Batch batch{};
        const auto close = [&] {
            if (!batch.tensors.empty()) {
                batch.projected = projected;
                batch.launch = {batch.first.back(), kStepThreads, shared_bytes};
                check_plan(projected ? "step_tiles_kernel" : "step_chunks_kernel", batch.launch, limits);
                plan.batches.push_back(std::move(batch));
            }
            batch = {};
        };
        for (size_t tensor = 0; tensor < sizes.size(); ++tensor) {
            const DeviceProjection& p = projections[tensor];
            if (sizes[tensor] == 0 || (p.rank > 0) != projected) {
                continue;
            }
            if (projected) {
                check_extents(p);
            }
            if (batch.tensors.empty()) {
                batch.first.push_back(0);
            }
            batch.tensors.push_back(static_cast<int64_t>(tensor));
            batch.first.push_back(batch.first.back() +
                                  (projected ? count_tiles(p, tile_columns) : divide_up(sizes[tensor], kStepChunk)));
            if (batch.tensors.size() == most) {
                close();
            }
        }
        close();
    }
    return plan;
}

namespace {

template <class T>
T* at(const std::vector<uintptr_t>& addresses, size_t tensor) {
    return addresses.empty() ? nullptr : reinterpret_cast<T*>(addresses[tensor]);
}

// The arrays that both lists have.
template <class T, class List>
void set_arrays(List& list, int i, const StepTensors& tensors, size_t tensor) {
    list.params[i] = at<T>(tensors.params, tensor);
    list.sources[i] = at<const T>(tensors.sources, tensor);
    list.grads[i] = at<const T>(tensors.grads, tensor);
    list.first_states[i] = at<Compute<T>>(tensors.first_states, tensor);
    list.second_states[i] = at<Compute<T>>(tensors.second_states, tensor);
}

template <class T>
StepList<T> step_list(const StepTensors& tensors, const StepPlan::Batch& batch) {
    StepList<T> list{};
    list.count = static_cast<int>(batch.tensors.size());
    for (int i = 0; i < list.count; ++i) {
        const size_t tensor = static_cast<size_t>(batch.tensors[i]);
        set_arrays<T>(list, i, tensors, tensor);
        list.sizes[i] = tensors.sizes[tensor];
        list.first_chunk[i + 1] = static_cast<int>(batch.first[i + 1]);
    }
    return list;
}

template <class T>
TileList<T> tile_list(const StepTensors& tensors, const std::vector<DeviceProjection>& projections,
                      const StepPlan::Batch& batch) {
    TileList<T> list{};
    list.count = static_cast<int>(batch.tensors.size());
    for (int i = 0; i < list.count; ++i) {
        const size_t tensor = static_cast<size_t>(batch.tensors[i]);
        const DeviceProjection& p = projections[tensor];
        set_arrays<T>(list, i, tensors, tensor);
        list.products[i] = reinterpret_cast<const Compute<T>*>(p.product);
        list.transposes[i] = reinterpret_cast<const Compute<T>*>(p.transpose);
        list.sigmas[i] = reinterpret_cast<const Compute<T>*>(p.sigma);
        list.complements[i] = static_cast<Compute<T>>(p.complement);
        list.group_rows[i] = static_cast<int>(p.rows / p.groups);
        list.dims[i] = static_cast<int>(p.dim);
        list.ranks[i] = static_cast<int>(p.rank);
        list.first_tile[i + 1] = static_cast<int>(batch.first[i + 1]);
    }
    return list;
}

template <class Real, bool kMomentum>
std::string rule_name(const Sgd<Real, kMomentum>&) {
    return text("igm::Sgd<", type_name<Real>(), ", ", bool_name(kMomentum), ">");
}

template <class Real>
std::string rule_name(const Adam<Real>&) {
    return text("igm::Adam<", type_name<Real>(), ">");
}

template <class Real>
std::string unit_name(bool tensor_cores) {
    return tensor_cores && sizeof(Real) == 4 ? "igm::UnitTf32x3" : text("igm::UnitPlain<", type_name<Real>(), ">");
}

template <class Options>
Launches make_launches(const StepTensors& tensors, const std::vector<DeviceProjection>& projections, DType dtype,
                       const Options& options, bool tensor_cores) {
    const StepPlan plan = step_plan(tensors.sizes, projections, dtype, DeviceLimits{});
    Launches launches;
    dispatch_parameter(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        with_rule<Compute<T>>(options, [&](const auto& rule) {
            using Rule = std::decay_t<decltype(rule)>;
            for (const StepPlan::Batch& batch : plan.batches) {
                const std::string types = text(type_name<T>(), ", ", rule_name(rule));
                if (batch.projected) {
                    launches.push_back(make_launch(
                        text("igm::step_tiles_kernel<", types, ", ", unit_name<Compute<T>>(tensor_cores), ">"),
                        batch.launch, TileStep<T, Rule>{tile_list<T>(tensors, projections, batch), rule}));
                } else {
                    launches.push_back(make_launch(text("igm::step_chunks_kernel<", types, ">"), batch.launch,
                                                   ChunkStep<T, Rule>{step_list<T>(tensors, batch), rule}));
                }
            }
        });
    });
    return launches;
}

}  // namespace

Launches projected_step_launches(const StepTensors& tensors, const std::vector<DeviceProjection>& projections,
                                 DType dtype, const SgdOptions& options, bool tensor_cores) {
    return make_launches(tensors, projections, dtype, options, tensor_cores);
}

Launches projected_step_launches(const StepTensors& tensors, const std::vector<DeviceProjection>& projections,
                                 DType dtype, const AdamOptions& options, bool tensor_cores) {
    return make_launches(tensors, projections, dtype, options, tensor_cores);
}

}  // namespace igm
