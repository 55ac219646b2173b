#pragma once

// Adds the splits' partial sums of patch_product.cuh up, in order and in float64, and adds alpha times that to the
// output. A block takes 32×32 entries of a tile. Symmetric: entries on and below the diagonal (of the kernel's
// numbering of rows) are computed and written twice, the second time through shared memory, so that both writes go
// along rows of the output; with tap_major numbering neighbours are `taps` apart in it, whichever way they are written.
//
// Bytes: every partial sum once (they lie in L2), the output read and written once.

#include "covariance/patch_source.cuh"

namespace igm {

template <class Sum, bool kSymmetric>
IGM_KERNEL IGM_BLOCKS(kReductionThreads, kReductionResident) patch_reduction_kernel(const PatchReduction params) {
    constexpr int kSide = kReductionTile, kRowsAtOnce = kReductionThreads / kSide;
    IGM_SHARED Sum transposed[kSide][kSide + 1];

    const int parts_across = (params.tile_columns + kSide - 1) / kSide;
    const int parts = (params.tile_rows + kSide - 1) / kSide * parts_across;
    const int local_tile = static_cast<int>(block_index() / parts), part = static_cast<int>(block_index() % parts);
    const int per_group =
        kSymmetric ? params.tiles_across * (params.tiles_across + 1) / 2 : params.tiles_down * params.tiles_across;
    const int number = params.first_tile + local_tile;
    const int tile = number % per_group;
    const TilePlace place =
        kSymmetric ? lower_tile(tile) : TilePlace{tile / params.tiles_across, tile % params.tiles_across};
    const int columns = kSymmetric ? params.dim : params.columns;
    Sum* out = static_cast<Sum*>(params.out) + static_cast<long long>(number / per_group) * params.dim * columns;
    const int part_row = part / parts_across * kSide, part_column = part % parts_across * kSide;
    const int first_row = place.row * params.tile_rows + part_row;
    const int first_column = place.column * params.tile_columns + part_column;
    const long long tile_size = static_cast<long long>(params.tile_rows) * params.tile_columns;

    const auto exists = [&](int i, int j) {
        const int row = first_row + i, column = first_column + j;
        return part_row + i < params.tile_rows && part_column + j < params.tile_columns && row < params.dim &&
               column < columns && (!kSymmetric || column <= row);
    };
    const auto in_output = [&](int row) -> long long {
        return params.tap_major ? row % params.channels * params.taps + row / params.channels : row;
    };

    for (int i = thread_index() / kSide; i < kSide; i += kRowsAtOnce) {
        const int j = thread_index() % kSide;
        if (exists(i, j)) {
            const Sum* partial = static_cast<const Sum*>(params.partials) + local_tile * tile_size +
                                 (part_row + i) * params.tile_columns + part_column + j;
            double sum = 0.0;
            for (int split = 0; split < params.splits; ++split) {
                sum += partial[split * params.tiles * tile_size];
            }
            const long long row = in_output(first_row + i);
            const long long column = kSymmetric ? in_output(first_column + j) : first_column + j;
            const bool mirrored = kSymmetric && column > row;  // the old sum is that of the lower triangle
            const double old = mirrored ? out[column * columns + row] : out[row * columns + column];
            const Sum value = static_cast<Sum>(old + params.alpha * sum);
            transposed[j][i] = value;
            out[row * columns + column] = value;
        }
    }
    if constexpr (kSymmetric) {
        barrier();
        for (int j = thread_index() / kSide; j < kSide; j += kRowsAtOnce) {
            const int i = thread_index() % kSide;
            if (exists(i, j)) {
                out[in_output(first_column + j) * columns + in_output(first_row + i)] = transposed[j][i];
            }
        }
    }
}

}  // namespace igm
