#pragma once

// What the device kernels over patches are given; plain data, no standard headers. Host plans: patch_plan.hpp.

namespace igm {

struct BFloat16;
struct Float16;
template <class T>
struct UnitHalf;
struct UnitTf32;
struct UnitTf32x3;
template <class T>
struct UnitPlain;

// How a patch is read out of the input. Row r of a group's patches stands for a channel and a tap (h, i, j); position p
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
    int dim;         // channels · taps
    bool tap_major;  // rows are numbered (tap, channel) inside the kernel: neighbours in memory if channels are
    bool in_pieces;  // 16 bytes of a position are neighbouring rows of the tile, of the type that is multiplied
};

// Products out of patches: what a block's tile consists of.
constexpr int kPatchCovariance = 0;  // Σ u uᵀ: rows and columns of d, summed over positions
constexpr int kPatchImage = 1;       // Z = uᵀΩ: positions and columns, summed over d
constexpr int kPatchSketch = 2;      // Σ u Z: rows of d and columns, summed over positions

struct PatchProduct {
    PatchSource source;
    const void* right;    // image: Ω [groups, dim, columns]; sketch: Z [groups, positions, columns]
    void* result;         // image: Z; otherwise partial sums [splits, tiles, tile rows, tile columns]
    int first_position;   // of this launch, counted from the source's first sample
    int positions;        // of this launch
    int columns;          // of Ω and Z
    int split_positions;  // positions of a split, a multiple of the tile's depth
    int tiles_down;       // per group
    int tiles_across;     // per group; of a covariance, as many as down, and only those up to the diagonal count
    int first_tile;       // of this launch, among groups × tiles
    int tiles;            // of this launch
    bool accumulate;      // partial sums go on from what they are
};

// Adds alpha times the partial sums of all splits to out: [groups, dim, dim], of which the lower triangle counts and
// both are written, or [groups, dim, columns].
struct PatchReduction {
    const void* partials;
    void* out;
    double alpha;
    int splits;
    int tile_rows, tile_columns;
    int tiles_down, tiles_across, first_tile, tiles;  // as in PatchProduct
    int dim, columns;
    int channels, taps;
    bool tap_major;
};

constexpr int kReductionTile = 32;
constexpr int kReductionThreads = 256;
constexpr int kReductionResident = 4;

// Sizes of a block's work, for each kind of arithmetic. kResident: blocks per multiprocessor to compile for.
template <int kRows_, int kColumns_, int kDepth_, int kWarpsDown_, int kWarpsAcross_, int kElementBytes, int kResident_>
struct PatchTilingOf {
    static constexpr int kRows = kRows_, kColumns = kColumns_, kDepth = kDepth_;
    static constexpr int kWarpsDown = kWarpsDown_, kWarpsAcross = kWarpsAcross_;
    static constexpr int kThreads = 32 * kWarpsDown * kWarpsAcross;
    static constexpr int kResident = kResident_;
    // Elements from one depth to the next: what matrix_unit.cuh needs for access without bank conflicts.
    static constexpr int padded(int rows) {
        constexpr int period = kElementBytes == 2 ? 64 : 32;
        return rows + (period + 8 - rows % period) % period;
    }
    static constexpr int kLeftStride = padded(kRows), kRightStride = padded(kColumns);
    static constexpr int kLeftElements = kDepth * kLeftStride;
    static constexpr int kBufferElements = kLeftElements + kDepth * kRightStride;
    static constexpr int kEntryBytes = 16;
    static constexpr int kTableBytes = 2 * kDepth * kEntryBytes;
    static constexpr int kSharedBytes = kTableBytes + 2 * kBufferElements * kElementBytes;
};

// Sums of a warp: 16×80 for the image, whose zeros are left out anyway; 32×80 for the sketch.
template <class Unit, int kJob>
struct PatchTiling : PatchTilingOf<128, 80, 16, 8, 1, 4, 2> {};
template <class Unit>
struct PatchTiling<Unit, kPatchSketch> : PatchTilingOf<128, 80, 16, 4, 1, 4, 2> {};
template <class Unit>
struct PatchTiling<Unit, kPatchCovariance> : PatchTilingOf<64, 64, 32, 2, 2, 4, 3> {};
template <class T>
struct PatchTiling<UnitHalf<T>, kPatchCovariance> : PatchTilingOf<128, 128, 16, 4, 2, 2, 2> {};
template <>
struct PatchTiling<UnitPlain<double>, kPatchImage> : PatchTilingOf<64, 80, 8, 4, 1, 8, 2> {};
template <>
struct PatchTiling<UnitPlain<double>, kPatchSketch> : PatchTilingOf<64, 80, 8, 4, 1, 8, 2> {};
template <>
struct PatchTiling<UnitPlain<double>, kPatchCovariance> : PatchTilingOf<64, 64, 8, 2, 2, 8, 3> {};

}  // namespace igm
