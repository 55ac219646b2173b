#pragma once

// Patches of a convolution's input, a tile at a time, so that no unfolded copy of the input ever exists.
//
//     tile[r, p] = input[n, c, z·stride₀ − front + h·dilation₀, y·stride₁ − top + i·dilation₁,
//                        x·stride₂ − left + j·dilation₂], zero outside of the input
//
// for row r = (c, h, i, j), ordered as in torch.nn.functional.unfold, and for output positions p = (n, z, y, x). A
// group's rows are consecutive, so the tile is [groups, d, count] as well. Images are volumes of depth 1, and a linear
// layer is the case of a 1×1×1 kernel.

#include <array>
#include <cstdint>

#include "common/dtype.hpp"

namespace igm {

// Any strides, in elements; nothing is copied beforehand.
struct PatchInput {
    const void* data;
    DType dtype;
    std::array<int64_t, 5> sizes;  // N, C, D, H, W
    std::array<int64_t, 5> strides;
};

struct PatchGeometry {
    std::array<int64_t, 3> kernel;
    std::array<int64_t, 3> stride;
    std::array<int64_t, 6> padding;  // left, right, top, bottom, front, back
    std::array<int64_t, 3> dilation;
};

// The patches first … first + count − 1 of the N·out_depth·out_height·out_width.
struct PatchRange {
    int64_t first;
    int64_t count;
};

// Fills tile [C·kd·kh·kw, count], contiguous float32 or float64. The range lies inside of a non-empty output:
// igm_fast/ops/patches.py checks.
void pack_patches(const PatchInput& input, const PatchGeometry& geometry, PatchRange range, void* tile,
                  DType tile_dtype, int threads);

}  // namespace igm
