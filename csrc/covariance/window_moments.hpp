#pragma once

// First and second moments of what a convolution's patches hold, in one pass over the input:
//
//     total[g, r] += alpha · Σ_p u_p[g, r]        trace[g] += alpha · Σ_p |u_p[g]|²
//
// over all output positions p, rows r = (c, h, i, j) as in pack_patches.hpp. The taps that an input serves depend on
// its plane, row and column alone, and nearly all planes, rows and columns serve the same ones: inputs are added up by
// these classes, and a class is added to its taps at the end.

#include "covariance/pack_patches.hpp"

namespace igm {

// total [groups, d] and trace [groups] are float32 or float64, and inputs are rounded to that first; sums are float64,
// in an order that the number of threads has no part in: the same bits for any.
void add_window_moments(const PatchInput& input, const PatchGeometry& geometry, int64_t groups, void* total,
                        void* trace, DType sums, double alpha, int threads);

}  // namespace igm
