#pragma once

// The base optimizers, one element at a time, in the order of operations of torch.optim's single-tensor form. Shared by
// the CPU and the device kernels, and what the latter get of the options: plain data, made by base_options.hpp.

#include "common/math.hpp"

namespace igm {

// a·b + c, fused where the instruction set has it: so does torch, and a plain SGD step has torch's bits. Left to the
// compiler, it would depend on optimisation flags.
template <bool kFused, class Real>
IGM_INLINE Real multiply_add(Real a, Real b, Real c) {
    return kFused ? fused_multiply_add(a, b, c) : a * b + c;
}

// Options act through selected values, not branches: the loop around has one body, and that vectorises.
template <class Real, bool kMomentum>
struct Sgd {
    Real lr, momentum, blend, weight_decay, sign;
    bool decays, nesterov, first_step;

    static constexpr int kStates = kMomentum ? 1 : 0;

    template <bool kFused>
    IGM_INLINE Real apply(Real weight, Real grad, Real& buffer, Real&) const {
        const Real decayed = decays ? weight : Real(0);  // 0 · w would be NaN for w = Inf
        grad = multiply_add<kFused>(weight_decay, decayed, sign * grad);
        if constexpr (kMomentum) {
            const Real old = first_step ? Real(0) : buffer;  // what lies in the buffer then is nobody's value
            buffer = multiply_add<kFused>(blend, grad, momentum * old);
            const Real ahead = multiply_add<kFused>(momentum, buffer, grad);
            grad = nesterov ? ahead : buffer;
        }
        return multiply_add<kFused>(-lr, grad, weight);
    }
};

template <class Real>
struct Adam {
    Real blend1, beta2, blend2, eps, keep, weight_decay, step_size, root_correction, sign;
    bool decays;

    static constexpr int kStates = 2;

    template <bool kFused>
    IGM_INLINE Real apply(Real weight, Real grad, Real& exp_avg, Real& exp_avg_sq) const {
        weight *= keep;
        const Real decayed = decays ? weight : Real(0);
        grad = multiply_add<kFused>(weight_decay, decayed, sign * grad);
        exp_avg = multiply_add<kFused>(blend1, grad - exp_avg, exp_avg);
        exp_avg_sq = multiply_add<kFused>(blend2, grad * grad, beta2 * exp_avg_sq);
        const Real denominator = square_root(exp_avg_sq) / root_correction + eps;
        return multiply_add<kFused>(-step_size, exp_avg / denominator, weight);
    }
};

}  // namespace igm
