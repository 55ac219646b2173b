#pragma once

// What the device kernels over patches are given; plain data, no standard headers. Host plans: patch_plan.hpp.

namespace igm {

struct BFloat16;
struct Float16;
template <class T>
struct UnitHalf;
struct UnitTf32;
struct UnitTf32x3;
struct UnitTf32x2;
template <class T>
struct UnitPlain;

// How a patch is read out of the input. Row r of a group's patches stands for a channel and a tap (h, i, j); channels
// that are neighbours in memory can be neighbours among the rows, too, `together` at a time. Position p stands
// for a sample and an output place (z, y, x). An entry's address is a sum of two parts, one of r and one of p, and it
// exists where each of the tap's coordinates lies in an interval that p decides. The intervals of the three axes share
// a 32-bit word: `shift` says where an axis begins, `guards` has the highest bit of each.
struct PatchSource {
    const void* input;
    int dtype;  // codes of igm_fast/ops/native.py
    int element_bytes;
    long long sample_stride;  // in elements, as all strides here
    long long channel_stride;
    long long axis_stride[3];  // depth, height, width
    int sizes[3];
    int outputs[3];
    int kernel[3];
    int step[3];
    int before[3];  // padding in front of the first place
    int dilation[3];
    int shift[3];
    unsigned guards;
    int channels;  // per group
    int taps;
    int together;  // rows are numbered (channel / together, tap, channel % together), see patch_place
    int rows;      // channels · taps, a multiple of taps · together
};

// Products out of patches: what a block's tile consists of.
constexpr int kPatchCovariance = 0;  // Σ u uᵀ: rows and columns of d, summed over positions
constexpr int kPatchImage = 1;       // Z = uᵀΩ: positions and columns, summed over d
constexpr int kPatchSketch = 2;      // Σ u Z: rows of d and columns, summed over positions

// Ω is zero at whole taps: bit i of a mask stands for eight columns of eight rows.
constexpr int kMaskDepths = 8;
constexpr int kMaskColumns = 8;

struct PatchProduct {
    PatchSource source;
    const void* right;      // image: Ω [groups, rows, columns]; sketch: Z [groups, positions, columns]
    void* result;           // image: Z of each split; otherwise partial sums [splits, tiles, tile rows, tile columns]
    int first_position;     // of this launch, counted from the source's first sample
    int positions;          // of this launch
    const unsigned* masks;  // image: which columns of Ω are not zero [groups, tiles across, mask_count]
    int mask_count;         // one for kMaskDepths rows
    int columns;            // of Ω and Z; in pieces of 16 bytes a multiple of 4
    int split_depths;       // of a split, a multiple of the tile's depth: positions; of an image, rows
    int tiles_down;         // per group
    int tiles_across;       // per group; of a covariance, as many as down, and only those up to the diagonal count
    int first_tile;         // of this launch, among groups × tiles
    int tiles;              // of this launch
    bool accumulate;        // partial sums go on from what they are
};

// Adds alpha times the partial sums of all splits to out: [groups, dim, dim], of which the lower triangle is read and
// written, or [groups, dim, columns].
struct PatchReduction {
    const void* partials;
    void* out;
    double alpha;
    int splits;
    int tile_rows, tile_columns;
    int tiles_down, tiles_across, first_tile, tiles;  // as in PatchProduct
    int columns;                                      // of out
    int channels, taps, together;                     // as in PatchSource, without channels that fill 16 bytes
};

// Adds Z of all splits up, in order, into the first.
struct ImageSum {
    void* image;  // [splits, elements]
    long long elements;
    int splits;
};

constexpr int kReductionRows = 16;  // of a block, by all columns of a tile
constexpr int kReductionThreads = 256;
constexpr int kReductionResident = 4;

// Sizes of a block's work, for each kind of arithmetic. kResident: blocks per multiprocessor to compile for; shared
// memory leaves room for two on every device. kByRows: the left tile lies [row][depth] instead of [depth][row].
template <int kRows_, int kColumns_, int kDepth_, int kWarpsDown_, int kWarpsAcross_, int kElementBytes, int kResident_,
          bool kByRows_ = false>
struct PatchTilingOf {
    static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
    static constexpr int kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_;
    static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
    static constexpr int kResident = kResident_;
    static constexpr bool kByRows = kByRows_;
    // Elements from one depth to the next: what matrix_unit.cuh needs for access without bank conflicts.
    static constexpr int padded(int rows) {
        constexpr int period = kElementBytes == 2 ? 64 : 32;
        return rows + (period + 8 - rows % period) % period;
    }
    static constexpr int kLeftStride = kByRows ? kDepth + 4 : padded(kRows), kRightStride = padded(kColumns);
    static constexpr int kLeftElements = (kByRows ? kRows : kDepth) * kLeftStride;
    static constexpr int kBufferElements = kLeftElements + kDepth * kRightStride;
    static constexpr int kEntryBytes = 16;  // of what a table says of a depth, or of a row
    // Depths that have an entry of their own; 16 bytes of one row stand for a whole piece.
    static constexpr int kEntries = kByRows ? kDepth * kElementBytes / 16 : kDepth;
    // A warp makes entries for as many steps as it has lanes; the ones of its last turn are still in use.
    static constexpr int kTableSteps = 32 / kEntries, kTableSlots = 2 * kTableSteps;
    static constexpr int kDepthTableBytes = kTableSlots * kEntries * kEntryBytes;
    static constexpr int kTableBytes = kDepthTableBytes + (kByRows ? kRows * kEntryBytes : 0);
    static constexpr int kSharedBytes = kTableBytes + 2 * kBufferElements * kElementBytes;
};

// With matrix units. Sums of a warp are 32×80 for the image, whose zeros are left out anyway; 48×80 for the sketch;
// 64×64 for the covariance.
template <class Unit, int kJob>
struct PatchTiling : PatchTilingOf<128, 80, 16, 4, 1, 4, 3, true> {};
template <class Unit>
struct PatchTiling<Unit, kPatchSketch> : PatchTilingOf<192, 80, 16, 4, 1, 4, 2> {};
template <class Unit>
struct PatchTiling<Unit, kPatchCovariance> : PatchTilingOf<128, 128, 16, 2, 2, 4, 2> {};
template <class T>
struct PatchTiling<UnitHalf<T>, kPatchCovariance> : PatchTilingOf<128, 128, 32, 2, 2, 2, 2> {};
// Without.
template <>
struct PatchTiling<UnitPlain<float>, kPatchImage> : PatchTilingOf<128, 80, 16, 4, 1, 4, 2> {};
template <>
struct PatchTiling<UnitPlain<float>, kPatchSketch> : PatchTilingOf<128, 80, 16, 4, 1, 4, 2> {};
template <>
struct PatchTiling<UnitPlain<float>, kPatchCovariance> : PatchTilingOf<64, 64, 32, 2, 2, 4, 3> {};
template <>
struct PatchTiling<UnitPlain<double>, kPatchImage> : PatchTilingOf<64, 80, 8, 4, 1, 8, 2> {};
template <>
struct PatchTiling<UnitPlain<double>, kPatchSketch> : PatchTilingOf<64, 80, 8, 4, 1, 8, 2> {};
template <>
struct PatchTiling<UnitPlain<double>, kPatchCovariance> : PatchTilingOf<64, 64, 8, 2, 2, 8, 3> {};

}  // namespace igm
