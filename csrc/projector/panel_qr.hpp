#pragma once

// Orthonormal bases of tall panels, in place: CholeskyQR2 (Yamamoto et al. 2015), made safe for any panel.
//
//     G = AᵀA;   G = RᵀR (Cholesky);   A ← A R⁻¹;      again until G was already close to I
//
// G, R and R⁻¹ are float64 also for a float32 panel: two passes over the panel per round and k²d flops each, where
// Householder's method takes k passes. A column that depends on those before it (zero, a copy, all of them if C = 0)
// has no pivot left: a fixed pseudo-random column takes its place and the next round makes it orthogonal. So the span
// of the result contains that of the independent columns, and the result is orthonormal to round-off always.
// "Depends" means: less than 3e-7 of the column is new (1e-13 of its squared norm), for float64 panels as well.

#include <cstdint>

#include "common/dtype.hpp"

namespace igm {

// panels [count, rows, columns], contiguous float32 or float64, rows >= columns. Same bits for any number of threads.
// Throws if a panel holds NaN or infinite entries and leaves that panel's columns as they were, up to their scale.
void panel_qr(void* panels, DType dtype, int64_t count, int64_t rows, int64_t columns, int threads);

}  // namespace igm
