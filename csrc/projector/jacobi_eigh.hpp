#pragma once

// Eigenvalues and eigenvectors of small symmetric matrices by cyclic Jacobi rotations (Golub & Van Loan §8.5).
//
// Sweeps over all pairs (p, q) in row order until no off-diagonal entry matters in float64. After a Rayleigh–Ritz step
// of a converging subspace the matrix is nearly diagonal and two or three sweeps do, where a QR iteration starts from
// scratch. About 6k³ flops a sweep; meant for k up to a few hundred. Rotations act on rows, so that memory is walked in
// order; no order depends on the number of threads.

#include <cstdint>

namespace igm {

// matrices [count, size, size], symmetric, of a scale between 1e-290 and 1e300, are overwritten; eigenvalues
// [count, size] descending; eigenvectors [count, size, size], vector i in column i. Throws before it writes if an entry
// is not finite.
void jacobi_eigh(double* matrices, double* eigenvalues, double* eigenvectors, int64_t count, int64_t size, int threads);

}  // namespace igm
