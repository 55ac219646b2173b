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
    int64_t image_bytes;    // of Z, of the staged input, and of the sums that moments.cuh keeps
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

// Positions are taken in runs of whole samples or parts of one, one after the other into the same partial sums. The
// tiles of the result are taken in rounds, so that the workspace stays small: of a covariance a range of all groups'
// tiles, of a sketch some groups.
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

    int64_t together;      // how rows are numbered, see patch_place
    int64_t rows;          // of a group's patches, with those of the channels that fill the last 16 bytes
    int64_t columns;       // of Ω and Z in the workspace
    int64_t image_splits;  // of the rows that an image is summed over
    int64_t split_rows;
    int64_t positions_per_sample;
    int64_t tiles_down, tiles_across;  // of one group
    int64_t tile_rows, tile_columns;
    std::vector<Run> runs;
    std::vector<Round> rounds;
    // Workspace: partial sums, the image Z and the staged Ω, of dtype `sums`; the staged input.
    int64_t partial_elements, image_elements, omega_elements, masks;
    int64_t staged_bytes;  // of a run's samples, or none (stage.cuh)
};

// Empty runs and rounds where there is nothing to add.
PatchPlan patch_plan(const PatchTask& task);

int64_t patch_workspace_bytes(const PatchPlan& plan, DType sums);

// out [groups, dim, dim] += alpha · Σ u uᵀ, the lower triangle.
Launches patch_covariance_launches(const PatchTask& task, void* out, double alpha, void* workspace);

// sketch [groups, dim, columns] += alpha · Σ u (uᵀ omega).
Launches patch_sketch_launches(const PatchTask& task, const void* omega, void* sketch, double alpha, void* workspace);

}  // namespace igm
