#pragma once

// Five facts about each of a batch of matrices (inspect_symmetric.hpp) in one pass over it.
//
//   1. inspect_tiles_kernel   a block per pair of 64 × 64 tiles that mirror each other: its five partial facts
//   2. inspect_final_kernel   a block per matrix: partial facts in fixed order → facts, which stay on the device
//
// The tile above the diagonal goes through shared memory to be read transposed (rows 65 apart: no bank conflicts), the
// one below stays in registers. Bytes: each entry once, 8 float64 operations per pair of entries; rows of 64 entries
// are whole sectors where d is a multiple of 8 (float32).

#include "projector/block_reduce.cuh"
#include "projector/inspect_symmetric_params.hpp"

namespace igm {

// Which tile on or below the diagonal a pair is: row (row + 1) / 2 + column = pair.
struct TilePlace {
    long long row;
    long long column;

    IGM_DEVICE explicit TilePlace(long long pair) {
        row = static_cast<long long>((sqrt(8.0 * static_cast<double>(pair) + 1.0) - 1.0) / 2.0);
        while (row * (row + 1) / 2 > pair) {  // the root was rounded
            --row;
        }
        while ((row + 1) * (row + 2) / 2 <= pair) {
            ++row;
        }
        column = pair - row * (row + 1) / 2;
    }
};

// Entries of a tile that a thread looks at: one column, every kInspectRowsAtOnce-th row; zero behind the matrix's edge.
constexpr int kInspectRowsAtOnce = kInspectThreads / kInspectTile;
constexpr int kInspectSteps = kInspectTile / kInspectRowsAtOnce;

template <class T>
IGM_DEVICE void load_tile(const T* matrix, long long size, long long tile_row, long long tile_column, int row,
                          int column, T* values) {
    const long long rows = size - tile_row * kInspectTile;
    const long long columns = size - tile_column * kInspectTile;
    const T* source = matrix + (tile_row * kInspectTile + row) * size + tile_column * kInspectTile + column;
    const int end = column < columns ? static_cast<int>(rows < kInspectTile ? rows : kInspectTile) : 0;
#pragma unroll
    for (int step = 0; step < kInspectSteps; ++step) {
        values[step] = row + step * kInspectRowsAtOnce < end ? *source : T(0);
        source += kInspectRowsAtOnce * size;
    }
}

template <class T>
IGM_KERNEL IGM_BLOCKS(kInspectThreads, kInspectResident) inspect_tiles_kernel(const InspectTiles<T> params) {
    IGM_SHARED T above[kInspectTile][kInspectTile + 1];
    IGM_SHARED double scratch[kInspectThreads / kWarp];
    const long long matrix = block_index() / params.pairs;
    const long long pair = block_index() - matrix * params.pairs;
    const TilePlace tile(pair);
    const long long size = params.size;
    const T* entries = params.matrices + matrix * size * size;
    const bool diagonal = tile.row == tile.column;
    const int column = thread_index() % kInspectTile;
    const int first = thread_index() / kInspectTile;
    T below[kInspectSteps], mirrored[kInspectSteps];
    load_tile(entries, size, tile.row, tile.column, first, column, below);
    load_tile(entries, size, tile.column, tile.row, first, column, mirrored);
#pragma unroll
    for (int step = 0; step < kInspectSteps; ++step) {
        above[first + step * kInspectRowsAtOnce][column] = mirrored[step];
    }
    barrier();
    double non_finite = 0.0, differences = 0.0, squares = 0.0, trace = 0.0, least = infinity();
#pragma unroll
    for (int step = 0; step < kInspectSteps; ++step) {
        const int row = first + step * kInspectRowsAtOnce;
        const double left = static_cast<double>(below[step]);
        const double right = static_cast<double>(above[column][row]);
        const double difference = left - right;
        differences += difference * difference;
        squares += left * left;
        non_finite += is_finite(below[step]) ? 0.0 : 1.0;
        if (!diagonal) {  // a tile on the diagonal is its own mirror image
            squares += right * right;
            non_finite += is_finite(above[column][row]) ? 0.0 : 1.0;
        } else if (row == column && tile.row * kInspectTile + row < size) {
            trace += left;
            least = left < least ? left : least;
        }
    }
    const double facts[kInspectFacts] = {
        block_reduce<Sum>(non_finite, scratch), (diagonal ? 1.0 : 2.0) * block_reduce<Sum>(differences, scratch),
        block_reduce<Sum>(squares, scratch), block_reduce<Sum>(trace, scratch), block_reduce<Least>(least, scratch)};
    if (thread_index() == 0) {
        double* partials = params.partials + matrix * kInspectFacts * params.pairs + pair;
        for (int fact = 0; fact < kInspectFacts; ++fact) {
            partials[fact * params.pairs] = facts[fact];
        }
    }
}

static IGM_KERNEL IGM_BLOCKS(kInspectThreads, kInspectResident) inspect_final_kernel(const InspectFinal params) {
    IGM_SHARED double scratch[kInspectThreads / kWarp];
    const long long matrix = block_index();
    const double* partials = params.partials + matrix * kInspectFacts * params.pairs;
    double sums[kInspectFacts] = {0.0, 0.0, 0.0, 0.0, infinity()};
    for (long long pair = thread_index(); pair < params.pairs; pair += kInspectThreads) {
        for (int fact = 0; fact < kLeastDiagonal; ++fact) {
            sums[fact] += partials[fact * params.pairs + pair];
        }
        sums[kLeastDiagonal] = Least::apply(sums[kLeastDiagonal], partials[kLeastDiagonal * params.pairs + pair]);
    }
    for (int fact = 0; fact < kLeastDiagonal; ++fact) {
        sums[fact] = block_reduce<Sum>(sums[fact], scratch);
    }
    sums[kLeastDiagonal] = block_reduce<Least>(sums[kLeastDiagonal], scratch);
    if (thread_index() == 0) {
        const bool finite = sums[kNonFinite] == 0.0;
        double* facts = params.facts + matrix * kInspectFacts;
        facts[kNonFinite] = sums[kNonFinite];
        facts[kAsymmetry] = finite ? sqrt(sums[kAsymmetry]) : not_a_number();
        facts[kNorm] = finite ? sqrt(sums[kNorm]) : not_a_number();
        facts[kTrace] = finite ? sums[kTrace] : not_a_number();
        facts[kLeastDiagonal] = finite ? sums[kLeastDiagonal] : not_a_number();
    }
}

}  // namespace igm
