#pragma once

// The descent step: restore, project, decay, momentum or Adam moments, write; one read and one write of each array.
//
//     G' = c·G − (G U)(cI − Σ)Uᵀ          G: the gradient as (out, d); T = cI + U(Σ − cI)Uᵀ (IGM's projector, input
//     side) then torch.optim.SGD / AdamW / Adam on G', reading the weight from the backup of perturb() and writing it
//     to w.
//
// A block of rows is worked on at a time: G U is made while the rows come into cache, and G' tile by tile right before
// it is used; G' never goes to memory. Sums over d and k run in the compute type (float32, or float64 for float64
// parameters) in index order. The cut into blocks depends on the shapes alone: same bits for any number of threads.

#include <cstdint>
#include <vector>

#include "common/dtype.hpp"

namespace igm {

// T of one tensor. Row-major, contiguous, of the compute type; rank 0: no projection.
struct Projection {
    int64_t groups;       // the tensor's rows fall into this many equal runs, each with its own U and Σ
    int64_t rows;         // out, of all groups together
    int64_t dim;          // d
    int64_t rank;         // k
    uintptr_t basis;      // U [groups, d, k]
    uintptr_t transpose;  // Uᵀ [groups, k, d]
    uintptr_t sigma;      // Σ [groups, k]
    double complement;    // c
};

// Addresses of the first elements; contiguous. params, sources and grads have the parameter dtype, states the compute
// type.
struct StepTensors {
    std::vector<uintptr_t> params;   // written
    std::vector<uintptr_t> sources;  // the weights to step from: the backups, or params again
    std::vector<uintptr_t> grads;
    std::vector<uintptr_t> first_states;   // SGD: momentum buffer (may be empty); Adam: exp_avg
    std::vector<uintptr_t> second_states;  // Adam: exp_avg_sq; SGD: empty
    std::vector<int64_t> sizes;
    std::vector<Projection> projections;  // one per tensor
};

struct SgdOptions {
    double lr, momentum, dampening, weight_decay;
    bool nesterov, maximize, first_step;  // first_step: the buffer becomes the gradient, as torch does
};

struct AdamOptions {
    double lr, beta1, beta2, eps, weight_decay;
    int64_t step;              // counts from 1
    bool decoupled, maximize;  // decoupled: AdamW; otherwise the decay is added to the gradient (Adam)
};

void projected_step(const StepTensors& tensors, DType dtype, const SgdOptions& options, int threads);
void projected_step(const StepTensors& tensors, DType dtype, const AdamOptions& options, int threads);

}  // namespace igm
