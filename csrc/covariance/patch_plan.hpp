#pragma once

// Which kernels of patch_product.cuh run on which part of the work; plain C++, so that tests check it without a GPU.

#include <cstdint>
#include <string>
#include <vector>

#include "common/launch.hpp"
#include "covariance/pack_patches.hpp"

namespace igm {

// What decides on the arithmetic: compute capability (80 for 8.0), and whether float32 may be rounded to 11 bits.
struct PatchDevice {
    int64_t capability;
    bool tf32;
};

// What igm_fast/ops/patches.py sets, and tests make small.
struct PatchTuning {
    int64_t partial_bytes;  // of partial sums
    int64_t image_bytes;    // of Z, and of the sums that moments.cuh keeps
    int64_t run_positions;
};

struct PatchTask {
    PatchInput input;
    PatchGeometry geometry;
    int64_t groups;
    DType sums;       // float32 or float64: of all arrays but the input
    int64_t columns;  // of Ω; 0: the covariance itself
    PatchDevice device;
    PatchTuning tuning;
};

// Positions are taken in runs, one after the other into the same partial sums. The tiles of the result are taken in
// rounds, so that the workspace stays small: of a covariance a range of all groups' tiles, of a sketch some groups.
struct PatchPlan {
    struct Run {
        int64_t first_sample;
        int64_t first_position;  // counted from that sample
        int64_t positions;
    };
    struct Round {
        int64_t first_group, groups;
        int64_t first_tile, tiles;  // among those of these groups
        int64_t splits;             // of each run
    };
    std::string unit;  // the arithmetic, as instances are named
    int64_t dim;
    int64_t positions_per_sample;
    int64_t tiles_down, tiles_across;  // of one group
    int64_t tile_rows, tile_columns;
    std::vector<Run> runs;
    std::vector<Round> rounds;
    int64_t partial_elements;  // workspace: partial sums, then the image Z, both of dtype `sums`
    int64_t image_elements;
};

// Empty runs and rounds where there is nothing to add.
PatchPlan patch_plan(const PatchTask& task);

// out [groups, dim, dim] += alpha · Σ u uᵀ: the lower triangle counts, both are written.
Launches patch_covariance_launches(const PatchTask& task, void* out, double alpha, void* workspace);

// sketch [groups, dim, columns] += alpha · Σ u (uᵀ omega).
Launches patch_sketch_launches(const PatchTask& task, const void* omega, void* sketch, double alpha, void* workspace);

}  // namespace igm
