#pragma once

// The base optimizers, one element at a time, in the order of operations of torch.optim's single-tensor form.

#include <cmath>

#include "common/inline.hpp"
#include "update/projected_step.hpp"

namespace igm {

// a·b + c, fused where the instruction set has it: so does torch, and a plain SGD step has torch's bits. Left to the
// compiler, it would depend on optimisation flags.
template <bool kFused, class Real>
IGM_INLINE Real multiply_add(Real a, Real b, Real c) {
    return kFused ? std::fma(a, b, c) : a * b + c;
}

// Options act through selected values, not branches: the loop around has one body, and that vectorises.
template <class Real, bool kMomentum>
struct Sgd {
    Real lr, momentum, blend, weight_decay, sign;
    bool decays, nesterov, first_step;

    explicit Sgd(const SgdOptions& options)
        : lr(static_cast<Real>(options.lr)),
          momentum(static_cast<Real>(options.momentum)),
          blend(static_cast<Real>(options.first_step ? 1.0 : 1.0 - options.dampening)),
          weight_decay(static_cast<Real>(options.weight_decay)),
          sign(static_cast<Real>(options.maximize ? -1 : 1)),
          decays(options.weight_decay != 0.0),
          nesterov(options.nesterov),
          first_step(options.first_step) {}

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

    explicit Adam(const AdamOptions& options)
        : blend1(static_cast<Real>(1.0 - options.beta1)),
          beta2(static_cast<Real>(options.beta2)),
          blend2(static_cast<Real>(1.0 - options.beta2)),
          eps(static_cast<Real>(options.eps)),
          keep(static_cast<Real>(options.decoupled ? 1.0 - options.lr * options.weight_decay : 1.0)),
          weight_decay(static_cast<Real>(options.decoupled ? 0.0 : options.weight_decay)),
          step_size(static_cast<Real>(options.lr / (1.0 - std::pow(options.beta1, options.step)))),
          root_correction(static_cast<Real>(std::sqrt(1.0 - std::pow(options.beta2, options.step)))),
          sign(static_cast<Real>(options.maximize ? -1 : 1)),
          decays(!options.decoupled && options.weight_decay != 0.0) {}

    static constexpr int kStates = 2;

    template <bool kFused>
    IGM_INLINE Real apply(Real weight, Real grad, Real& exp_avg, Real& exp_avg_sq) const {
        weight *= keep;
        const Real decayed = decays ? weight : Real(0);
        grad = multiply_add<kFused>(weight_decay, decayed, sign * grad);
        exp_avg = multiply_add<kFused>(blend1, grad - exp_avg, exp_avg);
        exp_avg_sq = multiply_add<kFused>(blend2, grad * grad, beta2 * exp_avg_sq);
        const Real denominator = std::sqrt(exp_avg_sq) / root_correction + eps;
        return multiply_add<kFused>(-step_size, exp_avg / denominator, weight);
    }
};

}  // namespace igm
