#include "covariance/patch_plan.hpp"

#include <algorithm>
#include <array>

#include "common/parallel.hpp"
#include "covariance/patch_operand.hpp"
#include "covariance/patch_params.hpp"
#include "covariance/stage_params.hpp"
#include "covariance/stage_plan.hpp"

namespace igm {

namespace {

// Of a split: fewer would not pay for the partial sums that they leave behind.
constexpr int64_t kFewestPositions = 128;
constexpr int64_t kFewestRows = 128;
// Of an image: for the multiprocessors of the largest GPUs, three each.
constexpr int64_t kBlocksWanted = 396;
// Splits begin where a step begins, whatever the tile's depth.
constexpr int64_t kPositionUnit = 32;
// Positions and tiles are 32-bit numbers on the device.
constexpr int64_t kMostPositions = 1 << 30;
constexpr int64_t kMost = 2147483647;

struct Tile {
    std::string unit;
    DType element;   // what it multiplies
    bool in_pieces;  // patch_pieces.cuh, otherwise patch_gather.cuh
    int64_t rows, columns, threads, shared_bytes;
};

template <class Unit, int kJob>
Tile tile_of(const char* unit, DType element, bool in_pieces = true) {
    using Tiling = PatchTiling<Unit, kJob>;
    return {unit, element, in_pieces, Tiling::kRows, Tiling::kColumns, Tiling::kThreads, Tiling::kSharedBytes};
}

// Products of half precision are exact in float32; everything else is converted to the sums' type first. Matrix units
// for float32 came with 8.0.
template <int kJob>
Tile choose_tile(const PatchTask& task) {
    if (task.sums == DType::kFloat64) {
        return tile_of<UnitPlain<double>, kJob>("igm::UnitPlain<double>", DType::kFloat64, false);
    }
    if (task.device.capability < 80) {
        return tile_of<UnitPlain<float>, kJob>("igm::UnitPlain<float>", DType::kFloat32, false);
    }
    if constexpr (kJob == kPatchCovariance) {
        // Halves of few channels would be filled up to eight; as TF32, which holds them exactly, to four.
        if (element_bytes(task.input.dtype) == 2 && task.input.sizes[1] <= 4 * task.groups) {
            return tile_of<UnitTf32, kJob>("igm::UnitTf32", DType::kFloat32);
        }
        if (task.input.dtype == DType::kBFloat16) {
            return tile_of<UnitHalf<BFloat16>, kJob>("igm::UnitHalf<igm::BFloat16>", DType::kBFloat16);
        }
        if (task.input.dtype == DType::kFloat16) {
            return tile_of<UnitHalf<Float16>, kJob>("igm::UnitHalf<igm::Float16>", DType::kFloat16);
        }
    }
    if constexpr (kJob != kPatchCovariance) {
        const bool half = task.input.dtype == DType::kBFloat16 || task.input.dtype == DType::kFloat16;
        if (half && !task.device.tf32) {
            return tile_of<UnitTf32x2, kJob>("igm::UnitTf32x2", DType::kFloat32);
        }
    }
    return task.device.tf32 ? tile_of<UnitTf32, kJob>("igm::UnitTf32", DType::kFloat32)
                            : tile_of<UnitTf32x3, kJob>("igm::UnitTf32x3", DType::kFloat32);
}

void check_sizes(const PatchTask& task) {
    const char* way_out = "Split the input, or move it to the CPU.";
    int64_t taps = 1, positions = 1;
    for (int axis = 0; axis < 3; ++axis) {
        const PatchGeometry& geometry = task.geometry;
        const int64_t padded = task.input.sizes[axis + 2] + padding_before(geometry, axis) +
                               geometry.padding[2 * (2 - axis) + 1] + geometry.dilation[axis] + geometry.stride[axis];
        IGM_EXPECT(padded <= kMostPositions, text("an axis of ", padded, " places with its padding"),
                   text("at most ", kMostPositions, " on CUDA"), way_out);
        taps = std::min(kMost, taps * task.geometry.kernel[axis]);
        positions = std::min(kMost, positions * patch_outputs(task.input, geometry, axis));
    }
    IGM_EXPECT(positions <= kMostPositions, "a sample with more output positions",
               text("at most ", kMostPositions, " on CUDA"), way_out);
    IGM_EXPECT(0 < task.tuning.run_positions && task.tuning.run_positions <= kMostPositions,
               text("runs of ", task.tuning.run_positions, " positions"), text("1 … ", kMostPositions),
               "See igm_fast/ops/patches.py.");
    const int64_t dim = std::min(kMost, task.input.sizes[1] / task.groups) * taps;
    IGM_EXPECT(dim <= kMostPositions / 8 && task.columns <= kMostPositions,  // 8: channels that fill 16 bytes
               text("patches of length ", dim, " and ", task.columns, " columns"),
               text("at most ", kMostPositions / 8, " on CUDA"), way_out);
}

// Positions are taken in runs of whole samples, or in parts of one.
std::vector<PatchPlan::Run> make_runs(int64_t samples, int64_t per_sample, int64_t most) {
    std::vector<PatchPlan::Run> runs;
    if (most >= per_sample) {
        const int64_t at_once = most / per_sample;
        for (int64_t sample = 0; sample < samples; sample += at_once) {
            runs.push_back({sample, 0, std::min(at_once, samples - sample) * per_sample});
        }
        return runs;
    }
    for (int64_t sample = 0; sample < samples; ++sample) {
        for (int64_t first = 0; first < per_sample; first += most) {
            runs.push_back({sample, first, std::min(most, per_sample - first)});
        }
    }
    return runs;
}

int64_t samples_of(const PatchPlan::Run& run, int64_t per_sample) {
    return divide_up(run.first_position + run.positions, per_sample);
}

}  // namespace

PatchPlan patch_plan(const PatchTask& task) {
    check_sizes(task);
    const bool sketch = task.columns > 0;
    const Tile tile = sketch ? choose_tile<kPatchSketch>(task) : choose_tile<kPatchCovariance>(task);
    const int64_t bytes = element_bytes(task.sums);
    PatchPlan plan{};
    plan.unit = tile.unit;
    plan.tile_rows = tile.rows;
    plan.tile_columns = tile.columns;
    plan.positions_per_sample = patch_outputs(task.input, task.geometry);
    const int64_t count = task.input.sizes[0] * plan.positions_per_sample;
    if (count == 0 || task.input.sizes[1] == 0) {
        return plan;
    }
    const PatchOperand operand = patch_operand(task, tile.element, tile.in_pieces);
    plan.together = operand.together;
    plan.rows = operand.channels * taps_of(task.geometry);
    plan.columns = tile.in_pieces ? round_up(task.columns, 4) : task.columns;
    plan.tiles_down = divide_up(plan.rows, tile.rows);
    plan.tiles_across = sketch ? divide_up(task.columns, tile.columns) : plan.tiles_down;
    const int64_t tiles = sketch ? plan.tiles_down * plan.tiles_across : plan.tiles_down * (plan.tiles_down + 1) / 2;
    IGM_EXPECT(tiles * task.groups <= kMost, text(task.groups, " matrices of ", tiles, " tiles"),
               text("at most ", kMost, " tiles on CUDA"), "Split the groups over several calls.");

    const int64_t blocks = std::max<int64_t>(1, task.tuning.partial_bytes / (tile.rows * tile.columns * bytes));
    const int64_t groups_at_once = sketch ? std::clamp<int64_t>(blocks / tiles, 1, task.groups) : task.groups;
    int64_t run_positions = std::min(task.tuning.run_positions, count);
    if (sketch) {
        const int64_t fitting = task.tuning.image_bytes / (bytes * groups_at_once * plan.columns);
        run_positions = std::min(run_positions, std::max(fitting / kPositionUnit, int64_t{1}) * kPositionUnit);
    }
    const int64_t sample_bytes = operand.sample_stride * element_bytes(operand.dtype);
    if (operand.staged) {
        const int64_t fitting = std::max<int64_t>(1, task.tuning.image_bytes / std::max<int64_t>(1, sample_bytes));
        run_positions = std::min(run_positions, std::min(fitting, task.input.sizes[0]) * plan.positions_per_sample);
    }
    plan.runs = make_runs(task.input.sizes[0], plan.positions_per_sample, run_positions);
    run_positions = 0;
    int64_t staged_samples = 0;
    for (const PatchPlan::Run& run : plan.runs) {
        run_positions = std::max(run_positions, run.positions);
        staged_samples = std::max(staged_samples, samples_of(run, plan.positions_per_sample));
    }

    const int64_t most_splits = divide_up(run_positions, kFewestPositions);
    for (int64_t group = 0; group < task.groups; group += groups_at_once) {
        const int64_t groups = std::min(groups_at_once, task.groups - group);
        const int64_t all = groups * tiles, at_once = sketch ? all : std::min(all, blocks);
        for (int64_t first = 0; first < all; first += at_once) {
            const int64_t now = std::min(at_once, all - first);
            const int64_t splits = std::clamp<int64_t>(blocks / now, 1, most_splits);
            plan.rounds.push_back({group, groups, first, now, splits});
            plan.partial_elements = std::max(plan.partial_elements, now * splits * tile.rows * tile.columns);
        }
    }
    if (sketch) {
        const Tile image = choose_tile<kPatchImage>(task);
        const int64_t elements = groups_at_once * run_positions * plan.columns;
        const int64_t image_tiles = groups_at_once * divide_up(run_positions, image.rows) * plan.tiles_across;
        const int64_t most = std::min(plan.rows / kFewestRows, task.tuning.image_bytes / (elements * bytes));
        plan.image_splits = std::clamp<int64_t>(kBlocksWanted / image_tiles, 1, std::max<int64_t>(most, 1));
        plan.split_rows = round_up(divide_up(plan.rows, plan.image_splits), kPositionUnit);
        plan.image_splits = divide_up(plan.rows, plan.split_rows);
        plan.image_elements = plan.image_splits * elements;
    }
    plan.omega_elements = sketch ? task.groups * plan.rows * plan.columns : 0;
    plan.masks = sketch ? task.groups * plan.tiles_across * divide_up(plan.rows, kMaskDepths) : 0;
    plan.staged_bytes = operand.staged ? staged_samples * sample_bytes : 0;
    return plan;
}

namespace {

// Where in the workspace what lies, in bytes; the partial sums come first.
struct Workspace {
    int64_t image, omega, masks, staged, bytes;

