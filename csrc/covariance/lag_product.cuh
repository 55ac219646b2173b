#pragma once

// The exact second moment of the patches of a stride-1 convolution by lags (igm_fast/ops/lag_plan.py says which).
//
//   1. lag_product_kernel   R(δ)[c, e] = Σ_q x[q, c] x[q + δ, e] for up to twelve lags δ at once → partial sums
//   2. lag_reduce_kernel    partial sums of all blocks in fixed order → products [term, c, e]
//   3. lag_assemble_kernel  products of the right lag, less border terms → triangles of out [(c, tap), (e, tap)]
//
// Tiling of 1: a block owns 64 × 64 channels, a list of lags and a run of positions. A chunk of up to 128 positions of
// the left channels, and the same positions of the right ones with those that the lags reach beyond them, are copied
// into shared memory once, [position][channel]; a lag is then nothing but another first row. Eight warps: two sides of
// the tile, times four that take three lags each, all multiplied with the same fragments of the left operand. Where a
// part of the plan has fewer lags than warps, they share the positions of one instead. A side is what loads least: all
// 64 left channels and 32 right ones; or, where fragments are split into two (UnitTf32x3) and four of them would not
// fit the registers, 32 left and all 64 right ones.
//
// Memory path: 16-byte asynchronous copies from the channels-last input into two buffers, one being filled while the
// other is multiplied; rows that lie outside of the input are written as zeros, so nothing is padded in memory. Where
// the rows come from is worked out once per chunk, into a table in shared memory.
//
// Bytes per chunk of a 3×3 kernel on rows of 56: (128 + 246) · 64 elements for 12 · 64·64 · 128 multiply-adds: 263
// operations per byte at 2 bytes an element, all of it from L2: DRAM sees each element once while the tiles of one run
// of positions run side by side.

#include "common/matrix_unit.cuh"
#include "common/pack.cuh"
#include "common/quotient.cuh"
#include "covariance/lag_product_params.hpp"

