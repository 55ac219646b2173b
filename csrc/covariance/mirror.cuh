#pragma once

// Copies the lower triangle of square matrices to the upper one, bit for bit. A block takes a tile of 32 × 32 on or
// below the diagonal through shared memory, so that reads and writes both go along rows.
//
// Bytes: half of the matrix read, half written.

#include "covariance/mirror_params.hpp"
#include "covariance/patch_source.cuh"

namespace igm {

template <class T>
IGM_KERNEL IGM_BLOCKS(kMirrorThreads, kMirrorResident) mirror_kernel(const Mirror params) {
    constexpr int kRowsAtOnce = kMirrorThreads / kMirrorTile;
    IGM_SHARED T tile[kMirrorTile][kMirrorTile + 1];
    const TilePlace place = lower_tile(static_cast<int>(block_index() % params.tiles));
    T* const matrix = static_cast<T*>(params.matrices) +
                      block_index() / params.tiles * (static_cast<long long>(params.dim) * params.dim);
    const int first_row = place.row * kMirrorTile, first_column = place.column * kMirrorTile;
    const int j = thread_index() % kMirrorTile;
    for (int i = thread_index() / kMirrorTile; i < kMirrorTile; i += kRowsAtOnce) {
        if (first_row + i < params.dim && first_column + j < params.dim) {
            tile[i][j] = matrix[static_cast<long long>(first_row + i) * params.dim + first_column + j];
        }
    }
    barrier();
    for (int i = thread_index() / kMirrorTile; i < kMirrorTile; i += kRowsAtOnce) {
        const int row = first_column + i, column = first_row + j;
        if (row < column && column < params.dim) {
            matrix[static_cast<long long>(row) * params.dim + column] = tile[j][i];
        }
    }
}

}  // namespace igm
