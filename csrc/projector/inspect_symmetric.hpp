#pragma once

// What has to be known about a matrix before its eigenvectors mean anything, in one pass over it.

#include <cstdint>
#include <vector>

#include "common/dtype.hpp"

namespace igm {

struct SymmetricFacts {
    int64_t non_finite = 0;  // entries that are NaN or infinite
    double largest = 0;      // max |c_ij| of the finite ones
    double asymmetry = 0;    // ‖C − Cᵀ‖_F, NaN if non_finite > 0; differences beyond 1e±150 overflow or vanish squared
};

// matrices [count, size, size], contiguous float32 or float64. Same bits for any number of threads.
std::vector<SymmetricFacts> inspect_symmetric(const void* matrices, DType dtype, int64_t count, int64_t size,
                                              int threads);

}  // namespace igm