namespace igm {

// Where a chunk of the left operand begins.
struct LagStart {
    int sample, z, y, x;
    int left;  // positions before the end of the run
    int rows;  // of both operands that are needed: the last chunk of a run is shorter
    int right_rows;
};

// Products take `depth` positions at a time. Without right rows, if they are the left ones.
IGM_DEVICE LagStart lag_start(const LagItem& item, int chunk, int positions, int depth, bool same) {
    const int run = chunk / item.run_chunks;
    const int first = (chunk - run * item.run_chunks) * positions;
    LagStart start;
    start.left = item.run_length - first;
    start.rows = start.left < positions ? (start.left + depth - 1) / depth * depth : positions;
    start.right_rows = same ? 0 : start.rows + item.rows - positions;
    const int line = first / item.extent[2];
    start.x = first - line * item.extent[2];
    const int plane = line / item.extent[1];
    start.y = line - plane * item.extent[1];
    const int sample = plane / item.extent[0];
    start.z = run % item.planes + plane - sample * item.extent[0];
    start.sample = run / item.planes + sample;
    return start;
}

// Address of the position that lies `row` behind (sample, z, y, x), in units of 16 bytes; -1 outside of the input.
IGM_DEVICE int lag_row(const LagProduct& params, const LagItem& item, int sample, int z, int y, int x, int row) {
    x += row;
    const int lines = small_quotient(x, item.one_per_extent[2]);
    x -= lines * item.extent[2];
    y += lines;
    const int planes = small_quotient(y, item.one_per_extent[1]);
    y -= planes * item.extent[1];
    z += planes;
    const int samples = small_quotient(z, item.one_per_extent[0]);
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
    for (int row = opaque(thread_index()); row < params.chunk + start.right_rows; row += kLagThreads) {
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

// Starts the copies of a tile's channels of `rows` rows, from channel `first` of the group's `channels`.
template <class Element>
IGM_DEVICE void lag_copy(const unsigned char* input, const int* table, int rows, int first, int channels,
                         Element* shared) {
    constexpr int kPiece = 16 / static_cast<int>(sizeof(Element));
    constexpr int kPieces = kLagTile / kPiece;
    const int thread = opaque(thread_index());
    const int channel = thread % kPieces * kPiece;
    const bool used = first + channel < channels;
    input += used ? (first + channel) * static_cast<int>(sizeof(Element)) : 0;
    IGM_ROLLED
    for (int row = thread / kPieces; row < rows; row += kLagThreads / kPieces) {
        const int address = table[row];
        const bool present = used && address >= 0;
        copy_async_16(shared + row * kLagStride + channel, input + (present ? address * 16LL : 0), present);
    }
}

// Which lags and positions a warp works on.
struct alignas(16) LagShifts {
    int shift[kLagsPerWarp];  // from the left operand's first position to the right one's, in elements
    int count;
};
struct LagWarp {
    LagShifts lags;
    int first_lag;
    int part;  // takes steps part, part + parts, … of a chunk
};

// The part of a tile that a warp multiplies, in tiles of 16 × 16.
template <class Unit>
struct LagSide {
    static constexpr int kDown = 4, kAcross = 2;
    using Lags = LagShifts;
    static IGM_DEVICE int row(int) { return 0; }
    static IGM_DEVICE int column(int warp) { return warp % kLagSides * kLagQuarter; }
};
template <>
struct LagSide<UnitTf32x3> {
    static constexpr int kDown = 2, kAcross = 4;
    using Lags = const LagShifts&;  // registers are short: read from shared memory each time
    static IGM_DEVICE int row(int warp) { return warp % kLagSides * kLagQuarter; }
    static IGM_DEVICE int column(int) { return 0; }
};

// What a block works on. It lies in shared memory: the sums take three quarters of the registers, and the compiler
// would keep every number of this in one.
struct LagBlock {
    LagItem item;
    const unsigned char* input;  // of the group
    float* partials;             // of the first lag
    int first_left, first_right;
    bool same;       // both operands are, and one copy is enough
    int right;       // where it begins in a stage, in elements
    int begin, end;  // chunks
    LagWarp warps[kLagSides * kLagRoles];
};

// In place: indexed registers would be memory of the thread.
template <class Side>
IGM_DEVICE void lag_block(const LagProduct& params, LagBlock& own) {
    int index = 0;
    while (index + 1 < params.count && params.items[index + 1].first_block <= block_index()) {
        ++index;
    }
    own.item = params.items[index];
    const int side = (params.channels + kLagTile - 1) / kLagTile, tiles = side * side;
    const int block = static_cast<int>(block_index()) - own.item.first_block;
    const int tile = block % tiles, split = block / tiles / params.groups, group = block / tiles % params.groups;
    own.input = static_cast<const unsigned char*>(params.input) + group * 16LL * params.group_stride;
    own.partials = params.partials + (own.item.first_quarter + block * 4LL * own.item.lags) * kLagQuarterEntries;
    own.first_left = tile / side * kLagTile;
    own.first_right = tile % side * kLagTile;
    own.same = own.item.only_lower && own.first_left == own.first_right;
    own.right = own.same ? 0 : params.chunk * kLagStride;
    own.begin = static_cast<int>(static_cast<long long>(own.item.chunks) * split / own.item.splits);
    own.end = static_cast<int>(static_cast<long long>(own.item.chunks) * (split + 1) / own.item.splits);
    for (int warp = 0; warp < kLagSides * kLagRoles; ++warp) {
        const int role = warp / kLagSides;
        LagWarp& mine = own.warps[warp];
        mine.part = role % own.item.parts;
        mine.first_lag = role / own.item.parts * own.item.lags_per_warp;
        const int left = own.item.lags - mine.first_lag;
        mine.lags.count = left < own.item.lags_per_warp ? left : own.item.lags_per_warp;
        if (own.first_left + Side::row(warp) >= params.channels ||
            own.first_right + Side::column(warp) >= params.channels) {
            mine.lags.count = 0;
        }
        for (int lag = 0; lag < kLagsPerWarp; ++lag) {
            mine.lags.shift[lag] = 0;
            if (lag < mine.lags.count) {
                mine.lags.shift[lag] =
                    own.item.shift[mine.first_lag + lag] * kLagStride + own.right + Side::column(warp);
            }
        }
    }
}

// The sums of a warp.
template <class Side>
struct LagSums {
    static constexpr int kPerLag = Side::kDown * Side::kAcross * 8;
    float values[kLagsPerWarp][Side::kDown][Side::kAcross][2][4];

    IGM_DEVICE void clear() {
        for_each(kLagsPerWarp, [](int, float& sum) { sum = 0.0f; });
    }

    // Calls f(number, sum) for those of the first `lags` lags.
    template <class F>
    IGM_DEVICE void for_each(int lags, const F& f) {
        IGM_UNROLL
        for (int lag = 0; lag < kLagsPerWarp; ++lag) {
            IGM_UNROLL
            for (int i = 0; i < kPerLag; ++i) {
                if (lag < lags) {
                    f(lag * kPerLag + i, values[lag][i / (8 * Side::kAcross)][i / 8 % Side::kAcross][i / 4 % 2][i % 4]);
                }
            }
        }
    }
};

// Two sums of neighbouring columns; four at once would tie the registers of all sums to multiples of four.
struct alignas(8) LagPair {
    float values[2];
};

template <class Unit>
IGM_KERNEL IGM_BLOCKS(kLagThreads, kLagResident) lag_product_kernel(const LagProduct params) {
    using Element = typename Unit::Element;
    using Side = LagSide<Unit>;
    IGM_SHARED LagBlock own;
    if (thread_index() == 0) {
        lag_block<Side>(params, own);
    }
    barrier();
    const LagItem& item = own.item;
    if (item.only_lower && own.first_right > own.first_left) {
        return;
    }

    const LagWarp& mine = own.warps[warp_index()];
    LagSums<Side> sums;
    sums.clear();

    Element* const stages = reinterpret_cast<Element*>(dynamic_shared());
    int* const tables = reinterpret_cast<int*>(stages + 2 * params.stage_elements);
    LagStart* const starts = reinterpret_cast<LagStart*>(tables + 2 * params.stage_rows);

    const auto copy = [&](int chunk) {
        Element* const left = stages + chunk % 2 * params.stage_elements;
        const int* const table = tables + chunk % 2 * params.stage_rows;
        const LagStart& start = starts[chunk % 4];
        lag_copy(own.input, table, start.rows, own.first_left, params.channels, left);
        lag_copy(own.input, table + params.chunk, start.right_rows, own.first_right, params.channels, left + own.right);
        copy_commit();
    };
    const auto table = [&](int chunk) {
        lag_table(params, item, starts[chunk % 4], tables + chunk % 2 * params.stage_rows);
    };
    const auto begin = [&](int chunk) {
        starts[chunk % 4] = lag_start(item, chunk, params.chunk, Unit::kDepth, own.same);
    };
    // A chunk is made in four steps, one iteration of the loop below each: where it starts (one thread, in a warp that
    // changes), the addresses of its rows, the copies, the products.
    if (thread_index() < 3 && own.begin + thread_index() < own.end) {
        begin(own.begin + thread_index());
    }
    barrier();
    table(own.begin);
    if (own.begin + 1 < own.end) {
        table(own.begin + 1);
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
            table(chunk + 2);
        }
        if (chunk + 3 < own.end && thread_index() == chunk % (kLagThreads / kWarp) * kWarp) {
            begin(chunk + 3);
        }
        constexpr int kStep = Unit::kDepth * kLagStride;
        const Element* const stage = stages + chunk % 2 * params.stage_elements;
        const int steps = starts[chunk % 4].rows / Unit::kDepth;
        IGM_ROLLED
        for (int step = (mine.part + chunk) % item.parts; step < steps; step += item.parts) {
            const Element* const here = stage + step * kStep;
            typename Side::Lags lags = mine.lags;
            typename Unit::A a[Side::kDown];
            IGM_UNROLL
            for (int i = 0; i < Side::kDown; ++i) {
                a[i] = Unit::load_a(here + Side::row(warp_index()) + 16 * i, kLagStride);
            }
            IGM_UNROLL
            for (int lag = 0; lag < kLagsPerWarp; ++lag) {
                if (lag < lags.count) {
                    const Element* const shifted = here + lags.shift[lag];
                    IGM_UNROLL
                    for (int j = 0; j < Side::kAcross; ++j) {
                        const typename Unit::B b = Unit::load_b(shifted + 16 * j, kLagStride);
                        warp_barrier();  // two of them keep ptxas from loading ahead into registers that it lacks
                        IGM_UNROLL
                        for (int half = 0; half < 2; ++half) {
                            const typename Unit::Columns columns = Unit::columns(b, half);
                            IGM_UNROLL
                            for (int i = 0; i < Side::kDown; ++i) {
                                Unit::multiply(sums.values[lag][i][j][half], a[i], columns);
                            }
                        }
                        warp_barrier();
                    }
                }
            }
        }
    }

    // Warps with other positions of the same lags hand their sums to the first of them, one after the other.
    float* const shared = reinterpret_cast<float*>(dynamic_shared()) + lane_index() +
                          (warp_index() % kLagSides * item.lags + mine.first_lag) * LagSums<Side>::kPerLag * kWarp;
    for (int other = 1; other < item.parts; ++other) {
        barrier();
        sums.for_each(mine.part == other ? mine.lags.count : 0,
                      [&](int index, float& sum) { shared[index * kWarp] = sum; });
        barrier();
        sums.for_each(mine.part == 0 ? mine.lags.count : 0,
                      [&](int index, float& sum) { sum += shared[index * kWarp]; });
    }
    const int first = 4 * mine.first_lag + (2 * Side::row(warp_index()) + Side::column(warp_index())) / kLagQuarter;
    LagPair* const partials = reinterpret_cast<LagPair*>(own.partials + first * kLagQuarterEntries) + lane_index();
    IGM_UNROLL
    for (int lag = 0; lag < kLagsPerWarp; ++lag) {
        if (mine.part == 0 && lag < mine.lags.count) {
            IGM_UNROLL
            for (int i = 0; i < LagSums<Side>::kPerLag / 2; ++i) {  // pair, half, column and row of 16 × 16
                const int pair = i % 2, half = i / 2 % 2, across = i / 4 % Side::kAcross, down = i / 4 / Side::kAcross;
                const int quarter = 4 * lag + down / 2 * 2 + across / 2;
                const int store = ((down % 2 * 2 + across % 2) * 2 + half) * 2 + pair;
                const float* const two = sums.values[lag][down][across][half] + 2 * pair;
                partials[(quarter * kLagQuarterEntries + store * 2 * kWarp) / 2] = LagPair{{two[0], two[1]}};
            }
        }
    }
}

// A block per quarter of a quarter of a tile of one lag.
IGM_KERNEL IGM_BLOCKS(kLagReduceThreads, 16) lag_reduce_kernel(const LagProduct params) {
    const int unit = static_cast<int>(block_index() / kLagReduceBlocks);
    int index = 0;
    while (index + 1 < params.count && params.items[index + 1].first_unit <= unit) {
        ++index;
    }
    const LagItem& item = params.items[index];
    const int side = (params.channels + kLagTile - 1) / kLagTile, tiles = side * side;
    const int local = unit - item.first_unit;  // [group][tile][lag][quarter]
    const int quarter = local % 4, lag = local / 4 % item.lags;
    const int tile = local / 4 / item.lags % tiles, group = local / 4 / item.lags / tiles;
    const int first_row = tile / side * kLagTile + quarter / 2 * kLagQuarter;
    const int first_column = tile % side * kLagTile + quarter % 2 * kLagQuarter;
    if (first_row >= params.channels || first_column >= params.channels ||
        (item.only_lower && first_column > first_row)) {
        return;
    }
    const int pack_index = static_cast<int>(block_index() % kLagReduceBlocks) * kLagReduceThreads + thread_index();
    double sums[4] = {0.0, 0.0, 0.0, 0.0};
    const long long per_split = static_cast<long long>(params.groups) * tiles * item.lags * 4 * kLagQuarterEntries;
    const float* source = params.partials + (item.first_quarter + local) * kLagQuarterEntries + pack_index * 4;
    for (int split = 0; split < item.splits; ++split) {
        const Pack<float> pack = load_pack<true>(source + split * per_split);
        for (int k = 0; k < 4; ++k) {
            sums[k] += pack.elements[k];
        }
    }
    // The order in which the product kernel's threads stored them: pairs of two lanes make four columns.
    const int store = pack_index / 16, lanes = pack_index % 16;
    const int row = first_row + store / 8 * 16 + store % 2 * 8 + lanes / 2;
    const int column = first_column + store / 4 % 2 * 16 + store / 2 % 2 * 8 + lanes % 2 * 4;
    float* target = params.products +
                    (static_cast<long long>(group) * params.terms + item.term[lag]) * params.channels * params.pitch;
    if (row < params.channels && column < params.channels) {
        Pack<float> pack;
        for (int k = 0; k < 4; ++k) {
            pack.elements[k] = static_cast<float>(sums[k]);
        }
        store_pack<true>(target + static_cast<long long>(row) * params.pitch + column, pack);
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
    const int area = params.channels * params.pitch;  // the plan sees to it that terms · area fits
    const float* const products = params.products + static_cast<long long>(group) * params.terms * area;

    // A thread has one pair of channels, and every so many pairs of taps.
    const int e = thread_index() & (tile - 1), c = thread_index() >> log2_tile & (tile - 1);
    const int direct = (first_c + c) * params.pitch + first_e + e,
              transposed = (first_e + e) * params.pitch + first_c + c;
    const bool exists = first_c + c < params.channels && first_e + e < params.channels;
    for (int taps_ij = thread_index() >> (2 * log2_tile); exists && taps_ij < taps * taps;
         taps_ij += kLagAssembleThreads >> (2 * log2_tile)) {
        float sum = 0.0f;
        const int last = params.first[taps_ij + 1];
        for (int s = params.first[taps_ij]; s < last; ++s) {
            const int code = params.sources[s];
            const float value = products[(code >> 2) * area + (code & 2 ? transposed : direct)];
            sum += code & 1 ? -value : value;
        }
        const int i = small_quotient(taps_ij, params.one_per_taps), j = taps_ij - i * taps;
        entries[(c * taps + i) * stride + e * taps + j] = sum;
    }
    barrier();
    constexpr int kWarps = kLagAssembleThreads / kWarp;
    float* const out = params.out + static_cast<long long>(group) * dim * dim;
    float* target = out + static_cast<long long>(first_c * taps + warp_index()) * dim + first_e * taps + lane_index();
    float* entry = entries + warp_index() * stride + lane_index();
    IGM_ROLLED
    for (int row = warp_index(); row < rows; row += kWarps, target += kWarps * dim, entry += kWarps * stride) {
        const int left = (tile_row == tile_column ? row + 1 : columns) - lane_index();
        IGM_UNROLL
        for (int column = 0; column < kLagAssembleTile; column += kWarp) {
            if (column < left) {
                const float value = target[column] + params.alpha * entry[column];
                target[column] = value;
                entry[column] = value;
            }
        }
    }
    if (!params.mirror) {
        return;
    }
    barrier();
    target = out + static_cast<long long>(first_e * taps + warp_index()) * dim + first_c * taps + lane_index();
    entry = entries + lane_index() * stride + warp_index();
    IGM_ROLLED
    for (int column = warp_index(); column < columns; column += kWarps, target += kWarps * dim, entry += kWarps) {
        const int first = (tile_row == tile_column ? column + 1 : 0) - lane_index(), left = rows - lane_index();
        IGM_UNROLL
        for (int row = 0; row < kLagAssembleTile; row += kWarp) {
            if (first <= row && row < left) {
                target[row] = entry[row * stride];
            }
        }
    }
}

}  // namespace igm
