#pragma once

// What the kernels of stage.cuh are given; plain data, no standard headers.

namespace igm {

constexpr int kStageThreads = 256;
constexpr int kStageResident = 4;
constexpr int kStageChannels = 32;              // of a block
constexpr int kStagePositions = kStageThreads;  // of a block, at most

// Of stage_input_kernel: an input [samples, groups, channels, positions] becomes [samples, positions, groups, pitch],
// zero from `channels` to `pitch`.
struct StageInput {
    const void* input;
    void* output;
    int dtype;                // of the input: codes of igm_fast/ops/native.py
    long long sample_stride;  // of the input, in elements, as all strides here
    long long channel_stride;
    long long axis_stride[3];  // depth, height, width
    int sizes[3];              // of the axes; those that lie in memory as one are one, the last
    int groups, channels;      // channels per group
    int pitch;                 // channels per group of the output, a multiple of 16 bytes
    int positions;             // product of the sizes
    int block_positions;
    int position_blocks, channel_blocks;
    float one_per_position;
    bool along_channels;  // neighbours in memory are channels
};

// Of stage_omega_kernel: Ω [groups, channels · taps, columns] becomes [groups, rows, pitch], rows as patch_place
// numbers them and zero where there is none.
struct StageOmega {
    const void* omega;  // both of the type of the sums
    void* output;
    int channels, taps, together, rows;
    int columns, pitch;
    long long elements;  // of the output
};

// Of omega_mask_kernel.
struct OmegaMask {
    const void* omega;  // as staged: [groups, rows, pitch]
    unsigned* output;   // [groups, tiles, mask_count]
    int rows, pitch, tiles, tile_columns, mask_count;
    long long masks;
};

}  // namespace igm
