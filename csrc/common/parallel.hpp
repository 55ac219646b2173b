#pragma once

#include <cstdint>

#include "common/isa.hpp"

namespace igm {

// Runs body(item) for item = 0 … items-1 on at most `threads` threads. What an item is never depends on `threads`;
// with sums that are kept per item and added in order of items, any thread count gives the same bits.
// The body must not throw: an exception cannot leave an OpenMP region.
template <class Body>
void parallel_for(int64_t items, int threads, const Body& body) {
    if (items <= 1 || threads <= 1) {  // no parallel region: waking a second thread costs more than a small item
        for (int64_t item = 0; item < items; ++item) {
            body(item);
        }
        return;
    }
    isa();  // asked once; what it has to say about IGM_FAST_ISA could not leave the region below
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t item = 0; item < items; ++item) {
        body(item);
    }
}

// The same for items of very different length: whoever is free takes the next one.
template <class Body>
void parallel_for_uneven(int64_t items, int threads, const Body& body) {
    if (items <= 1 || threads <= 1) {
        for (int64_t item = 0; item < items; ++item) {
            body(item);
        }
        return;
    }
    isa();
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t item = 0; item < items; ++item) {
        body(item);
    }
}

inline constexpr int64_t divide_up(int64_t value, int64_t divisor) { return (value + divisor - 1) / divisor; }

}  // namespace igm
