#pragma once

// What has to be known about a matrix before its eigenvectors mean anything, in one pass over it.

#include <cstdint>
#include <vector>

#include "common/dtype.hpp"

namespace igm {

struct SymmetricFacts {
    int64_t non_finite = 0;     // entries that are NaN or infinite; the others below are NaN if there are any
    double asymmetry = 0;       // ‖C − Cᵀ‖_F
    double norm = 0;            // ‖C‖_F; here and above, entries beyond 1e±150 overflow or vanish squared
    double trace = 0;           // tr C
    double least_diagonal = 0;  // min c_ii
};

// matrices [count, size, size], contiguous float32 or float64. Same bits for any number of threads.
std::vector<SymmetricFacts> inspect_symmetric(const void* matrices, DType dtype, int64_t count, int64_t size,
                                              int threads);

}  // namespace igm
