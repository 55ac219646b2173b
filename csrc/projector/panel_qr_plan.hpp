#pragma once

#include <cstdint>

#include "common/dtype.hpp"
#include "common/launch.hpp"

namespace igm {

// A round of panel_qr() on a GPU (panel_qr.cuh): three launches, no host in between.
struct PanelPlan {
    int64_t chunks;  // of rows, per panel: partial Gram matrices
    int64_t tiles;   // of rows, per panel: blocks that multiply
    int64_t workspace_doubles;
    LaunchPlan gram;
    LaunchPlan factor;
    LaunchPlan multiply;
};

PanelPlan panel_qr_plan(int64_t count, int64_t rows, int64_t columns, const DeviceLimits& limits);

struct PanelRound {
    int64_t count;
    int64_t rows;
    int64_t columns;  // at most kPanelWidest
    int64_t overlap_rows;
    int round;             // other numbers bring other random columns
    double noise_squared;  // see PanelFactor
};

// panels [count, rows, columns], in place; overlap [count, overlap_rows, columns] of the same dtype; all on the device.
Launches panel_qr_launches(void* panels, const void* overlap, DType dtype, const PanelRound& round, double* workspace);

}  // namespace igm
