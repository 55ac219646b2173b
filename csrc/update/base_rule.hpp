#pragma once

// The base optimizers, one element at a time, in the order of operations of torch.optim's single-tensor form.

#include <cmath>

#include "common/inline.hpp"
#include "update/projected_step.hpp"

namespace igm {

template <class Real, bool kMomentum>
struct Sgd {
    Real lr, momentum, blend, weight_decay;
    bool nesterov, maximize, first_step;

    explicit Sgd(const SgdOptions& options)
        : lr(static_cast<Real>(options.lr)),
          momentum(static_cast<Real>(options.momentum)),
          blend(static_cast<Real>(1.0 - options.dampening)),
          weight_decay(static_cast<Real>(options.weight_decay)),
          nesterov(options.nesterov),
          maximize(options.maximize),
          first_step(options.first_step) {}

    static constexpr int kStates = kMomentum ? 1 : 0;

    IGM_INLINE Real apply(Real weight, Real grad, Real& buffer, Real&) const {
        grad = maximize ? -grad : grad;
        grad = weight_decay != 0 ? grad + weight_decay * weight : grad;  // not g + 0·w: w may be Inf
        if constexpr (kMomentum) {
            buffer = first_step ? grad : momentum * buffer + blend * grad;
            grad = nesterov ? grad + momentum * buffer : buffer;
        }
        return weight - lr * grad;
    }
};

template <class Real>
struct Adam {
    Real blend1, beta2, blend2, eps, keep, weight_decay, step_size, root_correction;
    bool maximize;

    explicit Adam(const AdamOptions& options)
        : blend1(static_cast<Real>(1.0 - options.beta1)),
          beta2(static_cast<Real>(options.beta2)),
          blend2(static_cast<Real>(1.0 - options.beta2)),
          eps(static_cast<Real>(options.eps)),
          keep(static_cast<Real>(options.decoupled ? 1.0 - options.lr * options.weight_decay : 1.0)),
          weight_decay(static_cast<Real>(options.decoupled ? 0.0 : options.weight_decay)),
          step_size(static_cast<Real>(options.lr / (1.0 - std::pow(options.beta1, options.step)))),
          root_correction(static_cast<Real>(std::sqrt(1.0 - std::pow(options.beta2, options.step)))),
          maximize(options.maximize) {}

    static constexpr int kStates = 2;

    IGM_INLINE Real apply(Real weight, Real grad, Real& exp_avg, Real& exp_avg_sq) const {
        grad = maximize ? -grad : grad;
        weight *= keep;
        grad = weight_decay != 0 ? grad + weight_decay * weight : grad;
        exp_avg = exp_avg + blend1 * (grad - exp_avg);
        exp_avg_sq = beta2 * exp_avg_sq + blend2 * (grad * grad);
        return weight - step_size * (exp_avg / (std::sqrt(exp_avg_sq) / root_correction + eps));
    }
};

}  // namespace igm
