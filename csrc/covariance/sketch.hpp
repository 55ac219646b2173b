#pragma once

// The sketch of an activation covariance, from one read of the input and without a copy of its patches:
//
//     sketch[g, r, j] += alpha · Σ_p u_p[r] · (u_pᵀ Ω[g, :, j])
//
// for the patches u_p of group g, rows r = (c, h, i, j) as in pack_patches.hpp.
//
// A chunk of output positions at a time: the part of the zero-padded input that they see is packed (sketch_window.hpp),
// Z = uᵀΩ is made for all of them and Y += u Z follows while both are in cache. Ω is looked at in blocks of 8 columns:
// where a block is zero at a tap of the kernel for all channels, the products are left out (also 0 · NaN). Where
// asked for, Winograd's transforms save more than half of the second product (sketch_winograd.hpp); a value that is not
// finite then spoils the taps beside its own, too.
//
// Every entry of Z and Y is one sum in an order that the number of threads has no part in: the same bits for any.
// Workspace: Ω once more; a chunk of at most 768 positions: 2 MB of window (8 MB more for Winograd) and 240 KB of Z per
// 80 columns (1 MB more), larger only where the inputs of 64 positions are; for Winograd 16/9 of the sketch.

#include <cstdint>

#include "covariance/pack_patches.hpp"

namespace igm {

// omega and sketch are [groups, d, columns], contiguous, float32 or float64. The output is not empty, and Winograd is
// for kernels 1×3×3 of stride and dilation 1 along the last two axes: igm_fast/ops/covariance_sketch.py checks and
// chooses.
void add_conv_sketch(const PatchInput& input, const PatchGeometry& geometry, int64_t groups, const void* omega,
                     void* sketch, DType sums, int64_t columns, bool winograd, double alpha, int threads);

}  // namespace igm
