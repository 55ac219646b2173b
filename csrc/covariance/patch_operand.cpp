#include "covariance/patch_operand.hpp"

#include <cstdlib>

namespace igm {

namespace {

// Neighbouring channels that a warp gathers at once.
constexpr int64_t kGatherTogether = 8;
// Offsets inside of a patch are 32-bit numbers on the device.
constexpr int64_t kMostReach = 2147483647;

int bits_for(int64_t value) {
    int bits = 1;
    while (value >> bits) {
        ++bits;
    }
    return bits;
}

// Whether 16 bytes of a position are neighbouring channels of a group, wherever it lies.
bool lies_in_pieces(const PatchTask& task, int64_t piece) {
    const PatchInput& input = task.input;
    const int64_t channels = input.sizes[1] / task.groups;
    bool whole = (input.strides[1] == 1 || channels == 1) && channels % piece == 0 &&
                 (input.sizes[0] == 1 || input.strides[0] % piece == 0) &&
                 reinterpret_cast<uintptr_t>(input.data) % 16 == 0;
    for (int axis = 0; axis < 3; ++axis) {
        const bool fixed = input.sizes[axis + 2] == 1 && patch_outputs(input, task.geometry, axis) == 1 &&
                           padding_before(task.geometry, axis) == 0;
        whole = whole && (fixed || input.strides[axis + 2] % piece == 0);
    }
    return whole;
}

}  // namespace

int64_t element_bytes(DType dtype) {
    return dispatch(dtype, [](auto tag) { return static_cast<int64_t>(sizeof(typename decltype(tag)::Type)); });
}

int64_t padding_before(const PatchGeometry& geometry, int axis) { return geometry.padding[2 * (2 - axis)]; }

int64_t patch_outputs(const PatchInput& input, const PatchGeometry& geometry, int axis) {
    const int64_t around = padding_before(geometry, axis) + geometry.padding[2 * (2 - axis) + 1];
    const int64_t span = geometry.dilation[axis] * (geometry.kernel[axis] - 1) + 1;
    return (input.sizes[axis + 2] + around - span) / geometry.stride[axis] + 1;
}

int64_t patch_outputs(const PatchInput& input, const PatchGeometry& geometry) {
    return patch_outputs(input, geometry, 0) * patch_outputs(input, geometry, 1) * patch_outputs(input, geometry, 2);
}

int64_t taps_of(const PatchGeometry& geometry) { return geometry.kernel[0] * geometry.kernel[1] * geometry.kernel[2]; }

PatchOperand patch_operand(const PatchTask& task, DType multiplied, bool in_pieces) {
    const PatchInput& input = task.input;
    const int64_t channels = input.sizes[1] / task.groups;
    PatchOperand operand{false,
                         input.dtype,
                         channels,
                         1,
                         input.strides[0],
                         input.strides[1],
                         {input.strides[2], input.strides[3], input.strides[4]}};
    if (!in_pieces) {
        const bool adjacent = std::abs(input.strides[1]) < std::abs(input.strides[4]);
        operand.together = adjacent && channels % kGatherTogether == 0 ? kGatherTogether : 1;
        return operand;
    }
    const int64_t piece = 16 / element_bytes(multiplied);
    operand.staged = input.dtype != multiplied || !lies_in_pieces(task, piece);
    if (operand.staged) {
        operand.dtype = multiplied;
        operand.channels = round_up(channels, piece);
        operand.channel_stride = 1;
        int64_t stride = task.groups * operand.channels;
        for (int axis = 2; axis >= 0; --axis) {
            operand.axis_stride[axis] = stride;
            stride *= input.sizes[axis + 2];
        }
        operand.sample_stride = stride;
    }
    // Two pieces fill a sector.
    operand.together = operand.channels % (2 * piece) == 0 ? 2 * piece : piece;
    return operand;
}

PatchSource patch_source(const PatchTask& task, const PatchOperand& operand) {
    const PatchGeometry& geometry = task.geometry;
    PatchSource source{};
    source.dtype = static_cast<int>(operand.dtype);
    source.element_bytes = static_cast<int>(element_bytes(operand.dtype));
    source.sample_stride = operand.sample_stride;
    source.channel_stride = operand.channel_stride;
    int shift = 0;
    for (int axis = 0; axis < 3; ++axis) {
        source.axis_stride[axis] = operand.axis_stride[axis];
        source.sizes[axis] = static_cast<int>(task.input.sizes[axis + 2]);
        source.outputs[axis] = static_cast<int>(patch_outputs(task.input, geometry, axis));
        source.kernel[axis] = static_cast<int>(geometry.kernel[axis]);
        source.step[axis] = static_cast<int>(geometry.stride[axis]);
        source.before[axis] = static_cast<int>(padding_before(geometry, axis));
        source.dilation[axis] = static_cast<int>(geometry.dilation[axis]);
        const int guard = bits_for(geometry.kernel[axis]);
        source.shift[axis] = shift;
        source.guards |= 1u << (shift + guard) % 32;
        shift += guard + 1;
    }
    IGM_EXPECT(shift <= 32, text("kernel ", geometry.kernel[0], "×", geometry.kernel[1], "×", geometry.kernel[2]),
               "sizes along the three axes whose bits fit into 29 on CUDA", "Move the tensors to the CPU.");
    int64_t reach = (operand.channels - 1) * std::abs(operand.channel_stride);
    for (int axis = 0; axis < 3; ++axis) {
        reach += (geometry.kernel[axis] - 1) * geometry.dilation[axis] * std::abs(operand.axis_stride[axis]);
    }
    IGM_EXPECT(reach <= kMostReach, text("an input with strides by which a patch reaches ", reach, " elements far"),
               text("at most ", kMostReach, " on CUDA"), "Use .contiguous(), or move the tensors to the CPU.");
    source.channels = static_cast<int>(operand.channels);
    source.taps = static_cast<int>(taps_of(geometry));
    source.together = static_cast<int>(operand.together);
    source.rows = source.channels * source.taps;
    return source;
}

}  // namespace igm
