#pragma once

#include "common/inline.hpp"

namespace igm {

// Uniform in [−1, 1) from the place alone (SplitMix64's mixing): the same column in place of a dependent one
// everywhere.
IGM_INLINE double pseudo_random(unsigned long long round, unsigned long long row, unsigned long long column) {
    unsigned long long bits = (round << 48) + (column << 32) + row + 0x9e3779b97f4a7c15u;
    bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9u;
    bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebu;
    bits ^= bits >> 31;
    return static_cast<double>(bits >> 11) * 0x1p-52 - 1.0;
}

}  // namespace igm
