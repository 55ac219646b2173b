#pragma once

// Y = C V for square C and a panel V of a few dozen columns: one pass over C, which is what such a product costs.
//
// A BLAS that packs C first reads and writes it once more, and is tuned for wide V; here 6 rows of C at a time meet
// 1024 rows of V that stay in cache, and their entries are broadcast straight from memory.

#include <cstdint>

#include "common/dtype.hpp"

namespace igm {

// matrices [count, size, size], panels and products [count, size, columns], contiguous float32 or float64; products
// must not overlap the others. Sums run over 1024 columns of C at a time, in order: same bits for any number of
// threads.
void tall_product(const void* matrices, const void* panels, void* products, DType dtype, int64_t count, int64_t size,
                  int64_t columns, int threads);

}  // namespace igm
