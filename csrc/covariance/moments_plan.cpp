#include "covariance/moments_plan.hpp"

#include <algorithm>
#include <array>
#include <numeric>

#include "common/parallel.hpp"
#include "covariance/moments_params.hpp"
#include "covariance/patch_operand.hpp"

namespace igm {

namespace {

// Threads that keep the largest GPUs reading; runs of samples are made for as many.
constexpr int64_t kThreadsWanted = 1 << 18;
// Sizes are 32-bit numbers on the device.
constexpr int64_t kMostAlongAxis = 1 << 30;

template <class Array>
bool all_are(const Array& values, int64_t value) {
    return std::all_of(values.begin(), values.end(), [&](int64_t other) { return other == value; });
}

}  // namespace

MomentsPlan moments_plan(const PatchTask& task) {
    const PatchGeometry& geometry = task.geometry;
    MomentsPlan plan{};
    plan.input = task.input;
    PatchInput& seen = plan.input;
    if (all_are(geometry.kernel, 1) && all_are(geometry.stride, 1) && all_are(geometry.padding, 0)) {
        // Every place is as good as every other: the longest axis (the rows of a linear layer, say) is summed first.
        for (int axis = 2; axis < 5; ++axis) {
            if (seen.sizes[axis] > seen.sizes[0]) {
                std::swap(seen.sizes[axis], seen.sizes[0]);
                std::swap(seen.strides[axis], seen.strides[0]);
            }
        }
    }
    for (const int64_t size : seen.sizes) {
        IGM_EXPECT(size <= kMostAlongAxis, text("an input with ", size, " entries along an axis"),
                   text("at most ", kMostAlongAxis, " on CUDA"), "Split the input, or move it to the CPU.");
    }
    const int64_t channels = seen.sizes[1], places = seen.sizes[2] * seen.sizes[3] * seen.sizes[4];
    const int64_t seen_places = patch_outputs(seen, geometry);
    if (channels * places * seen.sizes[0] * seen_places == 0) {
        return plan;
    }
    const int64_t most = task.tuning.image_bytes / sizeof(double);  // stays in L2 until the taps have read it
    const int64_t at_once = std::clamp<int64_t>(most / (2 * places), 1, channels);
    for (int64_t first = 0; first < channels; first += at_once) {
        const int64_t now = std::min(at_once, channels - first), locations = now * places;
        const int64_t fitting = std::max<int64_t>(1, most / (2 * locations));
        const int64_t wanted = std::min({divide_up(kThreadsWanted, locations), fitting, seen.sizes[0]});
        const int64_t runs = divide_up(seen.sizes[0], divide_up(seen.sizes[0], wanted));
        plan.parts.push_back({first, now, runs});
        plan.sum_doubles = std::max(plan.sum_doubles, 2 * runs * locations);
    }
    plan.square_doubles = channels * taps_of(geometry);
    return plan;
}

Launches moments_launches(const PatchTask& task, void* total, void* trace, double alpha, double* workspace) {
    const PatchGeometry& geometry = task.geometry;
    const MomentsPlan plan = moments_plan(task);
    const PatchInput& seen = plan.input;
    const bool narrow = task.sums == DType::kFloat32;
    const std::string sum = text("<", narrow ? type_name<float>() : type_name<double>(), ">");
    const int64_t bytes = element_bytes(seen.dtype), taps = taps_of(geometry);
    const int64_t places = seen.sizes[2] * seen.sizes[3] * seen.sizes[4];
    double* squares = workspace + plan.sum_doubles;
    Launches launches;
    const auto add = [&](const std::string& kernel, int64_t grid, const auto& params) {
        const LaunchPlan launch{grid, kMomentThreads, 0};
        check_plan(kernel.c_str(), launch, {});
        launches.push_back(make_launch(kernel, launch, params));
    };
    // Axes of a location (channel, depth, height, width) by their stride, the smallest last; size 1 anywhere.
    std::array<int, 4> order{0, 1, 2, 3};
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return std::abs(seen.strides[a + 1]) > std::abs(seen.strides[b + 1]); });
    for (const MomentsPlan::Part& part : plan.parts) {
        std::array<int64_t, 4> sizes{part.channels, seen.sizes[2], seen.sizes[3], seen.sizes[4]};
        LocationMoments location{};
        location.input = static_cast<const unsigned char*>(seen.data) + part.first_channel * seen.strides[1] * bytes;
        location.dtype = static_cast<int>(seen.dtype);
        location.narrow = narrow;
        location.sample_stride = seen.strides[0] * bytes;
        location.locations = part.channels * places;
        location.samples = static_cast<int>(seen.sizes[0]);
        location.run_samples = static_cast<int>(divide_up(seen.sizes[0], part.runs));
        location.sums = workspace;
        std::array<int64_t, 4> step{};
        int64_t next = 1;
        for (int i = 3; i >= 0; --i) {
            location.strides[i] = seen.strides[order[i] + 1] * bytes;
            location.sizes[i] = static_cast<int>(sizes[order[i]]);
            step[order[i]] = next;
            next *= sizes[order[i]];
        }
        add("igm::location_moments_kernel", part.runs * divide_up(location.locations, kMomentThreads), location);

        TapMoments tap{};
        tap.sums = workspace;
        tap.runs = static_cast<int>(part.runs);
        tap.locations = location.locations;
        tap.channel_step = step[0];
        for (int axis = 0; axis < 3; ++axis) {
            tap.axis_step[axis] = step[axis + 1];
            tap.sizes[axis] = static_cast<int>(seen.sizes[axis + 2]);
            tap.outputs[axis] = static_cast<int>(patch_outputs(seen, geometry, axis));
            tap.kernel[axis] = static_cast<int>(geometry.kernel[axis]);
            tap.step[axis] = static_cast<int>(geometry.stride[axis]);
            tap.before[axis] = static_cast<int>(padding_before(geometry, axis));
            tap.dilation[axis] = static_cast<int>(geometry.dilation[axis]);
        }
        tap.taps = static_cast<int>(taps);
        tap.alpha = alpha;
        const int64_t first_row = part.first_channel * taps;
        tap.total = static_cast<unsigned char*>(total) + first_row * (narrow ? 4 : 8);
        tap.squares = squares + first_row;
        add("igm::tap_moments_kernel" + sum, part.channels * taps, tap);
    }
    if (!plan.parts.empty()) {
        add("igm::trace_moments_kernel" + sum, task.groups,
            TraceMoments{squares, static_cast<int>(plan.square_doubles / task.groups), alpha, trace});
    }
    return launches;
}

}  // namespace igm
