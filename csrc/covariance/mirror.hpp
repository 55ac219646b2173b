#pragma once

// Copies the lower triangle of each matrix [matrices, size, size], contiguous, onto the upper one. Only blocks on and
// below the diagonal are summed (covariance.py); after this the matrix is symmetric to the last bit.

#include <cstdint>

#include "common/dtype.hpp"
#include "common/launch.hpp"

namespace igm {

void mirror_lower(void* data, DType dtype, int64_t matrices, int64_t size, int threads);

// The same by mirror.cuh; data is an address of the device's.
Launches mirror_launches(void* data, DType dtype, int64_t matrices, int64_t size);

}  // namespace igm
