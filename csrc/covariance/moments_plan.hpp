#pragma once

// Launches of moments.cuh, which adds what add_window_moments (window_moments.hpp) adds, on a GPU.

#include <cstdint>
#include <vector>

#include "common/launch.hpp"
#include "covariance/patch_plan.hpp"

namespace igm {

// Channels are taken in parts, so that the sums of a part's locations fit into the workspace.
struct MomentsPlan {
    struct Part {
        int64_t first_channel, channels;
        int64_t runs;  // the samples are cut into
    };
    std::vector<Part> parts;  // none where nothing is to be added
    int64_t sum_doubles;      // workspace: sums of locations, then squares of all channels and taps
    int64_t square_doubles;
    // The input with its samples along axis 0, seen so that these are as many as possible.
    PatchInput input;
};

MomentsPlan moments_plan(const PatchTask& task);

// total [groups, d] and trace [groups] += alpha · Σ u and alpha · Σ|u|².
Launches moments_launches(const PatchTask& task, void* total, void* trace, double alpha, double* workspace);

}  // namespace igm
