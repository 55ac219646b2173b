#pragma once

// How the product kernels read the input of a task: as it is, or as stage.cuh has brought it into order.

#include <array>
#include <cstdint>

#include "common/parallel.hpp"
#include "covariance/patch_params.hpp"
#include "covariance/patch_plan.hpp"

namespace igm {

int64_t element_bytes(DType dtype);
int64_t padding_before(const PatchGeometry& geometry, int axis);
// Output places along an axis; of all axes.
int64_t patch_outputs(const PatchInput& input, const PatchGeometry& geometry, int axis);
int64_t patch_outputs(const PatchInput& input, const PatchGeometry& geometry);
int64_t taps_of(const PatchGeometry& geometry);
inline int64_t round_up(int64_t value, int64_t step) { return divide_up(value, step) * step; }

// Strides in elements.
struct PatchOperand {
    bool staged;
    DType dtype;
    int64_t channels;  // per group, with those that fill the last 16 bytes
    int64_t together;
    int64_t sample_stride, channel_stride;
    std::array<int64_t, 3> axis_stride;
};

// For kernels that multiply this type, copied in pieces of 16 bytes or gathered.
PatchOperand patch_operand(const PatchTask& task, DType multiplied, bool in_pieces);

// Without the address of the input.
PatchSource patch_source(const PatchTask& task, const PatchOperand& operand);

}  // namespace igm
