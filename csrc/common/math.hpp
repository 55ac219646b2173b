#pragma once

// Correctly rounded functions under one name for CPU and device code: IEEE 754 leaves them one result everywhere.

#include "common/inline.hpp"

namespace igm {

#ifdef __CUDACC__
IGM_INLINE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
IGM_INLINE double fused_multiply_add(double a, double b, double c) { return fma(a, b, c); }
IGM_INLINE float square_root(float value) { return sqrtf(value); }
IGM_INLINE double square_root(double value) { return sqrt(value); }
#else
IGM_INLINE float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
IGM_INLINE double fused_multiply_add(double a, double b, double c) { return __builtin_fma(a, b, c); }
IGM_INLINE float square_root(float value) { return __builtin_sqrtf(value); }
IGM_INLINE double square_root(double value) { return __builtin_sqrt(value); }
#endif

}  // namespace igm
