#pragma once

// Operands in the order in which product kernels copy them, 16 bytes at a time.
//
//   stage_input_kernel   [sample, channel, position], any strides and type → [sample, position, channel]
//   stage_omega_kernel   rows (channel, tap) → rows as the tiles number them (patch_place), padded to 16 bytes
//   omega_mask_kernel    which of their eighths of columns are not zero
//
// A block of the first takes 32 channels of at most 256 positions of a sample through shared memory: it reads along
// whatever is adjacent in memory (all positions of a channel, and of the next one, if a sample has at most 256), and
// writes along channels. The rows of shared memory have an odd number of words: neither way finds a bank twice.
//
// Bytes: the input once, the output once. The host takes so few samples at a time that the output is still in L2 when
// the product kernels read it.

#include "common/quotient.cuh"
#include "covariance/patch_source.cuh"
#include "covariance/stage_params.hpp"

namespace igm {

// Out: float, or unsigned short for halves of both kinds, which are copied as they are.
template <class Out>
IGM_KERNEL IGM_BLOCKS(kStageThreads, kStageResident) stage_input_kernel(const StageInput params) {
    constexpr int kPerWord = 4 / static_cast<int>(sizeof(Out));
    constexpr int kStride = kStageChannels + kPerWord;
    struct alignas(4) Word {
        Out elements[kPerWord];
    };
    Out* const tile = reinterpret_cast<Out*>(dynamic_shared());

    const int rest = static_cast<int>(block_index() % (params.position_blocks * params.channel_blocks));
    const int sample_group = static_cast<int>(block_index() / (params.position_blocks * params.channel_blocks));
    const int group = sample_group % params.groups, sample = sample_group / params.groups;
    const int first_position = rest % params.position_blocks * params.block_positions;
    const int first_channel = rest / params.position_blocks * kStageChannels;
    const int left = params.positions - first_position;
    const int positions = left < params.block_positions ? left : params.block_positions;
    const int wide = params.pitch - first_channel, filled = wide < kStageChannels ? wide : kStageChannels;

    const auto position_offset = [&](int position) -> long long {
        if (params.sizes[0] * params.sizes[1] == 1) {
            return position * params.axis_stride[2];
        }
        const int line = position / params.sizes[2], plane = line / params.sizes[1];
        return (position - line * params.sizes[2]) * params.axis_stride[2] +
               (line - plane * params.sizes[1]) * params.axis_stride[1] + plane * params.axis_stride[0];
    };
    with_element_type(params.dtype, [&](auto tag) {
        using In = typename decltype(tag)::Type;
        const In* const input =
            static_cast<const In*>(params.input) + sample * params.sample_stride +
            (static_cast<long long>(group) * params.channels + first_channel) * params.channel_stride;
        const int channels = params.channels - first_channel;  // that there still are
        const auto bring = [&](int channel, int position, long long offset) {
            Out value{};
            if (channel < channels) {
                const In element = input[channel * params.channel_stride + offset];
                if constexpr (sizeof(Out) == 4) {
                    value = static_cast<float>(to_float(element));
                } else if constexpr (sizeof(In) == 2) {
                    value = element.bits;
                }
            }
            tile[position * kStride + channel] = value;
        };
        if (params.along_channels) {
            for (int position = warp_index(); position < positions; position += kStageThreads / kWarp) {
                bring(lane_index(), position, position_offset(first_position + position));
            }
        } else if (params.block_positions == kStagePositions) {  // a thread's position stays
            if (thread_index() < positions) {
                const long long offset = position_offset(first_position + thread_index());
                IGM_ROLLED
                for (int first = 0; first < filled; first += 8) {  // eight loads under way
                    for (int channel = first; channel < first + 8; ++channel) {
                        bring(channel, thread_index(), offset);
                    }
                }
            }
        } else {  // all positions of a sample, and then those of the next channel
            for (int i = thread_index(); i < filled * positions; i += kStageThreads) {
                const int channel = small_quotient(i, params.one_per_position), position = i - channel * positions;
                bring(channel, position, position_offset(position));
            }
        }
    });
    barrier();
    const int words = filled / kPerWord;
    const float one_per_words = 1.0f / static_cast<float>(words);
    Out* const output =
        static_cast<Out*>(params.output) +
        ((static_cast<long long>(sample) * params.positions + first_position) * params.groups + group) * params.pitch +
        first_channel;
    for (int i = thread_index(); i < words * positions; i += kStageThreads) {
        const int position = small_quotient(i, one_per_words), channel = (i - position * words) * kPerWord;
        *reinterpret_cast<Word*>(output + static_cast<long long>(position) * params.groups * params.pitch + channel) =
            *reinterpret_cast<const Word*>(tile + position * kStride + channel);
    }
}

template <class Sum>
IGM_KERNEL IGM_BLOCKS(kStageThreads, kStageResident) stage_omega_kernel(const StageOmega params) {
    const long long index = block_index() * kStageThreads + thread_index();
    if (index < params.elements) {
        const int column = static_cast<int>(index % params.pitch);
        const long long numbered = index / params.pitch;
        const int row = static_cast<int>(numbered % params.rows);
        const PatchPlace place = patch_place(params.taps, params.together, row);
        Sum value{};
        if (column < params.columns && place.channel < params.channels) {
            const long long group_row = numbered / params.rows * params.channels + place.channel;
            value =
                static_cast<const Sum*>(params.omega)[(group_row * params.taps + place.tap) * params.columns + column];
        }
        static_cast<Sum*>(params.output)[index] = value;
    }
}

// A warp per mask (patch_params.hpp).
template <class Sum>
IGM_KERNEL IGM_BLOCKS(kStageThreads, kStageResident) omega_mask_kernel(const OmegaMask params) {
    const long long number = block_index() * (kStageThreads / kWarp) + warp_index();
    if (number >= params.masks) {
        return;
    }
    const int first_row = static_cast<int>(number % params.mask_count) * kMaskDepths;
    const int tile = static_cast<int>(number / params.mask_count % params.tiles);
    const long long group = number / params.mask_count / params.tiles;
    const Sum* const omega = static_cast<const Sum*>(params.omega) + group * params.rows * params.pitch;
    unsigned mask = 0;
    for (int i = 0; i < params.tile_columns / kMaskColumns; ++i) {
        bool any = false;
        for (int entry = lane_index(); entry < kMaskDepths * kMaskColumns; entry += kWarp) {
            const int row = first_row + entry / kMaskColumns;
            const int column = tile * params.tile_columns + i * kMaskColumns + entry % kMaskColumns;
            any = any || (row < params.rows && column < params.pitch &&
                          !(omega[static_cast<long long>(row) * params.pitch + column] == Sum(0)));
        }
        mask |= any_lane(any) ? 1u << i : 0u;
    }
    if (lane_index() == 0) {
        params.output[number] = mask;
    }
}

}  // namespace igm
