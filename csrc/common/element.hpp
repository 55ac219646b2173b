#pragma once

// Element types and their conversions, for CPU and device code alike. NVRTC has no standard headers: none are included.

#include "common/inline.hpp"

namespace igm {

struct BFloat16 {
    unsigned short bits;
};

struct Float16 {
    unsigned short bits;
};

// Type in which the arithmetic on elements of T is done.
template <class T>
struct ComputeOf {
    using Type = float;
};
template <>
struct ComputeOf<double> {
    using Type = double;
};
template <class T>
using Compute = typename ComputeOf<T>::Type;

template <class To, class From>
IGM_INLINE To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
#ifdef __CUDACC_RTC__  // knows no builtins of the host's compiler, but memcpy without a header
    memcpy(&result, &value, sizeof(To));
#else
    __builtin_memcpy(&result, &value, sizeof(To));
#endif
    return result;
}

IGM_INLINE float to_float(float value) { return value; }
IGM_INLINE double to_float(double value) { return value; }
IGM_INLINE float to_float(BFloat16 value) { return bit_cast<float>(static_cast<unsigned>(value.bits) << 16); }

// Shift the mantissa into place and rescale the exponent by an exact product; Inf and NaN get an all-ones exponent.
IGM_INLINE float to_float(Float16 value) {
    const unsigned sign = (value.bits & 0x8000u) << 16;
    const unsigned magnitude = (value.bits & 0x7fffu) << 13;
    const float scaled = bit_cast<float>(magnitude) * 0x1p112f;
    const unsigned special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return bit_cast<float>(bit_cast<unsigned>(scaled) | special | sign);
}

template <class T>
struct FromFloat {
    static IGM_INLINE T apply(T value) { return value; }
};

// Round to nearest, ties to even; every NaN becomes the quiet NaN 0x7fc0, as in torch.
template <>
struct FromFloat<BFloat16> {
    static IGM_INLINE BFloat16 apply(float value) {
        const unsigned bits = bit_cast<unsigned>(value);
        const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return {static_cast<unsigned short>(value != value ? 0x7fc0u : rounded)};
    }
};

template <class T, class Value>
IGM_INLINE T from_float(Value value) {
    return FromFloat<T>::apply(value);
}

}  // namespace igm