    Workspace(const PatchPlan& plan, int64_t sum_bytes) {
        image = round_up(plan.partial_elements * sum_bytes, 16);
        omega = image + round_up(plan.image_elements * sum_bytes, 16);
        masks = omega + round_up(plan.omega_elements * sum_bytes, 16);
        staged = masks + round_up(plan.masks * int64_t{sizeof(unsigned)}, 16);
        bytes = staged + plan.staged_bytes;
    }
};

}  // namespace

int64_t patch_workspace_bytes(const PatchPlan& plan, DType sums) { return Workspace(plan, element_bytes(sums)).bytes; }

namespace {

KernelLaunch stage_omega_launch(const PatchTask& task, const PatchPlan& plan, const void* omega, void* output) {
    StageOmega params{};
    params.omega = omega;
    params.output = output;
    params.channels = static_cast<int>(task.input.sizes[1] / task.groups);
    params.taps = static_cast<int>(taps_of(task.geometry));
    params.together = static_cast<int>(plan.together);
    params.rows = static_cast<int>(plan.rows);
    params.columns = static_cast<int>(task.columns);
    params.pitch = static_cast<int>(plan.columns);
    params.elements = plan.omega_elements;
    const char* sum = task.sums == DType::kFloat64 ? type_name<double>() : type_name<float>();
    const LaunchPlan launch{divide_up(plan.omega_elements, kStageThreads), kStageThreads, 0};
    check_plan("stage_omega_kernel", launch, {});
    return make_launch(text("igm::stage_omega_kernel<", sum, ">"), launch, params);
}

// All rounds of a task; omega is for a sketch.
Launches make_launches(const PatchTask& task, const void* omega, void* out, double alpha, void* workspace_data) {
    const PatchPlan plan = patch_plan(task);
    Launches launches;
    if (plan.rounds.empty()) {
        return launches;
    }
    const bool sketch = task.columns > 0;
    const Tile tile = sketch ? choose_tile<kPatchSketch>(task) : choose_tile<kPatchCovariance>(task);
    const Tile image_tile = choose_tile<kPatchImage>(task);
    const int64_t bytes = element_bytes(task.sums);
    const int64_t channels = task.input.sizes[1] / task.groups, dim = channels * taps_of(task.geometry);
    const char* const sum = task.sums == DType::kFloat64 ? type_name<double>() : type_name<float>();
    const auto instance = [&](int job) { return text("igm::patch_product_kernel<", plan.unit, ", ", job, ">"); };
    const auto add = [&](const std::string& kernel, const LaunchPlan& launch, const auto& params) {
        check_plan(kernel.c_str(), launch, {});
        launches.push_back(make_launch(kernel, launch, params));
    };
    const Workspace at(plan, bytes);
    unsigned char* const workspace = static_cast<unsigned char*>(workspace_data);
    const PatchOperand operand = patch_operand(task, tile.element, tile.in_pieces);
    const PatchSource all = patch_source(task, operand);
    if (sketch) {
        launches.push_back(stage_omega_launch(task, plan, omega, workspace + at.omega));
        OmegaMask mask{};
        mask.omega = workspace + at.omega;
        mask.output = reinterpret_cast<unsigned*>(workspace + at.masks);
        mask.rows = static_cast<int>(plan.rows);
        mask.pitch = static_cast<int>(plan.columns);
        mask.tiles = static_cast<int>(plan.tiles_across);
        mask.tile_columns = static_cast<int>(image_tile.columns);
        mask.mask_count = static_cast<int>(divide_up(plan.rows, kMaskDepths));
        mask.masks = plan.masks;
        add(text("igm::omega_mask_kernel<", sum, ">"), {divide_up(plan.masks, kStageThreads / 32), kStageThreads, 0},
            mask);
    }
    std::array<int64_t, 2> in_stage{-1, -1};  // first sample and number of samples
    for (const PatchPlan::Round& round : plan.rounds) {
        PatchSource source = all;
        for (const PatchPlan::Run& run : plan.runs) {
            const unsigned char* input = static_cast<const unsigned char*>(task.input.data) +
                                         run.first_sample * task.input.strides[0] * element_bytes(task.input.dtype);
            if (plan.staged_bytes > 0) {
                const std::array<int64_t, 2> needed{run.first_sample, samples_of(run, plan.positions_per_sample)};
                if (needed != in_stage) {
                    PatchInput part = task.input;
                    part.data = input;
                    part.sizes[0] = needed[1];
                    launches.push_back(
                        stage_input_launch(part, task.groups, operand.dtype, operand.channels, workspace + at.staged));
                    in_stage = needed;
                }
                input = workspace + at.staged;
            }
            source.input = input + round.first_group * operand.channels * operand.channel_stride * all.element_bytes;
            PatchProduct product{};
            product.source = source;
            product.first_position = static_cast<int>(run.first_position);
            product.positions = static_cast<int>(run.positions);
            product.columns = static_cast<int>(plan.columns);
            if (sketch) {
                PatchProduct first = product;
                first.right = workspace + at.omega + round.first_group * plan.rows * plan.columns * bytes;
                first.result = workspace + at.image;
                first.tiles_down = static_cast<int>(divide_up(run.positions, image_tile.rows));
                first.tiles_across = static_cast<int>(divide_up(task.columns, image_tile.columns));
                first.mask_count = static_cast<int>(divide_up(plan.rows, kMaskDepths));
                first.masks = reinterpret_cast<const unsigned*>(workspace + at.masks) +
                              round.first_group * plan.tiles_across * first.mask_count;
                first.split_depths = static_cast<int>(plan.split_rows);
                const int64_t tiles = round.groups * first.tiles_down * first.tiles_across;
                first.tiles = static_cast<int>(std::min(tiles, kMost));
                add(instance(kPatchImage), {tiles * plan.image_splits, image_tile.threads, image_tile.shared_bytes},
                    first);
                if (plan.image_splits > 1) {
                    const int64_t elements = round.groups * run.positions * plan.columns;
                    add(text("igm::image_sum_kernel<", sum, ">"),
                        {divide_up(elements, kReductionThreads), kReductionThreads, 0},
                        ImageSum{first.result, elements, static_cast<int>(plan.image_splits)});
                }
            }
            product.right = workspace + at.image;
            product.result = workspace;
            product.split_depths = static_cast<int>(round_up(divide_up(run.positions, round.splits), kPositionUnit));
            product.tiles_down = static_cast<int>(plan.tiles_down);
            product.tiles_across = static_cast<int>(plan.tiles_across);
            product.first_tile = static_cast<int>(round.first_tile);
            product.tiles = static_cast<int>(round.tiles);
            product.accumulate = &run != plan.runs.data();
            add(instance(sketch ? kPatchSketch : kPatchCovariance),
                {round.tiles * round.splits, tile.threads, tile.shared_bytes}, product);
        }
        PatchReduction reduction{};
        reduction.partials = workspace;
        reduction.out =
            static_cast<unsigned char*>(out) + round.first_group * dim * (sketch ? task.columns : dim) * bytes;
        reduction.alpha = alpha;
        reduction.splits = static_cast<int>(round.splits);
        reduction.tile_rows = static_cast<int>(tile.rows);
        reduction.tile_columns = static_cast<int>(tile.columns);
        reduction.tiles_down = static_cast<int>(plan.tiles_down);
        reduction.tiles_across = static_cast<int>(plan.tiles_across);
        reduction.first_tile = static_cast<int>(round.first_tile);
        reduction.tiles = static_cast<int>(round.tiles);
        reduction.columns = static_cast<int>(sketch ? task.columns : dim);
        reduction.channels = static_cast<int>(channels);
        reduction.taps = all.taps;
        reduction.together = all.together;
        add(text("igm::patch_reduction_kernel<", sum, ", ", bool_name(!sketch), ">"),
            {round.tiles * (tile.rows / kReductionRows), kReductionThreads,
             tile.columns * (kReductionRows * int64_t{sizeof(double)} + 2 * int64_t{sizeof(int)})},
            reduction);
    }
    return launches;
}

}  // namespace

Launches patch_covariance_launches(const PatchTask& task, void* out, double alpha, void* workspace) {
    return make_launches(task, nullptr, out, alpha, workspace);
}

Launches patch_sketch_launches(const PatchTask& task, const void* omega, void* sketch, double alpha, void* workspace) {
    return task.columns > 0 ? make_launches(task, omega, sketch, alpha, workspace) : Launches{};
}

}  // namespace igm
