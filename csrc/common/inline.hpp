#pragma once

// A function that must be compiled with the instruction set of whoever calls it (isa.hpp) has to be inlined there.
#ifdef __CUDACC__
#define IGM_INLINE __host__ __device__ __forceinline__
#else
#define IGM_INLINE inline __attribute__((always_inline))
#endif
