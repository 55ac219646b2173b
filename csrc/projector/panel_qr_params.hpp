#pragma once

// What the kernels of panel_qr.cuh are given; plain data, no standard headers.

namespace igm {

// Columns that one block factorises: 64 · 65 float64 of shared memory, which every architecture has. Wider panels are
// taken in parts by the caller, each made orthogonal to those before it.
constexpr int kPanelWidest = 64;
// Panels up to here have kernels of their own, in which no thread works on columns that are not there.
constexpr int kPanelNarrow = 16;

constexpr int kPanelThreads = 256;
constexpr int kPanelResident = 3;
// Rows per partial Gram matrix: 36 blocks at d = 4608, whose partials one block then adds up in microseconds.
constexpr int kPanelChunkRows = 128;
// Rows that a block of panel_multiply_kernel brings into shared memory.
constexpr int kPanelTileRows = 64;

// A remainder below 1e-13 of a column's squared norm is rounding noise of the Gram matrix (panel_qr.cpp).
constexpr double kPanelDependent = 1e-13;

// Of panel_gram_kernel: block `matrix · chunks + chunk`.
template <class T>
struct PanelGram {
    const T* panels;   // [count, rows, columns]
    double* partials;  // [count, chunks, columns, columns]
    long long rows;
    long long chunks;
    int columns;
};

// Of panel_factor_kernel: a block per matrix.
template <class T>
struct PanelFactor {
    const double* partials;
    const T* overlap;  // [count, overlap_rows, columns]: what was projected out of the panel before
    double* inverses;  // [count, columns, columns]: R⁻¹; a column of zeros where the panel's column is to be replaced
    long long chunks;
    long long overlap_rows;
    int columns;
    double noise_squared;  // share of a column's squared norm before the projection that may be rounding
};

// Of panel_multiply_kernel: block `matrix · tiles + tile`.
template <class T>
struct PanelMultiply {
    T* panels;
    const double* inverses;
    long long rows;
    long long tiles;
    int columns;
    int round;            // names the random columns
    double random_scale;  // brings them to length 1 or so
};

}  // namespace igm
