#pragma once

// What the kernels of lag_product.cuh are given; plain data, no standard headers.

namespace igm {

// A block multiplies 64 channels by 64. Eight warps: two sides, a half of the tile each, and four that share the lags.
constexpr int kLagTile = 64;
constexpr int kLagSides = 2;
constexpr int kLagRoles = 4;
constexpr int kLagsPerWarp = 3;  // 192 sums per thread
constexpr int kMostLags = kLagRoles * kLagsPerWarp;
constexpr int kLagThreads = 32 * kLagSides * kLagRoles;
constexpr int kLagResident = 1;  // blocks per multiprocessor: 255 registers

// Partial sums lie in quarters of a tile.
constexpr int kLagQuarter = kLagTile / 2;
constexpr int kLagQuarterEntries = kLagQuarter * kLagQuarter;

// Elements between positions in shared memory: what matrix_unit.cuh wants at 4 bytes, and at 2 bytes eight rows of 16
// bytes fall on different banks, too.
constexpr int kLagStride = kLagTile + 8;

constexpr int kLagReduceThreads = 64;  // a quarter of a quarter, four entries each
constexpr int kLagReduceBlocks = kLagQuarterEntries / 4 / kLagReduceThreads;
constexpr int kLagAssembleThreads = 256;
constexpr int kLagAssembleTile = 96;  // entries of out along an edge of a block: three warps
constexpr int kLagMostTaps = kLagAssembleTile;

// Lags that share their operands: the input or a part of it where some axes are held at a coordinate, seen as a row of
// positions (sample, z, y, x) with `gap` imagined zeros behind every axis, so that a lag is one shift of all positions.
struct LagItem {
    int first_block;          // of lag_product_kernel
    int first_unit;           // of lag_reduce_kernel
    long long first_quarter;  // in the partial sums

    int extent[3];  // of the axes z, y, x with their gaps; 1 where the axis is held
    int inside[3];  // without
    float one_per_extent[3];
    int left_base;  // where the held coordinates put position 0, in units of 16 bytes
    int right_base;
    int window[4];  // the smallest shift as steps along (sample, z, y, x); only the one of the samples can be negative
    int rows;       // positions of the right operand that a chunk of the left one meets

    int planes;      // per sample, if every plane is a run of its own; 1 if all positions are one run
    int run_length;  // positions, from the first to the last that is inside
    int run_chunks;
    int chunks;
    int splits;  // blocks that share the chunks

    int lags;
    int lags_per_warp;
    int parts;             // warps that share the positions of one lag: 1, 2 or 4
    int only_lower;        // the product is symmetric: tiles above the diagonal are left out
    int shift[kMostLags];  // in positions, less the smallest one
    int term[kMostLags];
};

constexpr int kLagItems = 16;

// Of lag_product_kernel and lag_reduce_kernel. Strides and bases are in units of 16 bytes, the elements of a group lie
// together and are zero from `channels` to the next multiple of 16 bytes.
struct LagProduct {
    LagItem items[kLagItems];
    int count;
    int terms;
    const void* input;
    float* partials;  // [tiles][lags][4 quarters][32 × 32 in the order of the matrix unit's sums]
    float* products;  // [groups][terms][channels][pitch]
    int stride[4];    // sample, z, y, x
    int group_stride;
    int samples;
    int groups;
    int channels;
    int pitch;           // channels, rounded up to fours
    int chunk;           // positions: a multiple of 16
    int stage_elements;  // of one chunk of both operands in shared memory
    int stage_rows;
};

// Of lag_assemble_kernel. Entries (c, i), (e, j) of `out` get alpha · Σ ± product, over the sources of taps i and j:
// 4 · term + 2 · (transposed) + (negative).
struct LagAssembly {
    const float* products;
    float* out;  // [groups][channels · taps][channels · taps]
    const int* first;
    const int* sources;
    float alpha;
    float one_per_taps;
    int terms;
    int channels;
    int pitch;
    int taps;
    int log2_tile;  // of the channels of a tile
    int side;       // tiles
    bool mirror;    // the upper triangle is written, too
};

}  // namespace igm
