#pragma once

// Division of small numbers by one that many threads share, as a product.

#include "common/device.cuh"

namespace igm {

// value / divisor for 0 <= value < 2^20: the rounding of the product is too small to reach the next integer.
IGM_DEVICE int small_quotient(int value, float one_per_divisor) {
    return static_cast<int>((static_cast<float>(value) + 0.5f) * one_per_divisor);
}

}  // namespace igm
