#pragma once

#include "common/element.hpp"
#include "common/error.hpp"

namespace igm {

// The codes that igm_fast/ops/native.py passes.
enum class DType : int { kFloat32 = 0, kFloat64 = 1, kFloat16 = 2, kBFloat16 = 3 };

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

// The same for parameters, which torch's optimizers keep in these three types.
template <class F>
decltype(auto) dispatch_parameter(DType dtype, F&& f) {
    switch (dtype) {
        case DType::kFloat32:
            return f(Tag<float>{});
        case DType::kFloat64:
            return f(Tag<double>{});
        case DType::kBFloat16:
            return f(Tag<BFloat16>{});
        case DType::kFloat16:
            break;
    }
    throw Error(text("dtype code ", static_cast<int>(dtype),
                     ", expected float32, float64 or bfloat16. Keep float16 out of parameters (torch.amp does)."));
}

// The same for sums and factorisations, which are kept in float32 or float64.
template <class F>
decltype(auto) dispatch_accumulator(DType dtype, F&& f) {
    if (dtype == DType::kFloat32) {
        return f(Tag<float>{});
    }
    IGM_EXPECT(dtype == DType::kFloat64, text("dtype code ", static_cast<int>(dtype)), "float32 or float64",
               "Convert before the call.");
    return f(Tag<double>{});
}

}  // namespace igm
