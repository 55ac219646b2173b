#include "covariance/patch_plan.hpp"

#include <algorithm>

#include "common/parallel.hpp"
#include "covariance/patch_params.hpp"

namespace igm {

namespace {

// Of a split: fewer would not pay for the partial sums that they leave behind.
constexpr int64_t kFewestPositions = 128;
// Splits begin where a step begins, whatever the tile's depth.
constexpr int64_t kPositionUnit = 32;
// Positions and tiles are 32-bit numbers on the device.
constexpr int64_t kMostPositions = 1 << 30;
constexpr int64_t kMost = 2147483647;

struct Tile {
    std::string unit;
    DType element;  // what it multiplies
    int64_t rows, columns, depth, threads, shared_bytes;
};

template <class Unit, int kJob>
Tile tile_of(const char* unit, DType element) {
    using Tiling = PatchTiling<Unit, kJob>;
    return {unit, element, Tiling::kRows, Tiling::kColumns, Tiling::kDepth, Tiling::kThreads, Tiling::kSharedBytes};
}

// Products of half precision are exact in float32; everything else is converted to the sums' type first. Matrix units
// for float32 came with 8.0.
template <int kJob>
Tile choose_tile(const PatchTask& task) {
    if (task.sums == DType::kFloat64) {
        return tile_of<UnitPlain<double>, kJob>("igm::UnitPlain<double>", DType::kFloat64);
    }
    if (task.device.capability < 80) {
        return tile_of<UnitPlain<float>, kJob>("igm::UnitPlain<float>", DType::kFloat32);
    }
    if constexpr (kJob == kPatchCovariance) {
        if (task.input.dtype == DType::kBFloat16) {
            return tile_of<UnitHalf<BFloat16>, kJob>("igm::UnitHalf<igm::BFloat16>", DType::kBFloat16);
        }
        if (task.input.dtype == DType::kFloat16) {
            return tile_of<UnitHalf<Float16>, kJob>("igm::UnitHalf<igm::Float16>", DType::kFloat16);
        }
    }
    return task.device.tf32 ? tile_of<UnitTf32, kJob>("igm::UnitTf32", DType::kFloat32)
                            : tile_of<UnitTf32x3, kJob>("igm::UnitTf32x3", DType::kFloat32);
}

int64_t element_bytes(DType dtype) {
    return dispatch(dtype, [](auto tag) { return static_cast<int64_t>(sizeof(typename decltype(tag)::Type)); });
}

int64_t before(const PatchGeometry& geometry, int axis) { return geometry.padding[2 * (2 - axis)]; }

int64_t outputs(const PatchTask& task, int axis) {
    const PatchGeometry& geometry = task.geometry;
    const int64_t around = before(geometry, axis) + geometry.padding[2 * (2 - axis) + 1];
    const int64_t span = geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1;
    return (task.input.sizes[axis + 2] + around - span) / geometry.stride[axis] + 1;
}

int bits_for(int64_t value) {
    int bits = 1;
    while (value >> bits) {
        ++bits;
    }
    return bits;
}

PatchSource patch_source(const PatchTask& task, DType multiplied) {
    const PatchInput& input = task.input;
    const PatchGeometry& geometry = task.geometry;
    PatchSource source{};
    source.input = input.data;
    source.dtype = static_cast<int>(input.dtype);
    source.element_bytes = static_cast<int>(element_bytes(input.dtype));
    source.sample_stride = input.strides[0];
    source.channel_stride = input.strides[1];
    int shift = 0;
    for (int axis = 0; axis < 3; ++axis) {
        source.axis_stride[axis] = input.strides[axis + 2];
        source.sizes[axis] = static_cast<int>(input.sizes[axis + 2]);
        source.outputs[axis] = static_cast<int>(outputs(task, axis));
        source.kernel[axis] = static_cast<int>(geometry.kernel[axis]);
        source.step[axis] = static_cast<int>(geometry.stride[axis]);
        source.before[axis] = static_cast<int>(before(geometry, axis));
        source.dilation[axis] = static_cast<int>(geometry.dilation[axis]);
        const int guard = bits_for(geometry.kernel[axis]);
        source.shift[axis] = shift;
        source.guards |= 1u << (shift + guard) % 32;
        shift += guard + 1;
    }
    IGM_EXPECT(shift <= 32, text("kernel ", geometry.kernel[0], "×", geometry.kernel[1], "×", geometry.kernel[2]),
               "sizes along the three axes whose bits fit into 29 on CUDA", "Move the tensors to the CPU.");
    source.channels = static_cast<int>(input.sizes[1] / task.groups);
    source.taps = static_cast<int>(geometry.kernel[0] * geometry.kernel[1] * geometry.kernel[2]);
    source.dim = source.channels * source.taps;
    source.tap_major = source.taps > 1 && std::abs(input.strides[1]) < std::abs(input.strides[4]);
    const int64_t piece = 16 / source.element_bytes;
    bool whole = (source.tap_major || source.taps == 1) && input.strides[1] == 1 && source.channels % piece == 0 &&
                 (input.sizes[0] == 1 || input.strides[0] % piece == 0) &&
                 reinterpret_cast<uintptr_t>(input.data) % 16 == 0;
    for (int axis = 0; axis < 3; ++axis) {
        const bool fixed = input.sizes[axis + 2] == 1 && source.outputs[axis] == 1 && source.before[axis] == 0;
        whole = whole && (fixed || input.strides[axis + 2] % piece == 0);
    }
    source.in_pieces = whole && task.device.capability >= 80 && input.dtype == multiplied;
    return source;
}

void check_sizes(const PatchTask& task) {
    const char* way_out = "Split the input, or move it to the CPU.";
    int64_t taps = 1, positions = 1;
    for (int axis = 0; axis < 3; ++axis) {
        const PatchGeometry& geometry = task.geometry;
        const int64_t padded = task.input.sizes[axis + 2] + before(geometry, axis) +
                               geometry.padding[2 * (2 - axis) + 1] + geometry.dilation[axis] + geometry.stride[axis];
        IGM_EXPECT(padded <= kMostPositions, text("an axis of ", padded, " places with its padding"),
                   text("at most ", kMostPositions, " on CUDA"), way_out);
        taps = std::min(kMost, taps * task.geometry.kernel[axis]);
        positions = std::min(kMost, positions * outputs(task, axis));
    }
    IGM_EXPECT(positions <= kMostPositions, "a sample with more output positions",
               text("at most ", kMostPositions, " on CUDA"), way_out);
    IGM_EXPECT(0 < task.tuning.run_positions && task.tuning.run_positions <= kMostPositions,
               text("runs of ", task.tuning.run_positions, " positions"), text("1 … ", kMostPositions),
               "See igm_fast/ops/patches.py.");
    int64_t reach = (task.input.sizes[1] / task.groups - 1) * std::abs(task.input.strides[1]);
    for (int axis = 0; axis < 3; ++axis) {
        reach +=
            (task.geometry.kernel[axis] - 1) * task.geometry.dilation[axis] * std::abs(task.input.strides[axis + 2]);
    }
    IGM_EXPECT(reach <= kMost, text("an input with strides by which a patch reaches ", reach, " elements far"),
               text("at most ", kMost, " on CUDA"), "Use .contiguous(), or move the tensors to the CPU.");
    const int64_t dim = std::min(kMost, task.input.sizes[1] / task.groups) * taps;
    IGM_EXPECT(dim <= kMostPositions && task.columns <= kMostPositions,
               text("patches of length ", dim, " and ", task.columns, " columns"),
               text("at most ", kMostPositions, " on CUDA"), way_out);
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
    plan.dim =
        task.input.sizes[1] / task.groups * task.geometry.kernel[0] * task.geometry.kernel[1] * task.geometry.kernel[2];
    plan.positions_per_sample = outputs(task, 0) * outputs(task, 1) * outputs(task, 2);
    const int64_t count = task.input.sizes[0] * plan.positions_per_sample;
    if (count == 0 || plan.dim == 0) {
        return plan;
    }
    plan.tiles_down = divide_up(plan.dim, tile.rows);
    plan.tiles_across = sketch ? divide_up(task.columns, tile.columns) : plan.tiles_down;
    const int64_t tiles = sketch ? plan.tiles_down * plan.tiles_across : plan.tiles_down * (plan.tiles_down + 1) / 2;
    IGM_EXPECT(tiles * task.groups <= kMost, text(task.groups, " matrices of ", tiles, " tiles"),
               text("at most ", kMost, " tiles on CUDA"), "Split the groups over several calls.");

    const int64_t blocks = std::max<int64_t>(1, task.tuning.partial_bytes / (tile.rows * tile.columns * bytes));
    const int64_t groups_at_once = sketch ? std::clamp<int64_t>(blocks / tiles, 1, task.groups) : task.groups;
    int64_t run_positions = std::min(task.tuning.run_positions, count);
    if (sketch) {
        const int64_t fitting = task.tuning.image_bytes / (bytes * groups_at_once * task.columns);
        run_positions = std::min(run_positions, std::max(fitting / kPositionUnit, int64_t{1}) * kPositionUnit);
    }
    for (int64_t first = 0; first < count; first += run_positions) {
        plan.runs.push_back({first / plan.positions_per_sample, first % plan.positions_per_sample,
                             std::min(run_positions, count - first)});
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
    plan.image_elements = sketch ? groups_at_once * run_positions * task.columns : 0;
    return plan;
}

namespace {

// All rounds of a task; omega is for a sketch.
Launches make_launches(const PatchTask& task, const void* omega, void* out, double alpha, void* workspace) {
    const PatchPlan plan = patch_plan(task);
    Launches launches;
    if (plan.rounds.empty()) {
        return launches;
    }
    const bool sketch = task.columns > 0;
    const Tile tile = sketch ? choose_tile<kPatchSketch>(task) : choose_tile<kPatchCovariance>(task);
    const Tile image_tile = choose_tile<kPatchImage>(task);
    const int64_t bytes = element_bytes(task.sums), width = sketch ? task.columns : plan.dim;
    const auto instance = [&](int job) { return text("igm::patch_product_kernel<", plan.unit, ", ", job, ">"); };
    const auto add = [&](const std::string& kernel, const LaunchPlan& launch, const auto& params) {
        check_plan(kernel.c_str(), launch, {});
        launches.push_back(make_launch(kernel, launch, params));
    };
    unsigned char* partials = static_cast<unsigned char*>(workspace);
    unsigned char* image = partials + plan.partial_elements * bytes;
    const PatchSource all = patch_source(task, tile.element);
    for (const PatchPlan::Round& round : plan.rounds) {
        PatchSource source = all;
        const int64_t group_offset = round.first_group * plan.dim * width * bytes;
        for (const PatchPlan::Run& run : plan.runs) {
            source.input =
                static_cast<const unsigned char*>(task.input.data) +
                (round.first_group * all.channels * all.channel_stride + run.first_sample * all.sample_stride) *
                    all.element_bytes;
            PatchProduct product{};
            product.source = source;
            product.first_position = static_cast<int>(run.first_position);
            product.positions = static_cast<int>(run.positions);
            product.columns = static_cast<int>(task.columns);
            if (sketch) {
                PatchProduct first = product;
                first.source.tap_major = true;  // Ω is zero at whole taps
                first.source.in_pieces = false;
                first.right = static_cast<const unsigned char*>(omega) + group_offset;
                first.result = image;
                first.tiles_down = static_cast<int>(divide_up(run.positions, image_tile.rows));
                first.tiles_across = static_cast<int>(divide_up(task.columns, image_tile.columns));
                const int64_t tiles = round.groups * first.tiles_down * first.tiles_across;
                first.tiles = static_cast<int>(std::min(tiles, kMost));
                add(instance(kPatchImage), {tiles, image_tile.threads, image_tile.shared_bytes}, first);
            }
            product.right = image;
            product.result = partials;
            product.split_positions =
                static_cast<int>(divide_up(divide_up(run.positions, round.splits), kPositionUnit) * kPositionUnit);
            product.tiles_down = static_cast<int>(plan.tiles_down);
            product.tiles_across = static_cast<int>(plan.tiles_across);
            product.first_tile = static_cast<int>(round.first_tile);
            product.tiles = static_cast<int>(round.tiles);
            product.accumulate = &run != plan.runs.data();
            add(instance(sketch ? kPatchSketch : kPatchCovariance),
                {round.tiles * round.splits, tile.threads, tile.shared_bytes}, product);
        }
        PatchReduction reduction{};
        reduction.partials = partials;
        reduction.out = static_cast<unsigned char*>(out) + group_offset;
        reduction.alpha = alpha;
        reduction.splits = static_cast<int>(round.splits);
        reduction.tile_rows = static_cast<int>(tile.rows);
        reduction.tile_columns = static_cast<int>(tile.columns);
        reduction.tiles_down = static_cast<int>(plan.tiles_down);
        reduction.tiles_across = static_cast<int>(plan.tiles_across);
        reduction.first_tile = static_cast<int>(round.first_tile);
        reduction.tiles = static_cast<int>(round.tiles);
        reduction.dim = static_cast<int>(plan.dim);
        reduction.columns = static_cast<int>(width);
        reduction.channels = all.channels;
        reduction.taps = all.taps;
        reduction.tap_major = all.tap_major;
        const int64_t parts = divide_up(tile.rows, kReductionTile) * divide_up(tile.columns, kReductionTile);
        const char* sum = task.sums == DType::kFloat64 ? type_name<double>() : type_name<float>();
        add(text("igm::patch_reduction_kernel<", sum, ", ", bool_name(!sketch), ">"),
            {round.tiles * parts, kReductionThreads, 0}, reduction);
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
