#pragma once

// All that device code may use. This is the body for nvcc; the tests bring one that runs the same kernels on a CPU.

#include "common/element.hpp"

#define IGM_KERNEL __global__ void
#define IGM_SHARED __shared__
#define IGM_DEVICE __device__ __forceinline__
#define IGM_BLOCKS(threads, per_multiprocessor) __launch_bounds__(threads, per_multiprocessor)

namespace igm {

IGM_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
IGM_DEVICE int block_size() { return static_cast<int>(blockDim.x); }
IGM_DEVICE long long block_index() { return static_cast<long long>(blockIdx.x); }
IGM_DEVICE void barrier() { __syncthreads(); }

// One 128-bit access to global memory; the address must be a multiple of 16. The store is an intrinsic because nvcc 13
// splits a plain store of a vector that was just loaded into four: 1.4 times the sectors.
using Vector128 = uint4;
IGM_DEVICE Vector128 load_128(const void* address) { return *static_cast<const Vector128*>(address); }
IGM_DEVICE void store_128(void* address, Vector128 value) { __stwb(static_cast<Vector128*>(address), value); }

}  // namespace igm
