#pragma once

// What the device kernels of projected_step.cuh are given; plain data, no standard headers. As in perturb_list.hpp the
// addresses travel as kernel parameters.

#include "common/element.hpp"

namespace igm {

constexpr int kStepThreads = 256;

// ---- step_chunks_kernel: tensors without a projector
// -----------------------------------------------------------------
constexpr int kStepTensors = 72;  // 52 bytes each

// 16 KiB of float32 per block and array: ten million parameters give every multiprocessor of an H100 some 20 blocks, so
// that the last round of them is short. A multiple of every 128-bit pack, so chunks keep alignment.
constexpr long long kStepChunk = 4096;

constexpr int kStepResident = 4;  // blocks per multiprocessor to compile for, as in perturb_list.hpp

template <class T>
struct StepList {
    T* params[kStepTensors];
    const T* sources[kStepTensors];
    const T* grads[kStepTensors];
    Compute<T>* first_states[kStepTensors];  // null where the rule has fewer states
    Compute<T>* second_states[kStepTensors];
    long long sizes[kStepTensors];
    int first_chunk[kStepTensors + 1];  // block b works on the last tensor whose first chunk is <= b
    int count;
};

template <class T, class Rule>
struct ChunkStep {
    StepList<T> list;
    Rule rule;
};

// ---- step_tiles_kernel: tensors with one
// -----------------------------------------------------------------------------
constexpr int kTileTensors = 40;  // 92 bytes each (96 of float64)

// A block makes a tile of G': 64 rows and 512 bytes of columns, which 8 warps (2 × 4) share. The operands come in steps
// of 128 bytes of the rank. Tile and operands take turns in the same 32 KiB of shared memory: two blocks fit on Turing.
constexpr int kTileRows = 64;
template <class Real>
constexpr int kTileColumns = 512 / static_cast<int>(sizeof(Real));
template <class Real>
constexpr int kTileDepth = 128 / static_cast<int>(sizeof(Real));
constexpr int kTileBytes = kTileRows * 512;
constexpr int kTilePadding = 8;  // of the operands' rows: see matrix_unit.cuh

constexpr int kTileResident = 2;

// How many packs of each array a thread reads at a time once its tile of G' is made: with one block of two in that
// phase, 256 threads have 32 to 48 KiB under way, where an H100 needs some 20 per multiprocessor to be busy. More for
// Adam would not fit into the registers on sm_120.
template <class Rule>
constexpr int kTileBatch = Rule::kStates > 1 ? 2 : 4;

// A tensor is `groups` runs of group_rows rows of dim elements; what belongs to one group lies behind the last's.
template <class T>
struct TileList {
    T* params[kTileTensors];
    const T* sources[kTileTensors];
    const T* grads[kTileTensors];
    Compute<T>* first_states[kTileTensors];
    Compute<T>* second_states[kTileTensors];
    const Compute<T>* products[kTileTensors];    // (G U)ᵀ [groups, rank, group_rows]
    const Compute<T>* transposes[kTileTensors];  // Uᵀ [groups, rank, dim]
    const Compute<T>* sigmas[kTileTensors];      // Σ [groups, rank]
    Compute<T> complements[kTileTensors];
    int group_rows[kTileTensors];
    int dims[kTileTensors];
    int ranks[kTileTensors];
    int first_tile[kTileTensors + 1];  // as first_chunk above
    int count;
};

template <class T, class Rule>
struct TileStep {
    TileList<T> list;
    Rule rule;
};

}  // namespace igm
