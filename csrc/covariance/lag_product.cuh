#pragma once

// The exact second moment of the patches of a stride-1 convolution by lags (igm_fast/ops/lag_plan.py says which).
//
//   1. lag_product_kernel   R(δ)[c, e] = Σ_q x[q, c] x[q + δ, e] for up to twelve lags δ at once → partial sums
//   2. lag_reduce_kernel    partial sums of all blocks in fixed order → products [term, c, e]
//   3. lag_assemble_kernel  products of the right lag, less border terms → out [(c, tap), (e, tap)], both triangles
//
// Tiling of 1: a block owns 64 × 32 channels, a list of lags and a run of positions. A chunk of 64 positions of the
// left channels, and the same positions of the right ones with those that the lags reach beyond them, are copied into
// shared memory once, [position][channel]; a lag is then nothing but another first row. Four warps: two halves of the
// left channels, times two that take six lags each, all multiplied with the same fragments of the left operand. Where a
// part of the plan has at most six lags (the border), the two warps share the positions instead.
//
// Memory path: 16-byte asynchronous copies from the channels-last input into two buffers, one being filled while the
// other is multiplied; rows that lie outside of the input are written as zeros, so nothing is padded in memory. Where
// the rows come from is worked out once per chunk, into a table in shared memory.
//
// Bytes per chunk of a 3×3 kernel on rows of 56: 64·64 + 182·32 elements for 12 · 64·32 · 64 multiply-adds: 317
// operations per byte at 2 bytes an element, all of it from L2: DRAM sees each element once while the tiles of one run
// of positions run side by side.

#include "common/matrix_unit.cuh"
#include "common/pack.cuh"
#include "covariance/lag_product_params.hpp"

