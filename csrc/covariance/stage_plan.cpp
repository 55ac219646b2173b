#include "covariance/stage_plan.hpp"

#include <algorithm>

#include "common/parallel.hpp"
#include "covariance/stage_params.hpp"

namespace igm {

namespace {

// Places are 32-bit numbers on the device.
constexpr int64_t kMostPlaces = 1 << 30;

}  // namespace

KernelLaunch stage_input_launch(const PatchInput& input, int64_t groups, DType dtype, int64_t pitch, void* output) {
    StageInput params{};
    params.input = input.data;
    params.output = output;
    params.dtype = static_cast<int>(input.dtype);
    params.sample_stride = input.strides[0];
    params.channel_stride = input.strides[1];
    // Axes that lie in memory as one are one.
    std::array<int64_t, 3> sizes{1, 1, 1}, strides{0, 0, 0};
    int last = 2;
    for (int axis = 4; axis >= 2; --axis) {
        const int64_t size = input.sizes[axis], stride = input.strides[axis];
        if (size == 1) {
            continue;
        }
        if (sizes[last] == 1) {
            sizes[last] = size;
            strides[last] = stride;
        } else if (stride == sizes[last] * strides[last]) {
            sizes[last] *= size;
        } else {
            --last;
            sizes[last] = size;
            strides[last] = stride;
        }
    }
    for (int axis = 0; axis < 3; ++axis) {
        params.sizes[axis] = static_cast<int>(sizes[axis]);
        params.axis_stride[axis] = strides[axis];
    }
    const int64_t positions = sizes[0] * sizes[1] * sizes[2];
    IGM_EXPECT(positions <= kMostPlaces, text("samples of ", positions, " places"),
               text("at most ", kMostPlaces, " on CUDA, unless channels lie together"),
               "Use memory_format=torch.channels_last_3d, or split the input.");
    params.groups = static_cast<int>(groups);
    params.channels = static_cast<int>(input.sizes[1] / groups);
    params.pitch = static_cast<int>(pitch);
    params.positions = static_cast<int>(positions);
    params.block_positions = static_cast<int>(std::min<int64_t>(positions, kStagePositions));
    params.one_per_position = 1.0f / static_cast<float>(params.block_positions);
    params.position_blocks = static_cast<int>(divide_up(positions, params.block_positions));
    params.channel_blocks = static_cast<int>(divide_up(pitch, kStageChannels));
    params.along_channels = std::abs(input.strides[1]) < std::abs(strides[2]) || positions == 1;
    const bool wide = dtype == DType::kFloat32;
    const int64_t row_bytes = wide ? (kStageChannels + 1) * 4 : (kStageChannels + 2) * 2;
    const LaunchPlan launch{input.sizes[0] * groups * params.position_blocks * params.channel_blocks, kStageThreads,
                            params.block_positions * row_bytes};
    check_plan("stage_input_kernel", launch, {});
    return make_launch(wide ? "igm::stage_input_kernel<float>" : "igm::stage_input_kernel<unsigned short>", launch,
                       params);
}

}  // namespace igm
