#pragma once

// Adds the splits' partial sums of patch_product.cuh up, in order and in float64, and adds alpha times that to the
// output. A block takes 16 rows of a tile, over all its columns: it adds them up into shared memory, in the order in
// which they lie, and writes them along rows of the output, where channels go before taps (patch_place). Of a
// covariance the lower triangle is written; mirror.cuh makes the other one of it.
//
// Bytes: every partial sum once (they lie in L2), the output read and written once.

#include "covariance/patch_source.cuh"

namespace igm {

// Where the entry of row `row` comes among those of rows first … last - 1 in the order of the output: channel by
// channel, and tap by tap inside of one. Of a block of rows, channels l have ⌈(end - l) / together⌉ taps below `end`.
IGM_DEVICE int output_rank(int taps, int together, int first, int last, int row) {
    const int block = taps * together, begin_of_block = row / block * block;
    const int begin = first > begin_of_block ? first - begin_of_block : 0;
    const int end = last - begin_of_block < block ? last - begin_of_block : block;
    const int tap = (row - begin_of_block) / together, low = row - begin_of_block - tap * together;
    const int whole_begin = begin / together, part_begin = begin - whole_begin * together;
    const int whole_end = end / together, part_end = end - whole_end * together;
    const int before =
        low * (whole_end - whole_begin) + (low < part_end ? low : part_end) - (low < part_begin ? low : part_begin);
    const int first_tap = whole_begin + (low < part_begin ? 1 : 0);
    return (begin_of_block > first ? begin_of_block - first : 0) + before + tap - first_tap;
}

template <class Sum, bool kSymmetric>
IGM_KERNEL IGM_BLOCKS(kReductionThreads, kReductionResident) patch_reduction_kernel(const PatchReduction params) {
    double* const entries = reinterpret_cast<double*>(dynamic_shared());
    int* const order = reinterpret_cast<int*>(entries + kReductionRows * params.tile_columns);  // columns of the tile
    int* const out_columns = order + params.tile_columns;                                       // -1: none
    const int parts = params.tile_rows / kReductionRows;
    const int local_tile = static_cast<int>(block_index() / parts), part = static_cast<int>(block_index() % parts);
    const int per_group =
        kSymmetric ? params.tiles_across * (params.tiles_across + 1) / 2 : params.tiles_down * params.tiles_across;
    const int number = params.first_tile + local_tile, tile = number % per_group;
    const TilePlace place =
        kSymmetric ? lower_tile(tile) : TilePlace{tile / params.tiles_across, tile % params.tiles_across};
    const int first_row = place.row * params.tile_rows + part * kReductionRows;
    const int first_column = place.column * params.tile_columns;
    const int dim = params.channels * params.taps, columns = kSymmetric ? dim : params.columns;
    for (int i = thread_index(); i < params.tile_columns; i += kReductionThreads) {
        const int column = first_column + i;
        if constexpr (kSymmetric) {
            const PatchPlace at = patch_place(params.taps, params.together, column);
            const int rank =
                output_rank(params.taps, params.together, first_column, first_column + params.tile_columns, column);
            order[rank] = i;
            out_columns[rank] = at.channel < params.channels ? at.channel * params.taps + at.tap : -1;
        } else {
            order[i] = i;
            out_columns[i] = column < columns ? column : -1;
        }
    }
    const int size = params.tile_rows * params.tile_columns;
    const Sum* const partials = static_cast<const Sum*>(params.partials) + local_tile * static_cast<long long>(size) +
                                part * kReductionRows * params.tile_columns;
    const long long per_split = static_cast<long long>(params.tiles) * size;
    for (int i = thread_index(); i < kReductionRows * params.tile_columns; i += kReductionThreads) {
        const Sum* partial = partials + i;
        double sum = 0.0;
        for (int split = 0; split < params.splits; ++split, partial += per_split) {
            sum += *partial;
        }
        entries[i] = params.alpha * sum;
    }
    barrier();

    Sum* const out = static_cast<Sum*>(params.out) + static_cast<long long>(number / per_group) * dim * columns;
    for (int i = warp_index(); i < kReductionRows; i += kReductionThreads / kWarp) {
        const int row = first_row + i;
        const PatchPlace at = patch_place(params.taps, params.together, row);
        if (at.channel >= params.channels) {
            continue;
        }
        const int out_row = at.channel * params.taps + at.tap;
        Sum* const along = out + static_cast<long long>(out_row) * columns;
        for (int rank = lane_index(); rank < params.tile_columns; rank += kWarp) {
            const int column = order[rank], out_column = out_columns[rank];
            if (out_column < 0 || (kSymmetric && first_column + column > row)) {
                continue;
            }
            // Inside of a block of rows, the lower triangle of one order is not that of the other.
            Sum* const target = kSymmetric && out_column > out_row
                                    ? out + static_cast<long long>(out_column) * columns + out_row
                                    : along + out_column;
            *target = static_cast<Sum>(*target + entries[i * params.tile_columns + column]);
        }
    }
}

template <class Sum>
IGM_KERNEL IGM_BLOCKS(kReductionThreads, kReductionResident) image_sum_kernel(const ImageSum params) {
    const long long index = block_index() * kReductionThreads + thread_index();
    if (index < params.elements) {
        Sum* const image = static_cast<Sum*>(params.image) + index;
        double sum = 0.0;
        for (int split = 0; split < params.splits; ++split) {
            sum += image[split * params.elements];
        }
        *image = static_cast<Sum>(sum);
    }
}

}  // namespace igm
