#pragma once

#include <cstdint>
#include <cstring>

#include "common/error.hpp"
#include "common/inline.hpp"

namespace igm {

// The codes that igm_fast/ops/native.py passes.
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

template <class To, class From>
IGM_INLINE To bit_cast(From value) {
    static_assert(sizeof(To) == sizeof(From), "same size");
    To result;
    std::memcpy(&result, &value, sizeof(To));
    return result;
}

struct BFloat16 {
    uint16_t bits;
};

struct Float16 {
    uint16_t bits;
};

IGM_INLINE float to_float(BFloat16 value) { return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16); }

// Shift the mantissa into place and rescale the exponent by an exact product; Inf/NaN keep an all-ones exponent.
IGM_INLINE float to_float(Float16 value) {
    const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
    const uint32_t magnitude = static_cast<uint32_t>(value.bits & 0x7fffu) << 13;
    const float scaled = bit_cast<float>(magnitude) * 0x1p112f;
    const uint32_t special = magnitude >= 0x0f800000u ? 0x7f800000u : 0u;
    return bit_cast<float>(bit_cast<uint32_t>(scaled) | special | sign);
}

IGM_INLINE float to_float(float value) { return value; }
IGM_INLINE double to_float(double value) { return value; }

template <class T>
struct FromFloat {
    static IGM_INLINE T apply(T value) { return value; }
};

// Round to nearest, ties to even; every NaN becomes the quiet NaN 0x7fc0, as in torch.
template <>
struct FromFloat<BFloat16> {
    static IGM_INLINE BFloat16 apply(float value) {
        const uint32_t bits = bit_cast<uint32_t>(value);
        const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
        return {static_cast<uint16_t>(value != value ? 0x7fc0u : rounded)};
    }
};

template <class T, class Compute>
IGM_INLINE T from_float(Compute value) {
    return FromFloat<T>::apply(value);
}

template <class T>
struct Tag {
    using Type = T;
};

// Calls f(Tag<T>{}) with the element type behind the code.
template <class F>
decltype(auto) dispatch(DType dtype, F&& f) {
    switch (dtype) {
        case DType::kFloat32:
            return f(Tag<float>{});
        case DType::kFloat64:
            return f(Tag<double>{});
        case DType::kFloat16:
            return f(Tag<Float16>{});
        case DType::kBFloat16:
            return f(Tag<BFloat16>{});
    }
    throw Error(text("dtype code ", static_cast<int>(dtype), ", expected 0 … 3. See igm_fast/ops/native.py."));
}

}  // namespace igm
