#pragma once

#include <cstdint>

#include "common/launch.hpp"

namespace igm {

// Eigenpairs of small symmetric float64 matrices on a GPU, a block each (jacobi.cuh).
LaunchPlan jacobi_plan(int64_t count, int64_t size, const DeviceLimits& limits);

// The largest matrix for which there is a plan.
int64_t jacobi_most(int64_t max_shared_bytes);

// matrices [count, size, size] → eigenvalues [count, size] descending, vectors [count, size, size] (row i of a matrix
// is eigenvector i); all on the device. NaN or infinite entries make the results of that matrix NaN.
Launches jacobi_launches(const double* matrices, double* eigenvalues, double* vectors, int64_t count, int64_t size,
                         int64_t max_shared_bytes);

}  // namespace igm
