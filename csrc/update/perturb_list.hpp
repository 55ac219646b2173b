#pragma once

// What the device kernels of perturb.cuh are given; plain data, no standard headers.

namespace igm {

// The addresses travel as kernel parameters, which every driver takes up to 4 KiB: no copy to the device, no
// synchronisation, and a CUDA graph records them. 96 · 36 bytes stay below that.
constexpr int kPerturbTensors = 96;

// 64 KiB of float32 per block: long enough to hide the reduction at its end, short enough to give every
// multiprocessor several blocks at ten million parameters. A multiple of every 128-bit pack, so chunks keep alignment.
constexpr long long kPerturbChunk = 16384;

constexpr int kPerturbThreads = 256;

// Blocks per multiprocessor to compile for: 1024 threads, what Turing holds. Left to itself, ptxas 13.0 fits more on
// some architectures by spilling a few registers to memory, which is what these kernels wait for.
constexpr int kPerturbResident = 4;

template <class T>
struct PerturbList {
    T* params[kPerturbTensors];
    T* backups[kPerturbTensors];
    const T* grads[kPerturbTensors];
    long long sizes[kPerturbTensors];
    int first_chunk[kPerturbTensors + 1];  // block b works on the last tensor whose first chunk is <= b
    int count;
};

// Of norm_partials_kernel.
template <class T>
struct NormPartials {
    PerturbList<T> list;
    double* partials;  // one per chunk of the list
};

// Of norm_final_kernel. Norm i is the sum of partials[begin[i]] … partials[begin[i + 1] - 1].
struct NormFinal {
    long long begin[kPerturbTensors + 1];
    const double* partials;
    double rho;
    const float* total;  // the norm to divide by; null: norm i
    float* norms;
    double* scales;
};

// Of perturb_kernel. scale_stride 0: one scale for all tensors; 1: each its own.
template <class T>
struct Perturbation {
    PerturbList<T> list;
    const double* scales;
    int scale_stride;
};

}  // namespace igm
