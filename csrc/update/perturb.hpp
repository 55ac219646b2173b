#pragma once

// SAM's ascent step (Foret et al. 2021, eq. 2; ASAM: Kwon et al. 2021, eq. 5 for element-wise T = |w|).
//
//     backup ← w;   w ← w + ε,   ε = rho · g / ‖g‖₂   or, adaptive,   ε = rho · w² g / ‖|w| g‖₂
//
// The norm is summed in float64 per chunk, chunks in order: the same bits for any number of threads.
// Norm 0 and a norm that is not finite (as float32, which the caller gets to see) leave w as it is. Where several calls
// share one norm, each measures its part with rho = 0 first; the parts' root of squares is then the `total` of the
// others.

#include <cstdint>
#include <vector>

#include "common/dtype.hpp"

namespace igm {

enum class NormScope : int { kGlobal = 0, kTensor = 1 };

// Addresses of the first elements; contiguous, all of one dtype. The lists have equal length.
struct PerturbTensors {
    std::vector<uintptr_t> params;
    std::vector<uintptr_t> backups;
    std::vector<uintptr_t> grads;
    std::vector<int64_t> sizes;
};

struct PerturbOptions {
    double rho;
    NormScope scope;
    bool adaptive;
    const float* total = nullptr;  // where the tensors' memory is: the norm to divide by, if not their own
};

// norm: one float (kGlobal) or one per tensor (kTensor).
void perturb(const PerturbTensors& tensors, DType dtype, const PerturbOptions& options, float* norm, int threads);

// params[i] ← backups[i].
void restore(const std::vector<uintptr_t>& params, const std::vector<uintptr_t>& backups,
             const std::vector<int64_t>& bytes, int threads);

}  // namespace igm
