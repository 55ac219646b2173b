#pragma once

// Puts the second moment of patches together from products of single positions (igm_fast/ops/lags.py makes them).
//
//     out[(c, i), (e, j)] += alpha · Σ_s weight_s · products[term_s, c, e]     (or [term_s, e, c], see below)
//
// for channels c, e and taps i, j of the kernel; the sources s of a pair (i, j) are first[i·taps + j] …
// first[i·taps + j + 1] − 1. The lower triangle of `out` is what counts on entry, and each of its entries is one sum in
// the order of its sources (the same bits for any number of threads); the upper one becomes its copy, or is left alone.

#include <cstdint>

#include "common/dtype.hpp"

namespace igm {

struct LagSources {
    const int64_t* first;  // [taps² + 1]
    const int64_t* code;   // 2·term, + 1 where the transposed product is meant
    const double* weight;
};

// out [channels·taps, channels·taps] and products [terms, channels, channels], contiguous float32 or float64.
void add_lag_blocks(void* out, const void* products, DType dtype, int64_t channels, int64_t taps, int64_t terms,
                    const LagSources& sources, double alpha, bool mirror, int threads);

}  // namespace igm
