#include "projector/tall_product.hpp"

#include <algorithm>
#include <vector>

#include "common/isa.hpp"
#include "common/parallel.hpp"

namespace igm {

namespace {

// Rows of V per step: 1024 × 2 vectors of AVX2 are 64 kB, which the second-level cache streams; C is then read in
// pieces of rows that are long enough for the processor to see them coming.
constexpr int64_t kDepth = 1024;
// Rows of C that one item works on.
constexpr int64_t kItemRows = 96;
// kRows × 2 vectors of sums, two of V and a broadcast: 15 of 16 registers (AVX-512 has 32).
constexpr int kRows = 6;

// out[row] += Σ_p rows[row][p] · packed[p], for 2 vectors of columns.
template <class Vector, class T>
IGM_INLINE void multiply_tile(const T* const* rows, const Vector* packed, int64_t depth, Vector (*sums)[2]) {
    Vector local[kRows][2] = {};
    for (int64_t p = 0; p < depth; ++p) {
        const Vector left = packed[2 * p];
        const Vector right = packed[2 * p + 1];
#pragma GCC unroll 6
        for (int row = 0; row < kRows; ++row) {
            const T factor = rows[row][p];
            local[row][0] += factor * left;
            local[row][1] += factor * right;
        }
    }
#pragma GCC unroll 6
    for (int row = 0; row < kRows; ++row) {
        sums[row][0] = local[row][0];
        sums[row][1] = local[row][1];
    }
}

struct Panel {
    int64_t size;
    int64_t columns;
};

// Rows [first, first + count) of one product.
template <int kVectorBytes, class T>
IGM_INLINE void multiply_rows(const T* matrix, const T* panel, T* product, Panel shape, int64_t first, int64_t count) {
    typedef T Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(T)), may_alias));
    constexpr int64_t kWidth = 2 * kVectorBytes / static_cast<int64_t>(sizeof(T));
    alignas(64) T packed[kDepth * kWidth];
    std::fill_n(product + first * shape.columns, count * shape.columns, T(0));
    for (int64_t start = 0; start < shape.size; start += kDepth) {
        const int64_t depth = std::min(kDepth, shape.size - start);
        for (int64_t column = 0; column < shape.columns; column += kWidth) {
            const int64_t width = std::min(kWidth, shape.columns - column);
            for (int64_t p = 0; p < depth; ++p) {
                const T* source = panel + (start + p) * shape.columns + column;
                std::copy_n(source, width, packed + p * kWidth);
                std::fill(packed + p * kWidth + width, packed + (p + 1) * kWidth, T(0));
            }
            for (int64_t row = 0; row < count; row += kRows) {
                const T* rows[kRows];
                for (int i = 0; i < kRows; ++i) {  // rows behind the last are the last again, and dropped below
                    rows[i] = matrix + (first + std::min(row + i, count - 1)) * shape.size + start;
                }
                Vector sums[kRows][2];
                multiply_tile(rows, reinterpret_cast<const Vector*>(packed), depth, sums);
                for (int i = 0; i < std::min<int64_t>(kRows, count - row); ++i) {
                    T* out = product + (first + row + i) * shape.columns + column;
                    const T* values = reinterpret_cast<const T*>(sums[i]);
                    for (int64_t j = 0; j < width; ++j) {
                        out[j] += values[j];
                    }
                }
            }
        }
    }
}

}  // namespace

void tall_product(const void* matrices, const void* panels, void* products, DType dtype, int64_t count, int64_t size,
                  int64_t columns, int threads) {
    const int64_t items = divide_up(size, kItemRows);
    dispatch_accumulator(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        parallel_for(count * items, threads, [&](int64_t item) {
            const int64_t i = item / items;
            const int64_t first = item % items * kItemRows;
            const T* matrix = static_cast<const T*>(matrices) + i * size * size;
            const T* panel = static_cast<const T*>(panels) + i * size * columns;
            T* product = static_cast<T*>(products) + i * size * columns;
            with_best_isa([&](auto bytes) __attribute__((always_inline)) {
                multiply_rows<decltype(bytes)::value>(matrix, panel, product, {size, columns}, first,
                                                      std::min(kItemRows, size - first));
            });
        });
    });
}

}  // namespace igm
