#pragma once

// How stage.cuh is started; plain C++, so that tests check it without a GPU.

#include <cstdint>

#include "common/launch.hpp"
#include "covariance/pack_patches.hpp"

namespace igm {

// All of an input [N, C, D, H, W] as [N, D, H, W, groups, pitch], of type float32, or of the input's if that has 16
// bits; zero from C / groups to pitch, a multiple of 16 bytes.
KernelLaunch stage_input_launch(const PatchInput& input, int64_t groups, DType dtype, int64_t pitch, void* output);

}  // namespace igm
