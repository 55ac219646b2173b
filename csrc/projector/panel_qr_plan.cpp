#include "projector/panel_qr_plan.hpp"

#include <cmath>

#include "common/parallel.hpp"
#include "projector/panel_qr_params.hpp"

namespace igm {

PanelPlan panel_qr_plan(int64_t count, int64_t rows, int64_t columns, const DeviceLimits& limits) {
    IGM_EXPECT(columns <= kPanelWidest && columns <= rows,
               text("panel_qr on a GPU: panels of ", rows, " rows and ", columns, " columns"),
               text("at most ", kPanelWidest, " columns and as many rows"), "Take wider panels in parts.");
    PanelPlan plan{};
    plan.chunks = divide_up(rows, kPanelChunkRows);
    plan.tiles = divide_up(rows, kPanelTileRows);
    plan.workspace_doubles = count * (plan.chunks + 1) * columns * columns;
    plan.gram = {count * plan.chunks, kPanelThreads, 0};
    plan.factor = {count, kPanelThreads, 0};
    plan.multiply = {count * plan.tiles, kPanelThreads, 0};
    check_plan("panel_multiply_kernel", plan.multiply, limits);
    return plan;
}

Launches panel_qr_launches(void* panels, const void* overlap, DType dtype, const PanelRound& round, double* workspace) {
    const PanelPlan plan = panel_qr_plan(round.count, round.rows, round.columns, DeviceLimits{});
    if (round.count == 0 || round.columns == 0) {
        return {};
    }
    const int columns = static_cast<int>(round.columns);
    const int per_thread = columns <= kPanelNarrow ? 1 : kPanelWidest / kPanelNarrow;
    double* inverses = workspace + round.count * plan.chunks * columns * columns;
    const double random_scale = std::sqrt(3.0 / static_cast<double>(round.rows));  // entries have variance ⅓
    return dispatch_accumulator(dtype, [&](auto tag) -> Launches {
        using T = typename decltype(tag)::Type;
        T* first = static_cast<T*>(panels);
        const std::string instance = text("<", per_thread, ", ", type_name<T>(), ">");
        const PanelGram<T> gram{first, workspace, round.rows, plan.chunks, columns};
        const PanelFactor<T> factor{
            workspace,          static_cast<const T*>(overlap), inverses, plan.chunks, round.overlap_rows, columns,
            round.noise_squared};
        const PanelMultiply<T> multiply{first, inverses, round.rows, plan.tiles, columns, round.round, random_scale};
        return {make_launch("igm::panel_gram_kernel" + instance, plan.gram, gram),
                make_launch(text("igm::panel_factor_kernel<", type_name<T>(), ">"), plan.factor, factor),
                make_launch("igm::panel_multiply_kernel" + instance, plan.multiply, multiply)};
    });
}

}  // namespace igm
