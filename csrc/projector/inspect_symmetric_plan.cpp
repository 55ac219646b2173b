#include "projector/inspect_symmetric_plan.hpp"

#include "common/parallel.hpp"
#include "projector/inspect_symmetric_params.hpp"

namespace igm {

InspectPlan inspect_symmetric_plan(int64_t count, int64_t size, const DeviceLimits& limits) {
    const int64_t tiles = divide_up(size, kInspectTile);
    InspectPlan plan{};
    plan.pairs = tiles * (tiles + 1) / 2;
    plan.workspace_doubles = count * plan.pairs * kInspectFacts;
    plan.tiles = {count * plan.pairs, kInspectThreads, 0};
    plan.totals = {count, kInspectThreads, 0};
    check_plan("inspect_tiles_kernel", plan.tiles, limits);
    return plan;
}

Launches inspect_symmetric_launches(const void* matrices, DType dtype, int64_t count, int64_t size, double* facts,
                                    double* workspace) {
    const InspectPlan plan = inspect_symmetric_plan(count, size, DeviceLimits{});
    if (plan.tiles.grid == 0) {
        return {};
    }
    return dispatch_accumulator(dtype, [&](auto tag) -> Launches {
        using T = typename decltype(tag)::Type;
        const InspectTiles<T> tiles{static_cast<const T*>(matrices), workspace, size, plan.pairs};
        const InspectFinal totals{workspace, facts, plan.pairs};
        return {make_launch(text("igm::inspect_tiles_kernel<", type_name<T>(), ">"), plan.tiles, tiles),
                make_launch("igm::inspect_final_kernel", plan.totals, totals)};
    });
}

}  // namespace igm
