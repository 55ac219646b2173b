#pragma once

// Y = Σ_p u_p z_pᵀ for 3×3 kernels that move by one, with 16 products per 2×2 positions instead of 36 (Winograd's
// minimal filtering F(3, 2), here for the gradient of a filter). Along one axis, for inputs x₀ … x₃ and images z₀, z₁:
//
//     v = (x₀ − x₂, x₁ + x₂, x₂ − x₁, x₃ − x₁)    w = (z₀, z₀ + z₁, z₀ − z₁, z₁)    m = v ∘ w
//     Σⱼ x_{t+j} zⱼ = m₀ + (m₁ + m₂)/2,  (m₁ − m₂)/2,  (m₁ + m₂)/2 + m₃    for t = 0, 1, 2
//
// and the same along the other axis. m is summed over all positions before it is transformed. Rounding errors are
// those of sums of a few more terms, but mix neighbouring taps: each is bounded by what all of them add up to.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/inline.hpp"
#include "common/parallel.hpp"
#include "covariance/sketch_product.hpp"
#include "covariance/sketch_window.hpp"

namespace igm {

constexpr int kWinograd = 16;  // products per 2×2 positions

// The 2×2 tiles of a box: planes (n, z) of rows × columns; the last row and column may be half empty.
struct TileGrid {
    int64_t planes, height, width;  // of the positions
    int64_t rows, columns;          // of the tiles

    explicit TileGrid(const OutputBox& box)
        : planes(box.count[0] * box.count[1]),
          height(box.count[2]),
          width(box.count[3]),
          rows(divide_up(height, 2)),
          columns(divide_up(width, 2)) {}

