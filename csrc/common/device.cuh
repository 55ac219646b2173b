#pragma once

// All that device code may use. This is the body for nvcc and NVRTC; the tests bring one that runs the same kernels on
// a CPU (tests/emulation/common). Matrix units and asynchronous copies: tensor_core.cuh.

#include "common/element.hpp"

#define IGM_KERNEL __global__ void
#define IGM_SHARED __shared__
#define IGM_DEVICE __device__ __forceinline__
#define IGM_BLOCKS(threads, per_multiprocessor) __launch_bounds__(threads, per_multiprocessor)
// Before a loop whose index chooses among registers, where the compiler would not unroll it by itself.
#define IGM_UNROLL _Pragma("unroll")
// … and before one whose turns, side by side, would take more registers than there are.
#define IGM_NO_UNROLL _Pragma("unroll 1")
// Before a loop that the compiler would unroll at the cost of registers that are needed elsewhere.
#define IGM_ROLLED _Pragma("unroll 1")

namespace igm {

constexpr int kWarp = 32;

IGM_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
IGM_DEVICE int block_size() { return static_cast<int>(blockDim.x); }
IGM_DEVICE long long block_index() { return static_cast<long long>(blockIdx.x); }
IGM_DEVICE void barrier() { __syncthreads(); }

// Within a warp; every lane takes part.
IGM_DEVICE int lane_index() { return thread_index() % kWarp; }
IGM_DEVICE int warp_index() { return thread_index() / kWarp; }
// The value, of which the compiler knows nothing: it makes what depends on it anew in each turn of a loop, instead of
// keeping it in registers that are needed elsewhere.
IGM_DEVICE int opaque(int value) {
    asm volatile("" : "+r"(value));
    return value;
}
IGM_DEVICE void warp_barrier() { __syncwarp(); }
template <class T>
IGM_DEVICE T shuffle_xor(T value, int mask) {
    return __shfl_xor_sync(0xffffffffu, value, mask);
}
template <class T>
IGM_DEVICE T shuffle(T value, int source_lane) {
    return __shfl_sync(0xffffffffu, value, source_lane);
}
IGM_DEVICE bool any_lane(bool condition) { return __any_sync(0xffffffffu, condition) != 0; }
// True on all threads if it is on one; also a barrier.
IGM_DEVICE bool any_thread(bool condition) { return __syncthreads_or(condition) != 0; }

// The shared memory whose size the launch plan says, at 16-byte alignment.
IGM_DEVICE unsigned char* dynamic_shared() {
    extern __shared__ __align__(16) unsigned char bytes[];
    return bytes;
}

// One 128-bit access to global memory; the address must be a multiple of 16. The store is an intrinsic because nvcc 13
// splits a plain store of a vector that was just loaded into four: 1.4 times the sectors.
using Vector128 = uint4;
IGM_DEVICE Vector128 load_128(const void* address) { return *static_cast<const Vector128*>(address); }
IGM_DEVICE void store_128(void* address, Vector128 value) { __stwb(static_cast<Vector128*>(address), value); }

}  // namespace igm