namespace igm {

// Where a chunk of the left operand begins.
struct LagStart {
    int sample, z, y, x;
    int left;  // positions before the end of the run
};

IGM_DEVICE LagStart lag_start(const LagItem& item, int chunk, int positions) {
    const int run = chunk / item.run_chunks;
    const int first = (chunk - run * item.run_chunks) * positions;
    LagStart start;
    start.left = item.run_length - first;
    const int line = first / item.extent[2];
    start.x = first - line * item.extent[2];
    const int plane = line / item.extent[1];
    start.y = line - plane * item.extent[1];
    const int sample = plane / item.extent[0];
    start.z = run % item.planes + plane - sample * item.extent[0];
    start.sample = run / item.planes + sample;
    return start;
}

// value / extent for 0 <= value < 2^20: the rounding of the product is too small to reach the next integer.
IGM_DEVICE int lag_quotient(int value, float one_per_extent) {
    return static_cast<int>((static_cast<float>(value) + 0.5f) * one_per_extent);
}

// Address of the position that lies `row` behind (sample, z, y, x), in units of 16 bytes; -1 outside of the input.
IGM_DEVICE int lag_row(const LagProduct& params, const LagItem& item, int sample, int z, int y, int x, int row) {
    x += row;
    const int lines = lag_quotient(x, item.one_per_extent[2]);
    x -= lines * item.extent[2];
    y += lines;
    const int planes = lag_quotient(y, item.one_per_extent[1]);
    y -= planes * item.extent[1];
    z += planes;
    const int samples = lag_quotient(z, item.one_per_extent[0]);
    z -= samples * item.extent[0];
    sample += samples;
    const bool inside =
        sample >= 0 && sample < params.samples && z < item.inside[0] && y < item.inside[1] && x < item.inside[2];
    const int offset = sample * params.stride[0] + z * params.stride[1] + y * params.stride[2] + x * params.stride[3];
    return inside ? offset : -1;
}

// Addresses of the rows of a chunk, those of the left operand first.
IGM_DEVICE void lag_table(const LagProduct& params, const LagItem& item, const LagStart& start, int* table) {
    IGM_ROLLED
    for (int row = thread_index(); row < params.chunk + item.rows; row += kLagThreads) {
        const int behind = row - params.chunk;
        int address;
        if (behind < 0) {
            address = lag_row(params, item, start.sample, start.z, start.y, start.x, row);
            address = address < 0 || row >= start.left ? -1 : address + item.left_base;
        } else {
            address = lag_row(params, item, start.sample + item.window[0], start.z + item.window[1],
                              start.y + item.window[2], start.x + item.window[3], behind);
            address = address < 0 ? -1 : address + item.right_base;
        }
        table[row] = address;
    }
}

// Starts the copies of kChannels channels of `rows` rows, from channel `first` of the group's `channels`.
template <int kChannels, int kStride, class Element>
IGM_DEVICE void lag_copy(const unsigned char* input, const int* table, int rows, int first, int channels,
                         Element* shared) {
    constexpr int kPiece = 16 / static_cast<int>(sizeof(Element));
    constexpr int kPieces = kChannels / kPiece;
    const int channel = thread_index() % kPieces * kPiece;
    const bool used = first + channel < channels;
    input += used ? (first + channel) * static_cast<int>(sizeof(Element)) : 0;
    int row = thread_index() / kPieces;
    if (kPieces == 4) {  // eight threads write at once: rows r and r + 4, which share no bank
        row = (row & ~7) | (row & 1) << 2 | (row >> 1 & 3);
    }
    IGM_ROLLED
    for (; row < rows; row += kLagThreads / kPieces) {
        const int address = table[row];
        const bool present = used && address >= 0;
        copy_async_16(shared + row * kStride + channel, input + (present ? address * 16LL : 0), present);
    }
}

// Which lags and positions a warp works on.
struct LagWarp {
    int shift[kLagsPerWarp];  // in elements of the right operand; -1: none
    int lags;
    int first_lag;
    int part;  // takes steps part, part + parts, … of a chunk
};

// What a block works on. It lies in shared memory: the sums take three quarters of the registers, and the compiler
// would keep every number of this in one.
struct LagBlock {
    LagItem item;
    const unsigned char* input;  // of the group
    long long first_tile;        // of the partial sums
    int first_left, first_right;
    int begin, end;  // chunks
    LagWarp warps[2 * kLagWarps];
};

// In place: indexed registers would be memory of the thread.
IGM_DEVICE void lag_block(const LagProduct& params, LagBlock& own) {
    int index = 0;
    while (index + 1 < params.count && params.items[index + 1].first_block <= block_index()) {
        ++index;
    }
    own.item = params.items[index];
    const int right_tiles = (params.channels + kLagRight - 1) / kLagRight;
    const int tiles = (params.channels + kLagLeft - 1) / kLagLeft * right_tiles;
    const int block = static_cast<int>(block_index()) - own.item.first_block;
    const int tile = block % tiles, split = block / tiles / params.groups, group = block / tiles % params.groups;
    own.input = static_cast<const unsigned char*>(params.input) + group * 16LL * params.group_stride;
    own.first_tile = own.item.first_tile + block * 2LL * own.item.lags;
    own.first_left = tile / right_tiles * kLagLeft;
    own.first_right = tile % right_tiles * kLagRight;
    own.begin = static_cast<int>(static_cast<long long>(own.item.chunks) * split / own.item.splits);
    own.end = static_cast<int>(static_cast<long long>(own.item.chunks) * (split + 1) / own.item.splits);
    for (int warp = 0; warp < 2 * kLagWarps; ++warp) {
        const int half = warp / kLagWarps, role = warp % kLagWarps;
        LagWarp& mine = own.warps[warp];
        mine.part = own.item.parts == 1 ? 0 : role;
        mine.first_lag = own.item.parts == 1 ? role * own.item.lags_per_warp : 0;
        const int left = own.item.lags - mine.first_lag;
        mine.lags = left < own.item.lags_per_warp ? left : own.item.lags_per_warp;
        if (own.first_left + half * kLagTile >= params.channels) {
            mine.lags = 0;
        }
        for (int lag = 0; lag < kLagsPerWarp; ++lag) {
            mine.shift[lag] = lag < mine.lags ? own.item.shift[mine.first_lag + lag] * kLagRightStride : -1;
        }
    }
}

template <class Unit>
IGM_KERNEL IGM_BLOCKS(kLagThreads, kLagResident) lag_product_kernel(const LagProduct params) {
    using Element = typename Unit::Element;
    IGM_SHARED LagBlock own;
    if (thread_index() == 0) {
        lag_block(params, own);
    }
    barrier();
    const LagItem& item = own.item;
    if (item.only_lower && own.first_right >= own.first_left + kLagLeft) {
        return;
    }

    const LagWarp& mine = own.warps[warp_index()];
    float sums[kLagsPerWarp][2][2][2][4];
    IGM_UNROLL
    for (int lag = 0; lag < kLagsPerWarp; ++lag) {
        IGM_UNROLL
        for (int i = 0; i < 32; ++i) {
            sums[lag][i / 16][i / 8 % 2][i / 4 % 2][i % 4] = 0.0f;
        }
    }

    Element* const stages = reinterpret_cast<Element*>(dynamic_shared());
    int* const tables = reinterpret_cast<int*>(stages + 2 * params.stage_elements);
    LagStart* const starts = reinterpret_cast<LagStart*>(tables + 2 * params.stage_rows);

    const auto copy = [&](int chunk) {
        Element* const left = stages + chunk % 2 * params.stage_elements;
        const int* const table = tables + chunk % 2 * params.stage_rows;
        lag_copy<kLagLeft, kLagLeftStride>(own.input, table, params.chunk, own.first_left, params.channels, left);
        lag_copy<kLagRight, kLagRightStride>(own.input, table + params.chunk, item.rows, own.first_right,
                                             params.channels, left + params.chunk * kLagLeftStride);
        copy_commit();
    };
    // A chunk is made in four steps, one iteration of the loop below each: where it starts (one thread, in a warp that
    // changes), the addresses of its rows, the copies, the products.
    if (thread_index() < 3 && own.begin + thread_index() < own.end) {
        starts[(own.begin + thread_index()) % 4] = lag_start(item, own.begin + thread_index(), params.chunk);
    }
    barrier();
    lag_table(params, item, starts[own.begin % 4], tables + own.begin % 2 * params.stage_rows);
    if (own.begin + 1 < own.end) {
        lag_table(params, item, starts[(own.begin + 1) % 4], tables + (own.begin + 1) % 2 * params.stage_rows);
    }
    barrier();
    copy(own.begin);
    for (int chunk = own.begin; chunk < own.end; ++chunk) {
        copy_wait<0>();
        barrier();
        if (chunk + 1 < own.end) {
            copy(chunk + 1);
        }
        if (chunk + 2 < own.end) {
            lag_table(params, item, starts[(chunk + 2) % 4], tables + chunk % 2 * params.stage_rows);
        }
        if (chunk + 3 < own.end && thread_index() == chunk % (kLagThreads / kWarp) * kWarp) {
            starts[(chunk + 3) % 4] = lag_start(item, chunk + 3, params.chunk);
        }
        const Element* const left = stages + chunk % 2 * params.stage_elements;
        const Element* const right = left + params.chunk * kLagLeftStride;
        const int length = starts[chunk % 4].left;
        const int steps = ((length < params.chunk ? length : params.chunk) + Unit::kDepth - 1) / Unit::kDepth;
        IGM_ROLLED
        for (int step = (mine.part + chunk) % item.parts; step < steps; step += item.parts) {
            typename Unit::A a[2];
            for (int i = 0; i < 2; ++i) {
                a[i] = Unit::load_a(
                    left + step * Unit::kDepth * kLagLeftStride + warp_index() / kLagWarps * kLagTile + 16 * i,
                    kLagLeftStride);
            }
            const Element* const here = right + step * Unit::kDepth * kLagRightStride;
            IGM_UNROLL
            for (int lag = 0; lag < kLagsPerWarp; ++lag) {
                const int shift = mine.shift[lag];
                if (shift >= 0) {
                    const Element* const shifted = here + shift;
                    IGM_UNROLL
                    for (int j = 0; j < 2; ++j) {
                        const typename Unit::B b = Unit::load_b(shifted + 16 * j, kLagRightStride);
                        warp_barrier();  // two of them keep ptxas from loading ahead into registers that it lacks
                        Unit::multiply(sums[lag][0][j], a[0], b);
                        Unit::multiply(sums[lag][1][j], a[1], b);
                        warp_barrier();
                    }
                }
            }
        }
    }

    float* const shared =
        reinterpret_cast<float*>(dynamic_shared()) + warp_index() / kLagWarps * item.lags * kLagTileEntries;
    for (int other = 1; other < item.parts; ++other) {
        barrier();
        IGM_UNROLL
        for (int lag = 0; lag < kLagsPerWarp; ++lag) {
            IGM_UNROLL
            for (int i = 0; i < 32; ++i) {
                if (mine.part == other && lag < mine.lags) {
                    shared[lag * kLagTileEntries + i * kWarp + lane_index()] =
                        sums[lag][i / 16][i / 8 % 2][i / 4 % 2][i % 4];
                }
            }
        }
        barrier();
        IGM_UNROLL
        for (int lag = 0; lag < kLagsPerWarp; ++lag) {
            IGM_UNROLL
            for (int i = 0; i < 32; ++i) {
                if (mine.part == 0 && lag < mine.lags) {
                    sums[lag][i / 16][i / 8 % 2][i / 4 % 2][i % 4] +=
                        shared[lag * kLagTileEntries + i * kWarp + lane_index()];
                }
            }
        }
    }
    const long long first_tile = own.first_tile + warp_index() / kLagWarps * item.lags + mine.first_lag;
    IGM_UNROLL
    for (int lag = 0; lag < kLagsPerWarp; ++lag) {
        if (mine.part == 0 && lag < mine.lags) {
            IGM_UNROLL
            for (int i = 0; i < 8; ++i) {
                Pack<float> pack;
                for (int k = 0; k < 4; ++k) {
                    pack.elements[k] = sums[lag][i / 4][i / 2 % 2][i % 2][k];
                }
                store_pack<true>(
                    params.partials + (first_tile + lag) * kLagTileEntries + (i * kWarp + lane_index()) * 4, pack);
            }
        }
    }
}

// A block per quarter of a 32 × 32 tile of one lag.
IGM_KERNEL IGM_BLOCKS(kLagReduceThreads, 16) lag_reduce_kernel(const LagProduct params) {
    const int unit = static_cast<int>(block_index() / kLagReduceBlocks);
    int index = 0;
    while (index + 1 < params.count && params.items[index + 1].first_unit <= unit) {
        ++index;
    }
    const LagItem& item = params.items[index];
    const int right_tiles = (params.channels + kLagRight - 1) / kLagRight;
    const int tiles = (params.channels + kLagLeft - 1) / kLagLeft * right_tiles;
    const int local = unit - item.first_unit;
    const int lag = local % item.lags, half = local / item.lags % 2, tile = local / item.lags / 2 % tiles;
    const int group = local / item.lags / 2 / tiles;
    const int first_row = tile / right_tiles * kLagLeft + half * kLagTile;
    const int first_column = tile % right_tiles * kLagRight;
    if (first_row >= params.channels || (item.only_lower && first_column >= first_row + kLagTile)) {
        return;
    }
    const int pack_index = static_cast<int>(block_index() % kLagReduceBlocks) * kLagReduceThreads + thread_index();
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    const long long per_split = static_cast<long long>(params.groups) * tiles * 2 * item.lags * kLagTileEntries;
    const float* source =
        params.partials +
        (item.first_tile + ((static_cast<long long>(group) * tiles + tile) * 2 + half) * item.lags + lag) *
            kLagTileEntries +
        pack_index * 4;
    for (int split = 0; split < item.splits; ++split) {
        const Pack<float> pack = load_pack<true>(source + split * per_split);
        for (int k = 0; k < 4; ++k) {
            sums[k] += pack.elements[k];
        }
    }
    const int i = pack_index / kWarp;  // the order in which the product kernel's threads stored them
    float* target = params.products +
                    (static_cast<long long>(group) * params.terms + item.term[lag]) * params.channels * params.channels;
    for (int k = 0; k < 4; ++k) {
        const int row = first_row + i / 4 * 16 + sum_row(k);
        const int column = first_column + i / 2 % 2 * 16 + sum_column(i % 2, k);
        if (row < params.channels && column < params.channels) {
            target[static_cast<long long>(row) * params.channels + column] = static_cast<float>(sums[k]);
        }
    }
}

// A block per pair of channel tiles on or below the diagonal; tile rows p and side - 1 - p have side + 1 tiles
// together. Sums are made with the channels across the threads, where all have the same sources and products are read
// in order, and go to shared memory; from there they are added to whole rows of out, and copied to whole rows of the
// other half.
IGM_KERNEL IGM_BLOCKS(kLagAssembleThreads, 4) lag_assemble_kernel(const LagAssembly params) {
    const int per_group = (params.side + 1) * ((params.side + 1) / 2);
    const int group = static_cast<int>(block_index() / per_group);
    const int local = static_cast<int>(block_index() % per_group);
    const int pair = local / (params.side + 1), place = local % (params.side + 1);
    const int tile_row = place <= pair ? pair : params.side - 1 - pair;
    const int tile_column = place <= pair ? place : place - pair - 1;
    if (place > pair && tile_row == pair) {  // the middle one of an odd number is alone
        return;
    }
    const int taps = params.taps, dim = params.channels * taps;
    const int log2_tile = params.log2_tile, tile = 1 << log2_tile;
    const int first_c = tile_row * tile, first_e = tile_column * tile;
    const int rows = (params.channels - first_c < tile ? params.channels - first_c : tile) * taps;
    const int columns = (params.channels - first_e < tile ? params.channels - first_e : tile) * taps;
    const int stride = tile * taps | 1;  // odd: rows and columns fall on different banks
    float* const entries = reinterpret_cast<float*>(dynamic_shared());
    const int area = params.channels * params.channels;  // the plan sees to it that terms · area fits
    const float* const products = params.products + static_cast<long long>(group) * params.terms * area;

    for (int item = thread_index(); item < taps * taps << (2 * log2_tile); item += kLagAssembleThreads) {
        const int e = item & (tile - 1), c = item >> log2_tile & (tile - 1), taps_ij = item >> (2 * log2_tile);
        if (first_c + c >= params.channels || first_e + e >= params.channels) {
            continue;
        }
        const int i = lag_quotient(taps_ij, params.one_per_taps), j = taps_ij - i * taps;
        const int direct = (first_c + c) * params.channels + first_e + e;
        const int transposed = (first_e + e) * params.channels + first_c + c;
        float sum = 0.0f;
        const int last = params.first[taps_ij + 1];
        for (int s = params.first[taps_ij]; s < last; ++s) {
            const int code = params.sources[s];
            const float value = products[(code >> 2) * area + (code & 2 ? transposed : direct)];
            sum += code & 1 ? -value : value;
        }
        entries[(c * taps + i) * stride + e * taps + j] = sum;
    }
    barrier();
    float* const out = params.out + static_cast<long long>(group) * dim * dim;
    IGM_ROLLED
    for (int row = warp_index(); row < rows; row += kLagAssembleThreads / kWarp) {
        float* const target = out + static_cast<long long>(first_c * taps + row) * dim + first_e * taps;
        const int end = tile_row == tile_column ? row + 1 : columns;
        for (int column = lane_index(); column < end; column += kWarp) {
            const float entry = target[column] + params.alpha * entries[row * stride + column];
            target[column] = entry;
            entries[row * stride + column] = entry;
        }
    }
    barrier();
    for (int column = warp_index(); column < columns; column += kLagAssembleThreads / kWarp) {
        float* const target = out + static_cast<long long>(first_e * taps + column) * dim + first_c * taps;
        const int begin = tile_row == tile_column ? column + 1 : 0;
        for (int row = begin + lane_index(); row < rows; row += kWarp) {
            target[row] = entries[row * stride + column];
        }
    }
}

}  // namespace igm
