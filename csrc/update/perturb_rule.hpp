#pragma once

// The arithmetic of perturb.hpp, one element at a time; shared by the CPU and the device kernel.

#include "common/element.hpp"

namespace igm {

// What is squared and summed for the norm.
template <bool kAdaptive, class T>
IGM_INLINE double norm_term(T weight, T grad) {
    const double g = static_cast<double>(to_float(grad));
    const double scaled = kAdaptive ? static_cast<double>(to_float(weight)) * g : g;
    return scaled * scaled;
}

// rho / norm, or 0 when the step is not to be taken. A gradient of denormals would need a factor beyond float32's
// range: it is capped there (ε is then shorter than rho) so that it never becomes Inf · 0 = NaN.
IGM_INLINE double perturb_scale(double rho, double norm) {
    const float seen = static_cast<float>(norm);
    if (!(seen > 0.0f) || seen > 3.402823466e+38f) {
        return 0.0;
    }
    const double scale = rho / norm;
    return scale < 3.4028234e+38 ? scale : 3.4028234e+38;
}

template <bool kAdaptive, class T>
IGM_INLINE T perturbed(T weight, T grad, Compute<T> scale) {
    const Compute<T> w = to_float(weight);
    const Compute<T> step = scale * to_float(grad);
    return from_float<T>(w + (kAdaptive ? step * w * w : step));
}

}  // namespace igm
