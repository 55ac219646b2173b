#pragma once

// From the options of a step to the numbers that base_rule.hpp multiplies by, in double before the one rounding.

#include <cmath>

#include "update/base_rule.hpp"
#include "update/projected_step.hpp"

namespace igm {

template <class Real, bool kMomentum>
Sgd<Real, kMomentum> make_rule(const SgdOptions& options) {
    Sgd<Real, kMomentum> rule{};
    rule.lr = static_cast<Real>(options.lr);
    rule.momentum = static_cast<Real>(options.momentum);
    rule.blend = static_cast<Real>(options.first_step ? 1.0 : 1.0 - options.dampening);
    rule.weight_decay = static_cast<Real>(options.weight_decay);
    rule.sign = static_cast<Real>(options.maximize ? -1 : 1);
    rule.decays = options.weight_decay != 0.0;
    rule.nesterov = options.nesterov;
    rule.first_step = options.first_step;
    return rule;
}

template <class Real>
Adam<Real> make_rule(const AdamOptions& options) {
    Adam<Real> rule{};
    rule.blend1 = static_cast<Real>(1.0 - options.beta1);
    rule.beta2 = static_cast<Real>(options.beta2);
    rule.blend2 = static_cast<Real>(1.0 - options.beta2);
    rule.eps = static_cast<Real>(options.eps);
    rule.keep = static_cast<Real>(options.decoupled ? 1.0 - options.lr * options.weight_decay : 1.0);
    rule.weight_decay = static_cast<Real>(options.decoupled ? 0.0 : options.weight_decay);
    rule.step_size = static_cast<Real>(options.lr / (1.0 - std::pow(options.beta1, options.step)));
    rule.root_correction = static_cast<Real>(std::sqrt(1.0 - std::pow(options.beta2, options.step)));
    rule.sign = static_cast<Real>(options.maximize ? -1 : 1);
    rule.decays = !options.decoupled && options.weight_decay != 0.0;
    return rule;
}

// Calls f with the rule that the options ask for: without momentum nothing is read or written beside the weights.
template <class Real, class F>
decltype(auto) with_rule(const SgdOptions& options, F&& f) {
    if (options.momentum == 0.0) {
        return f(make_rule<Real, false>(options));
    }
    return f(make_rule<Real, true>(options));
}

template <class Real, class F>
decltype(auto) with_rule(const AdamOptions& options, F&& f) {
    return f(make_rule<Real>(options));
}

}  // namespace igm