    int64_t tiles() const { return planes * rows * columns; }
    // From one product's tiles to the next one's: odd, so that 16 streams of whole cache lines meet in no set of a
    // cache.
    int64_t places() const { return tiles() | 1; }
};

// (x₀ … x₃) → v, `count` numbers at a time.
template <class Real>
IGM_INLINE void transform_inputs(const Real* x0, const Real* x1, const Real* x2, const Real* x3, int64_t count,
                                 Real* v0, Real* v1, Real* v2, Real* v3) {
#pragma GCC ivdep  // results never lie in the inputs
    for (int64_t i = 0; i < count; ++i) {
        v0[i] = x0[i] - x2[i];
        v1[i] = x1[i] + x2[i];
        v2[i] = x2[i] - x1[i];
        v3[i] = x3[i] - x1[i];
    }
}

// window [blocks, planes, height + 2, width + 2, kRows] → values [blocks, 16, places, kRows].
template <int kVectorBytes, class Real>
void transform_window(const TileGrid& grid, const Real* window, int64_t blocks, Real* values, int threads) {
    constexpr int kRows = SketchTiling<kVectorBytes, Real>::kRows;
    const int64_t row = (grid.width + 2) * kRows;
    const int64_t padded = (2 * grid.columns + 2) * kRows;  // a place more than the window has if the width is odd
    parallel_for(blocks * grid.planes, threads, [&](int64_t item) {
        const Real* plane = window + item * (grid.height + 2) * row;
        Real* out =
            values +
            (item / grid.planes * kWinograd * grid.places() + item % grid.planes * grid.rows * grid.columns) * kRows;
        std::vector<Real> lines(5 * padded, Real(0));  // four transformed ones and, below the last row, zeros
        const Real* below = lines.data() + 4 * padded;
        with_vectors<kVectorBytes>([&]() __attribute__((always_inline)) {
            for (int64_t y = 0; y < grid.rows; ++y, out += grid.columns * kRows) {
                const Real* x = plane + 2 * y * row;
                const Real* last = 2 * y + 3 < grid.height + 2 ? x + 3 * row : below;
                Real* line = lines.data();
                transform_inputs(x, x + row, x + 2 * row, last, row, line, line + padded, line + 2 * padded,
                                 line + 3 * padded);
                for (int i = 0; i < 4; ++i, line += padded) {
                    Real* v = out + i * 4 * grid.places() * kRows;
                    const int64_t step = grid.places() * kRows;
                    for (int64_t t = 0; t < grid.columns; ++t, v += kRows) {
                        const Real* from = line + 2 * t * kRows;
                        transform_inputs(from, from + kRows, from + 2 * kRows, from + 3 * kRows, kRows, v, v + step,
                                         v + 2 * step, v + 3 * step);
                    }
                }
            }
        });
    });
}

// images [panels, positions, 16] → values [panels, 16, places, 16].
template <int kVectorBytes, class Real>
void transform_images(const TileGrid& grid, const Real* images, int64_t panels, Real* values, int threads) {
    parallel_for(panels * grid.planes, threads, [&](int64_t item) {
        const Real* plane = images + item * grid.height * grid.width * kSketchPanel;
        Real* out =
            values + (item / grid.planes * kWinograd * grid.places() + item % grid.planes * grid.rows * grid.columns) *
                         kSketchPanel;
        const int64_t step = grid.places() * kSketchPanel;
        const Real zeros[kSketchPanel] = {};
        with_vectors<kVectorBytes>([&]() __attribute__((always_inline)) {
            for (int64_t y = 0; y < grid.rows; ++y) {
                for (int64_t x = 0; x < grid.columns; ++x, out += kSketchPanel) {
                    const Real* z00 = plane + (2 * y * grid.width + 2 * x) * kSketchPanel;
                    const bool right = 2 * x + 1 < grid.width, below = 2 * y + 1 < grid.height;
                    const Real* z01 = right ? z00 + kSketchPanel : zeros;
                    const Real* z10 = below ? z00 + grid.width * kSketchPanel : zeros;
                    const Real* z11 = right && below ? z10 + kSketchPanel : zeros;
#pragma GCC ivdep
                    for (int j = 0; j < kSketchPanel; ++j) {
                        const Real a[4] = {z00[j], z00[j] + z01[j], z00[j] - z01[j], z01[j]};
                        const Real b[4] = {z10[j], z10[j] + z11[j], z10[j] - z11[j], z11[j]};
#pragma GCC unroll 4
                        for (int e = 0; e < 4; ++e) {
                            out[e * step + j] = a[e];
                            out[(4 + e) * step + j] = a[e] + b[e];
                            out[(8 + e) * step + j] = a[e] - b[e];
                            out[(12 + e) * step + j] = b[e];
                        }
                    }
                }
            }
        });
    });
}

// sketch [channels, 9, columns] += alpha · (sums [channels, 16, columns], transformed).
template <class Real>
void add_transformed(const Real* sums, int64_t channels, int64_t columns, Real alpha, Real* sketch, int threads) {
    parallel_for(channels, threads, [&](int64_t c) {
        const Real* m = sums + c * kWinograd * columns;
        Real* out = sketch + c * 9 * columns;
        for (int64_t k = 0; k < columns; ++k) {
            Real half[3][4];  // the rows are done
            for (int e = 0; e < 4; ++e) {
                const Real m0 = m[e * columns + k], m1 = m[(4 + e) * columns + k];
                const Real m2 = m[(8 + e) * columns + k], m3 = m[(12 + e) * columns + k];
                half[0][e] = m0 + (m1 + m2) / 2;
                half[1][e] = (m1 - m2) / 2;
                half[2][e] = (m1 + m2) / 2 + m3;
            }
            for (int i = 0; i < 3; ++i) {
                const Real both = (half[i][1] + half[i][2]) / 2;
                out[3 * i * columns + k] += alpha * (half[i][0] + both);
                out[(3 * i + 1) * columns + k] += alpha * ((half[i][1] - half[i][2]) / 2);
                out[(3 * i + 2) * columns + k] += alpha * (both + half[i][3]);
            }
        }
    });
}

}  // namespace igm
