#pragma once

// One round of CholeskyQR for a batch of tall panels A [rows, columns ≤ 64] (panel_qr.hpp), in float64 throughout:
//
//   1. panel_gram_kernel      a block per 128 rows: their part of G = AᵀA
//   2. panel_factor_kernel    a block per panel: adds the parts in fixed order; G = RᵀR; R⁻¹
//   3. panel_multiply_kernel  a block per 64 rows: A ← A R⁻¹ in place, random columns where A's have nothing new
//
// A float64 square of a float32 panel is exact and cannot overflow. Bytes: the panel is read twice and written once per
// round, and stays in L2 (295 kB at d = 4608 with 16 columns); 4 columns² float64 flops per row. The rounds are
// launch-bound at the sizes of the projector, so nothing here waits for the host: the number of rounds is fixed, and a
// panel that is orthonormal already only gets rounder.

#include "projector/block_reduce.cuh"
#include "projector/panel_qr_params.hpp"
#include "projector/pseudo_random.hpp"

namespace igm {

// Threads form a 16 × 16 square; each has kPerThread columns (and rows of G), 16 apart.
constexpr int kPanelSide = 16;

template <int kPerThread, class T>
IGM_KERNEL IGM_BLOCKS(kPanelThreads, kPanelResident) panel_gram_kernel(const PanelGram<T> params) {
    constexpr int kWidth = kPerThread * kPanelSide;
    constexpr int kStageRows = 32;
    IGM_SHARED double stage[kStageRows][kWidth];
    const long long matrix = block_index() / params.chunks;
    const long long chunk = block_index() - matrix * params.chunks;
    const int columns = params.columns;
    const long long begin = chunk * kPanelChunkRows;
    const long long left = params.rows - begin;
    const int rows = static_cast<int>(left < kPanelChunkRows ? left : kPanelChunkRows);
    const T* panel = params.panels + (matrix * params.rows + begin) * columns;
    const int tx = thread_index() % kPanelSide;
    const int ty = thread_index() / kPanelSide;
    double sums[kPerThread][kPerThread] = {};
    for (int first = 0; first < rows; first += kStageRows) {
        for (int place = thread_index(); place < kStageRows * kWidth; place += kPanelThreads) {
            const int row = place / kWidth;
            const int column = place % kWidth;
            stage[row][column] = first + row < rows && column < columns
                                     ? static_cast<double>(panel[(first + row) * columns + column])
                                     : 0.0;
        }
        barrier();
#pragma unroll 4
        for (int row = 0; row < kStageRows; ++row) {
            double down[kPerThread], across[kPerThread];
            for (int u = 0; u < kPerThread; ++u) {
                down[u] = stage[row][ty + u * kPanelSide];
                across[u] = stage[row][tx + u * kPanelSide];
            }
            for (int u = 0; u < kPerThread; ++u) {
                for (int v = 0; v < kPerThread; ++v) {
                    sums[u][v] += down[u] * across[v];
                }
            }
        }
        barrier();
    }
    double* partial = params.partials + block_index() * columns * columns;
    for (int u = 0; u < kPerThread; ++u) {
        for (int v = 0; v < kPerThread; ++v) {
            const int i = ty + u * kPanelSide;
            const int j = tx + v * kPanelSide;
            if (i < columns && j < columns) {
                partial[i * columns + j] = sums[u][v];
            }
        }
    }
}

// Gaussian elimination of [G | I] leaves [D Lᵀ | L⁻¹] with G = L D Lᵀ, hence R⁻¹ = L⁻ᵀ D^(−½). Both fit into one
// square: row i holds D Lᵀ from the diagonal on and L⁻¹ before it. Step j only reads row j: one barrier a step.
template <class T>
IGM_KERNEL IGM_BLOCKS(kPanelThreads, kPanelResident) panel_factor_kernel(const PanelFactor<T> params) {
    IGM_SHARED double square[kPanelWidest][kPanelWidest + 1];
    IGM_SHARED double parts[kPanelThreads];
    IGM_SHARED double least_pivot[kPanelWidest];
    const long long matrix = block_index();
    const int columns = params.columns;
    const int size = columns * columns;
    const double* partials = params.partials + matrix * params.chunks * size;
    for (int place = thread_index(); place < size; place += kPanelThreads) {
        double sum = 0.0;
        for (long long chunk = 0; chunk < params.chunks; ++chunk) {
            sum += partials[chunk * size + place];
        }
        square[place / columns][place % columns] = sum;
    }
    // Squared norms of what the projection took out, by parts of the rows.
    const int span = columns <= kPanelNarrow ? kPanelNarrow : kPanelWidest;
    const int part_count = kPanelThreads / span;
    const int mine = thread_index() % span;
    double out = 0.0;
    if (mine < columns) {
        const T* overlap = params.overlap + matrix * params.overlap_rows * columns + mine;
        for (long long row = thread_index() / span; row < params.overlap_rows; row += part_count) {
            const double entry = static_cast<double>(overlap[row * columns]);
            out += entry * entry;
        }
    }
    parts[thread_index()] = out;
    barrier();
    bool finite = true;
    if (thread_index() < columns) {
        const double squared_norm = square[thread_index()][thread_index()];
        double before = squared_norm;
        for (int part = 0; part < part_count; ++part) {
            before += parts[part * span + thread_index()];
        }
        const double dependent = kPanelDependent * squared_norm;
        const double noise = params.noise_squared * before;
        least_pivot[thread_index()] = noise > dependent ? noise : dependent;
        finite = is_finite(before);
    }
    finite = !any_thread(!finite);
    const int tx = thread_index() % kPanelSide;
    const int ty = thread_index() / kPanelSide;
    for (int step = 0; step + 1 < columns; ++step) {
        const double pivot = square[step][step];
        const double inverse_pivot =
            pivot > least_pivot[step] ? 1.0 / pivot : 0.0;  // 0: nothing is taken out of others
        for (int i = step + 1 + ty; i < columns; i += kPanelSide) {
            const double factor = square[step][i] * inverse_pivot;
            for (int j = tx; j < columns; j += kPanelSide) {
                if (j == step) {
                    square[i][j] = -factor;
                } else if (j < step || j >= i) {
                    square[i][j] -= factor * square[step][j];
                }
            }
        }
        barrier();
    }
    double* inverse = params.inverses + matrix * size;
    for (int place = thread_index(); place < size; place += kPanelThreads) {
        const int i = place / columns;
        const int j = place % columns;
        const double pivot = square[j][j];
        double entry = 0.0;
        if (i <= j && pivot > least_pivot[j]) {
            entry = (i == j ? 1.0 : square[j][i]) / sqrt(pivot);
        }
        inverse[place] = finite ? entry : not_a_number();  // NaN must not be taken for dependence and vanish
    }
}

template <int kPerThread, class T>
IGM_KERNEL IGM_BLOCKS(kPanelThreads, kPanelResident) panel_multiply_kernel(const PanelMultiply<T> params) {
    constexpr int kWidth = kPerThread * kPanelSide;
    constexpr int kRows = kPanelTileRows / kPanelSide;
    IGM_SHARED T stage[kPanelTileRows][kWidth + 1];
    const long long matrix = block_index() / params.tiles;
    const long long tile = block_index() - matrix * params.tiles;
    const int columns = params.columns;
    const long long begin = tile * kPanelTileRows;
    const long long left = params.rows - begin;
    const int rows = static_cast<int>(left < kPanelTileRows ? left : kPanelTileRows);
    T* panel = params.panels + (matrix * params.rows + begin) * columns;
    const double* inverse = params.inverses + matrix * columns * columns;
    for (int place = thread_index(); place < kPanelTileRows * kWidth; place += kPanelThreads) {
        const int row = place / kWidth;
        const int column = place % kWidth;
        stage[row][column] = row < rows && column < columns ? panel[row * columns + column] : T(0);
    }
    barrier();
    const int tx = thread_index() % kPanelSide;
    const int ty = thread_index() / kPanelSide;
    double sums[kRows][kPerThread] = {};
    for (int depth = 0; depth < columns; ++depth) {
        double down[kRows], across[kPerThread];
        for (int u = 0; u < kRows; ++u) {
            down[u] = static_cast<double>(stage[ty + u * kPanelSide][depth]);
        }
        for (int v = 0; v < kPerThread; ++v) {
            const int column = tx + v * kPanelSide;
            across[v] = column < columns ? inverse[depth * columns + column] : 0.0;
        }
        for (int u = 0; u < kRows; ++u) {
            for (int v = 0; v < kPerThread; ++v) {
                sums[u][v] += down[u] * across[v];
            }
        }
    }
    for (int v = 0; v < kPerThread; ++v) {
        const int column = tx + v * kPanelSide;
        if (column >= columns) {
            continue;
        }
        const bool replaced = inverse[column * columns + column] == 0.0;
        for (int u = 0; u < kRows; ++u) {
            const int row = ty + u * kPanelSide;
            if (row < rows) {
                const double value =
                    replaced ? params.random_scale * pseudo_random(static_cast<unsigned long long>(params.round),
                                                                   static_cast<unsigned long long>(begin + row),
                                                                   static_cast<unsigned long long>(column))
                             : sums[u][v];
                panel[row * columns + column] = static_cast<T>(value);
            }
        }
    }
}

}  // namespace igm
