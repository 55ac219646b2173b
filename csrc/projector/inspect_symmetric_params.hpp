#pragma once

// What the kernels of inspect_symmetric.cuh are given; plain data, no standard headers.

namespace igm {

constexpr int kInspectTile = 64;
constexpr int kInspectThreads = 256;
// A thread has 32 loads under way: two blocks keep a multiprocessor's share of DRAM busy, and leave 128 registers.
constexpr int kInspectResident = 2;

// Sums per pair of tiles, in this order; the facts of a matrix are named the same (inspect_symmetric.hpp).
enum InspectFact { kNonFinite, kAsymmetry, kNorm, kTrace, kLeastDiagonal, kInspectFacts };

// Of inspect_tiles_kernel: block `matrix · pairs + pair`.
template <class T>
struct InspectTiles {
    const T* matrices;  // [count, size, size]
    double* partials;   // [count, kInspectFacts, pairs]
    long long size;
    long long pairs;  // tiles on and below the diagonal
};

// Of inspect_final_kernel: a block per matrix.
struct InspectFinal {
    const double* partials;
    double* facts;  // [count, kInspectFacts]
    long long pairs;
};

}  // namespace igm
