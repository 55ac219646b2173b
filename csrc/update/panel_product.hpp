#pragma once

// out += a b for a block of rows of a and 32 columns of b: the product inside the projection, small enough to stay in
// registers and to be used while its operands are in cache. Sums run over the depth in order, whatever the tiling.

#include <cstdint>

#include "common/inline.hpp"

namespace igm {

constexpr int kPanelColumns = 32;  // the caller pads b's rows to a multiple of this

// kRows × 2 vectors of sums: 16 of the 32 registers of AVX-512, 8 of 16 below it, so that two rows of b and a broadcast
// fit too.
template <int kVectorBytes>
constexpr int kPanelRows = kVectorBytes == 64 ? 8 : 4;

template <int kVectorBytes, class Real>
IGM_INLINE void panel_product(const Real* a, int64_t a_stride, const Real* b, int64_t b_stride, int64_t depth,
                              Real* out, int64_t out_stride) {
    typedef Real Vector __attribute__((vector_size(kVectorBytes), aligned(alignof(Real)), may_alias));
    constexpr int kRows = kPanelRows<kVectorBytes>;
    constexpr int kLanes = kVectorBytes / static_cast<int>(sizeof(Real));
    for (int column = 0; column < kPanelColumns; column += 2 * kLanes) {
        Vector sums[kRows][2];
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
            sums[row][0] = *reinterpret_cast<const Vector*>(out + row * out_stride + column);
            sums[row][1] = *reinterpret_cast<const Vector*>(out + row * out_stride + column + kLanes);
        }
        for (int64_t p = 0; p < depth; ++p) {
            const Vector left = *reinterpret_cast<const Vector*>(b + p * b_stride + column);
            const Vector right = *reinterpret_cast<const Vector*>(b + p * b_stride + column + kLanes);
#pragma GCC unroll 8
            for (int row = 0; row < kRows; ++row) {
                const Real factor = a[row * a_stride + p];
                sums[row][0] += factor * left;
                sums[row][1] += factor * right;
            }
        }
#pragma GCC unroll 8
        for (int row = 0; row < kRows; ++row) {
            *reinterpret_cast<Vector*>(out + row * out_stride + column) = sums[row][0];
            *reinterpret_cast<Vector*>(out + row * out_stride + column + kLanes) = sums[row][1];
        }
    }
}

}  // namespace igm
