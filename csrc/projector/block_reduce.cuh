#pragma once

// Reductions over a block in a fixed tree, so that the same launch always gives the same bits.

#include "common/device.cuh"

namespace igm {

struct Sum {
    static IGM_DEVICE double apply(double a, double b) { return a + b; }
};
struct Least {
    static IGM_DEVICE double apply(double a, double b) { return b < a ? b : a; }
};
struct Largest {
    static IGM_DEVICE double apply(double a, double b) { return b > a ? b : a; }
};

// On all lanes: both partners of an exchange combine the same two values.
template <class Combine>
IGM_DEVICE double warp_reduce(double value) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) {
        value = Combine::apply(value, shuffle_xor(value, mask));
    }
    return value;
}

// On all threads; whole warps only. `scratch` holds a number per warp and is free again when this returns.
template <class Combine>
IGM_DEVICE double block_reduce(double value, double* scratch) {
    value = warp_reduce<Combine>(value);
    if (lane_index() == 0) {
        scratch[warp_index()] = value;
    }
    barrier();
    double result = scratch[0];
    for (int warp = 1; warp < block_size() / kWarp; ++warp) {
        result = Combine::apply(result, scratch[warp]);
    }
    barrier();
    return result;
}

// What is not finite leaves NaN when it is taken from itself.
template <class T>
IGM_DEVICE bool is_finite(T value) {
    return value - value == 0;
}

IGM_DEVICE double not_a_number() { return bit_cast<double>(0x7ff8000000000000ull); }
IGM_DEVICE double infinity() { return bit_cast<double>(0x7ff0000000000000ull); }

}  // namespace igm
