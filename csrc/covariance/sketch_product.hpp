#pragma once

// The two products of a sketch, one tile of results in registers at a time. 12 vectors of sums (16 registers have room
// for two operands and a broadcast beside them) hide the latency of multiply-add.

#include <cstdint>

#include "common/inline.hpp"
#include "common/isa.hpp"

namespace igm {

// Runs a body compiled for vectors of kVectorBytes, where the layout of the operands has settled them already.
template <int kVectorBytes, class Body>
void with_vectors(const Body& body) {
    if constexpr (kVectorBytes == 64) {
        detail::run_avx512([&](auto) __attribute__((always_inline)) { body(); });
    } else if constexpr (kVectorBytes == 32) {
        detail::run_avx2([&](auto) __attribute__((always_inline)) { body(); });
    } else {
        body();
    }
}

constexpr int kSketchBlock = 8;                 // columns of Ω whose zeros are known together
constexpr int kSketchPanel = 2 * kSketchBlock;  // columns of Y that are summed together

template <int kVectorBytes, class Real>
struct SketchTiling {
    static constexpr int kPanelVectors = kSketchPanel * static_cast<int>(sizeof(Real)) / kVectorBytes;
    // Channels of Y together; also the lanes of a window.
    static constexpr int kRows = kPanelVectors > 6 ? 2 : 12 / kPanelVectors;
};

// What a strip of kColumns columns of Ω needs: its taps, and Ω there, [taps, channel blocks, kRows, kColumns], zero
// beyond the last channel.
template <class Real>
struct SketchStrip {
    const int64_t* tap_offsets;  // places
    int64_t taps;
    const Real* omega;
};

// kColumns columns of Z: vectors of at most kVectorBytes, and how many positions are worked on together.
template <int kVectorBytes, int kColumns, class Real>
struct ImageTiling {
    static constexpr int kWidth = kColumns * static_cast<int>(sizeof(Real));
    static constexpr int kBytes = kVectorBytes < kWidth ? kVectorBytes : kWidth;
    static constexpr int kLanes = kBytes / static_cast<int>(sizeof(Real));
    static constexpr int kVectors = kColumns / kLanes;
    static constexpr int kPositions = kVectors > 6 ? 2 : 12 / kVectors;
};

// out[p, 0 … kColumns) = u_pᵀΩ for kCount neighbouring positions from `window` on; out's rows are kSketchPanel apart.
template <int kVectorBytes, int kColumns, int kCount, class Real>
IGM_INLINE void image_tile(const Real* window, int64_t blocks, int64_t block_stride, const SketchStrip<Real>& strip,
                           Real* out) {
    using Tiling = ImageTiling<kVectorBytes, kColumns, Real>;
    typedef Real Vector __attribute__((vector_size(Tiling::kBytes), aligned(alignof(Real)), may_alias));
    constexpr int kRows = SketchTiling<kVectorBytes, Real>::kRows;
    Vector sums[kCount][Tiling::kVectors] = {};
    const Real* omega = strip.omega;
    for (int64_t tap = 0; tap < strip.taps; ++tap) {
        const Real* x = window + strip.tap_offsets[tap] * kRows;
        for (int64_t block = 0; block < blocks; ++block, x += block_stride) {
#pragma GCC unroll 16
            for (int c = 0; c < kRows; ++c, omega += kColumns) {
                Vector factors[Tiling::kVectors];
#pragma GCC unroll 8
                for (int v = 0; v < Tiling::kVectors; ++v) {
                    factors[v] = *reinterpret_cast<const Vector*>(omega + v * Tiling::kLanes);
                }
#pragma GCC unroll 16
                for (int p = 0; p < kCount; ++p) {
#pragma GCC unroll 8
                    for (int v = 0; v < Tiling::kVectors; ++v) {
                        sums[p][v] += x[p * kRows + c] * factors[v];
                    }
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int p = 0; p < kCount; ++p) {
#pragma GCC unroll 8
        for (int v = 0; v < Tiling::kVectors; ++v) {
            *reinterpret_cast<Vector*>(out + p * kSketchPanel + v * Tiling::kLanes) = sums[p][v];
        }
    }
}

// The same for 1 … kCount positions.
template <int kVectorBytes, int kColumns, int kCount, class Real>
IGM_INLINE void image_tiles(int64_t count, const Real* window, int64_t blocks, int64_t block_stride,
                            const SketchStrip<Real>& strip, Real* out) {
    if constexpr (kCount > 1) {
        if (count < kCount) {
            return image_tiles<kVectorBytes, kColumns, kCount - 1>(count, window, blocks, block_stride, strip, out);
        }
    }
    image_tile<kVectorBytes, kColumns, kCount>(window, blocks, block_stride, strip, out);
}

// The same for a row of any length, cut into tiles of nearly equal length.
template <int kVectorBytes, int kColumns, class Real>
IGM_INLINE void image_row(int64_t length, const Real* window, int64_t blocks, int64_t block_stride,
                          const SketchStrip<Real>& strip, Real* out) {
    constexpr int kPositions = ImageTiling<kVectorBytes, kColumns, Real>::kPositions;
    constexpr int kRows = SketchTiling<kVectorBytes, Real>::kRows;
    const int64_t tiles = (length + kPositions - 1) / kPositions;
    for (int64_t tile = 0; tile < tiles; ++tile) {
        const int64_t begin = tile * length / tiles;
        const int64_t count = (tile + 1) * length / tiles - begin;
        image_tiles<kVectorBytes, kColumns, kPositions>(count, window + begin * kRows, blocks, block_stride, strip,
                                                        out + begin * kSketchPanel);
    }
}

// Rows of `length` neighbouring positions: where each begins in the window, in places.
struct SketchRows {
    const int64_t* offsets;
    int64_t count;
    int64_t length;
};

// out[c, 0 … 16) = Σ_p window[p, c] · images[p, 0 … 16) for kCount ≤ kRows channels; all rows of positions in order.
template <int kVectorBytes, int kCount, class Real>
IGM_INLINE void product_tile(const Real* window, const SketchRows& rows, const Real* images, Real* out) {
    typedef Real Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(Real)), may_alias));
    constexpr int kVectors = SketchTiling<kVectorBytes, Real>::kPanelVectors;
    constexpr int kRows = SketchTiling<kVectorBytes, Real>::kRows;
    constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Real));
    Vector sums[kCount][kVectors] = {};
    for (int64_t row = 0; row < rows.count; ++row) {
        const Real* x = window + rows.offsets[row] * kRows;
        for (int64_t p = 0; p < rows.length; ++p, x += kRows, images += kSketchPanel) {
            Vector factors[kVectors];
#pragma GCC unroll 8
            for (int v = 0; v < kVectors; ++v) {
                factors[v] = *reinterpret_cast<const Vector*>(images + v * kLanes);
            }
#pragma GCC unroll 16
            for (int c = 0; c < kCount; ++c) {
#pragma GCC unroll 8
                for (int v = 0; v < kVectors; ++v) {
                    sums[c][v] += x[c] * factors[v];
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) {
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) {
            *reinterpret_cast<Vector*>(out + c * kSketchPanel + v * kLanes) = sums[c][v];
        }
    }
}

template <int kVectorBytes, int kCount, class Real>
IGM_INLINE void product_tiles(int64_t count, const Real* window, const SketchRows& rows, const Real* images,
                              Real* out) {
    if constexpr (kCount > 1) {
        if (count < kCount) {
            return product_tiles<kVectorBytes, kCount - 1>(count, window, rows, images, out);
        }
    }
    product_tile<kVectorBytes, kCount>(window, rows, images, out);
}

}  // namespace igm
