#pragma once

// What the kernel of jacobi.cuh is given; plain data, no standard headers.

namespace igm {

// Largest matrix of one block: m (m + 1) float64 are 101 248 bytes, and 99 KiB is what every architecture from 8.0 on
// gives a block. Sweeps cost m³ on one multiprocessor: beyond this a library that uses all of them is the better
// choice.
constexpr int kJacobiMost = 112;

constexpr int kJacobiWarps = 16;

// Six to nine are the rule; where rounding keeps a pair of columns from passing the test, the last ones change nothing.
constexpr int kJacobiSweeps = 24;

// Columns whose cosine is below this are orthogonal: a few roundings of a dot product of 112 terms in a tree.
constexpr double kJacobiTolerance = 2e-15;

// Of jacobi_kernel: a block per matrix, m (m + 1) doubles of dynamic shared memory.
struct Jacobi {
    const double* matrices;  // [count, m, m]; (A + Aᵀ)/2 is what is meant
    double* eigenvalues;     // [count, m], descending
    double* vectors;         // [count, m, m]: row i is the eigenvector of eigenvalue i
    int size;
};

}  // namespace igm
