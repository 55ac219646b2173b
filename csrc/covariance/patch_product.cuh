#pragma once

// Matrix products whose left side are the patches u_p of an input, which nobody unfolds (patch_source.cuh):
//
//     covariance   Σ_p u_p u_pᵀ      [dim, dim], tiles on and below the diagonal only
//     image        Z[p] = u_pᵀ Ω     [positions, columns]
//     sketch       Σ_p u_p Z[p]      [dim, columns]
//
// A block owns a tile of the result and steps through the summation index, `kDepth` of it at a time: positions, or rows
// of a patch for the image. Both sides of a step lie in shared memory as [depth][row], as common/matrix_unit.cuh wants
// them. While the matrix units work on one buffer, the elements of the next step travel to registers, and from there to
// the other buffer: one barrier a step. What an address needs of the tile's rows is computed once and kept in
// registers, what it needs of a step's depths in a table for which one warp computes ahead: an element costs a test of
// three instructions, an addition and its load.
//
// Memory: a tile reads (rows + columns) elements for rows·columns products, most of them from L1, since neighbouring
// taps read the same elements; x crosses DRAM about once, because blocks that run together share their positions. Sums
// over positions are cut into splits for as many blocks as the GPU wants; the partial sums of one round (at most 16 MB)
// stay in L2 until patch_reduction.cuh adds them in a fixed order. For the sketch the host takes so few samples at a
// time that Z never leaves L2.
//
// Eight rows by four depths go to a warp (four pairs by eight for 2-byte elements): then the stores to shared memory
// have no bank conflicts, and global loads find 8 neighbours: channels (tap_major) or the taps of a channel. Where
// channels are next to each other and nothing is converted (in_pieces), 16 bytes at a time are copied asynchronously to
// shared memory instead: channels-last images, rows of linear layers.

#include "common/matrix_unit.cuh"
#include "covariance/patch_source.cuh"

namespace igm {

// Which elements of a tile [kDepth][kTileRows] of patches a thread brings.
template <class Tiling, int kTileRows, class Element>
struct PatchShare {
    static constexpr int kPack = sizeof(Element) == 2 ? 2 : 1;  // neighbouring rows that are stored as one word
    static constexpr int kLaneRows = 8 / kPack;
    static constexpr int kLaneDepths = kWarp / kLaneRows;
    static constexpr int kWarpRows = kTileRows * kWarp / Tiling::kThreads;
    static constexpr int kRows = kWarpRows / kLaneRows;
    static constexpr int kDepths = Tiling::kDepth / kLaneDepths;
    static_assert(kWarpRows % 8 == 0 && Tiling::kDepth % kLaneDepths == 0, "whole warps");
    Element values[kDepths][kRows];

    static IGM_DEVICE int row(int i) {
        return warp_index() * kWarpRows + 8 * (i / kPack) + kPack * (lane_index() % kLaneRows) + i % kPack;
    }
    static IGM_DEVICE int depth(int i) { return lane_index() / kLaneRows + kLaneDepths * i; }

    template <class RowEntry, class DepthEntry>
    IGM_DEVICE void load(const PatchSource& source, const RowEntry (&rows)[kRows], const DepthEntry* depths) {
        if constexpr (sizeof(Element) == 2) {  // the unit multiplies the elements as they are
            load_as<Element>(source.guards, rows, depths);
        } else {
            with_element_type(source.dtype,
                              [&](auto tag) { load_as<typename decltype(tag)::Type>(source.guards, rows, depths); });
        }
    }

    IGM_DEVICE void store(Element* tile, int stride) const {
        struct alignas(kPack * sizeof(Element)) Word {
            Element elements[kPack];
        };
        for (int i = 0; i < kDepths; ++i) {
            for (int j = 0; j < kRows; j += kPack) {
                Word word;
                for (int k = 0; k < kPack; ++k) {
                    word.elements[k] = values[i][j + k];
                }
                *reinterpret_cast<Word*>(tile + depth(i) * stride + row(j)) = word;
            }
        }
    }

    // In pieces of 16 bytes, each thread the same rows at several depths; `row` is the entry of piece_row().
    static constexpr int kPieces = kTileRows * static_cast<int>(sizeof(Element)) / 16;
    static IGM_DEVICE int piece_row() { return thread_index() % kPieces * (kTileRows / kPieces); }
    static IGM_DEVICE void copy(unsigned guards, const PatchRow& row, const PatchPosition* depths, Element* tile,
                                int stride) {
        for (int depth = thread_index() / kPieces; depth < Tiling::kDepth; depth += Tiling::kThreads / kPieces) {
            const PatchPosition entry = depths[depth];
            copy_async_16(tile + depth * stride + piece_row(),
                          entry.origin + row.offset * static_cast<long long>(sizeof(Element)),
                          is_inside(guards, entry, row));
        }
    }

  private:
    template <class In, class RowEntry, class DepthEntry>
    IGM_DEVICE void load_as(unsigned guards, const RowEntry (&rows)[kRows], const DepthEntry* depths) {
        for (int i = 0; i < kDepths; ++i) {
            const DepthEntry entry = depths[depth(i)];
            for (int j = 0; j < kRows; ++j) {
                values[i][j] = patch_element<Element, In>(guards, rows[j], entry);
            }
        }
    }
};

// Which elements of a tile [kDepth][kColumns] of a matrix with contiguous rows a thread brings: half a warp takes 16
// columns at a time. The two halves are two rows apart, where the second finds the other 16 banks.
template <class Tiling, class Element>
struct MatrixShare {
    static constexpr int kColumns = Tiling::kColumns / 16;
    static constexpr int kDepthsAtOnce = Tiling::kThreads / 16;
    static constexpr int kDepths = Tiling::kDepth / kDepthsAtOnce;
    static_assert(kDepths * kDepthsAtOnce == Tiling::kDepth && kDepthsAtOnce % 4 == 0, "whole rows");
    Element values[kDepths][kColumns];

    static IGM_DEVICE int column() { return lane_index() % 16; }
    static IGM_DEVICE int depth(int i) {
        return kDepthsAtOnce * i + warp_index() / 2 * 4 + warp_index() % 2 + lane_index() / 16 * 2;
    }

    // row_of(depth): row of the matrix, negative: none.
    template <class RowOf>
    IGM_DEVICE void load(const Element* matrix, int first_column, int columns, const RowOf& row_of) {
        const int left = columns - first_column - column();
        for (int i = 0; i < kDepths; ++i) {
            const long long row = row_of(depth(i));
            const Element* source = matrix + row * columns + first_column + column();
            for (int j = 0; j < kColumns; ++j) {
                values[i][j] = Element{};
                if (row >= 0 && 16 * j < left) {
                    values[i][j] = source[16 * j];
                }
            }
        }
    }

    IGM_DEVICE void store(Element* tile, int stride) const {
        for (int i = 0; i < kDepths; ++i) {
            for (int j = 0; j < kColumns; ++j) {
                tile[depth(i) * stride + column() + 16 * j] = values[i][j];
            }
        }
    }
};

// The sums of a warp's part of the tile; kDown × kAcross tiles of 16×16.
template <class Unit, class Tiling>
struct WarpSums {
    using Element = typename Unit::Element;
    static constexpr int kDown = Tiling::kRows / Tiling::kWarpsDown / 16;
    static constexpr int kAcross = Tiling::kColumns / Tiling::kWarpsAcross / 16;
    typename Unit::Sum values[kDown][kAcross][2][4] = {};

    static IGM_DEVICE int first_row() { return warp_index() % Tiling::kWarpsDown * (16 * kDown); }
    static IGM_DEVICE int first_column() { return warp_index() / Tiling::kWarpsDown * (16 * kAcross); }

    template <bool kSkipZeros>
    IGM_DEVICE void multiply(const Element* left, const Element* right) {
        left += first_row();
        right += first_column();
        IGM_NO_UNROLL
        for (int depth = 0; depth < Tiling::kDepth; depth += Unit::kDepth) {
            typename Unit::A a[kDown];
            IGM_UNROLL
            for (int i = 0; i < kDown; ++i) {
                a[i] = Unit::load_a(left + depth * Tiling::kLeftStride + 16 * i, Tiling::kLeftStride);
            }
            IGM_UNROLL
            for (int j = 0; j < kAcross; ++j) {
                const typename Unit::B b =
                    Unit::load_b(right + depth * Tiling::kRightStride + 16 * j, Tiling::kRightStride);
                if (!kSkipZeros || any_lane(has_bits(b))) {
                    IGM_UNROLL
                    for (int half = 0; half < 2; ++half) {
                        const typename Unit::Columns columns = Unit::columns(b, half);
                        IGM_UNROLL
                        for (int i = 0; i < kDown; ++i) {
                            Unit::multiply(values[i][j][half], a[i], columns);
                        }
                    }
                }
            }
        }
    }

    // Calls f(row, column, first of two neighbouring sums).
    template <class F>
    IGM_DEVICE void for_pairs(const F& f) {
        IGM_UNROLL
        for (int i = 0; i < kDown; ++i) {
            IGM_UNROLL
            for (int j = 0; j < kAcross; ++j) {
                IGM_UNROLL
                for (int half = 0; half < 2; ++half) {
                    IGM_UNROLL
                    for (int k = 0; k < 4; k += 2) {
                        f(first_row() + 16 * i + sum_row(k), first_column() + 16 * j + sum_column(half, k),
                          &values[i][j][half][k]);
                    }
                }
            }
        }
    }

  private:
    template <class B>
    static IGM_DEVICE bool has_bits(const B& b) {
        struct Words {
            unsigned words[sizeof(B) / sizeof(unsigned)];
        };
        const Words all = bit_cast<Words>(b);
        unsigned bits = 0;
        for (unsigned word : all.words) {
            bits |= word;
        }
        return bits != 0;
    }
};

// The tile of a block: of which group, where in its result, of which split.
struct PatchTile {
    int group, row, column, split;

    IGM_DEVICE PatchTile(const PatchProduct& params, bool triangle) {
        split = static_cast<int>(block_index() / params.tiles);
        const int number = params.first_tile + static_cast<int>(block_index() % params.tiles);
        const int across = params.tiles_across;
        const int per_group = triangle ? across * (across + 1) / 2 : params.tiles_down * across;
        group = number / per_group;
        const int tile = number % per_group;
        const TilePlace place = triangle ? lower_tile(tile) : TilePlace{tile / across, tile % across};
        row = place.row;
        column = place.column;
    }
};

// What lies along the rows of a left tile, and what along its depth.
template <int kJob>
struct PatchSides {
    using Row = PatchRow;
    using Depth = PatchPosition;
};
template <>
struct PatchSides<kPatchImage> {
    using Row = PatchPosition;
    using Depth = PatchRow;
};

// What a block multiplies: brings both sides of a step.
template <class Unit, int kJob, class Tiling>
struct PatchOperands {
    using Element = typename Unit::Element;
    using Row = typename PatchSides<kJob>::Row;
    using Depth = typename PatchSides<kJob>::Depth;
    using Left = PatchShare<Tiling, Tiling::kRows, Element>;
    static constexpr bool kPatchesRight = kJob == kPatchCovariance;
    using RightPatches = PatchShare<Tiling, kPatchesRight ? Tiling::kColumns : Tiling::kRows, Element>;
    using RightMatrix = MatrixShare<Tiling, Element>;
    static_assert(Tiling::kEntryBytes == sizeof(Row) && Tiling::kEntryBytes == sizeof(Depth), "tables have room");

    template <bool, class Patches, class>
    struct Choice {
        using Type = Patches;
    };
    template <class Patches, class Matrix>
    struct Choice<false, Patches, Matrix> {
        using Type = Matrix;
    };
    using Right = typename Choice<kPatchesRight, RightPatches, RightMatrix>::Type;

    const PatchProduct& params;
    const PatchTile tile;
    int first_depth, steps;
    Row left_rows[Left::kRows], right_rows[RightPatches::kRows];
    Left left;
    Right right;

    IGM_DEVICE explicit PatchOperands(const PatchProduct& params) : params(params), tile(params, kPatchesRight) {
        const PatchSource& source = params.source;
        first_depth = kJob == kPatchImage ? 0 : tile.split * params.split_positions;
        const int rest = kJob == kPatchImage ? source.dim : params.positions - first_depth;
        const int depths = kJob != kPatchImage && params.split_positions < rest ? params.split_positions : rest;
        steps = (depths + Tiling::kDepth - 1) / Tiling::kDepth;
        for (int i = 0; i < Left::kRows; ++i) {
            make_entry(left_rows[i], tile.row * Tiling::kRows + Left::row(i));
        }
        for (int i = 0; kPatchesRight && i < RightPatches::kRows; ++i) {
            make_entry(right_rows[i], tile.column * Tiling::kColumns + RightPatches::row(i));
        }
        if (in_pieces()) {
            make_entry(left_rows[0], tile.row * Tiling::kRows + Left::piece_row());
            make_entry(right_rows[0], tile.column * Tiling::kColumns + RightPatches::piece_row());
        }
    }

    IGM_DEVICE bool in_pieces() const { return kJob != kPatchImage && params.source.in_pieces; }

    // Entries of the depths of a step; warps take turns.
    IGM_DEVICE void make_table(Depth* table, int step) const {
        if (warp_index() == step % (Tiling::kThreads / kWarp) && lane_index() < Tiling::kDepth) {
            make_entry(table[lane_index()], first_depth + step * Tiling::kDepth + lane_index());
        }
    }

    // Starts to bring both sides of a step, on the way to registers or, in pieces, to the buffer itself.
    IGM_DEVICE void fetch(const Depth* table, int step, Element* buffer) {
        if constexpr (kJob != kPatchImage) {
            if (in_pieces()) {
                Left::copy(params.source.guards, left_rows[0], table, buffer, Tiling::kLeftStride);
                if (kPatchesRight && tile.row != tile.column) {
                    RightPatches::copy(params.source.guards, right_rows[0], table, right_of(buffer),
                                       Tiling::kRightStride);
                }
                copy_commit();
            }
        }
        if (!in_pieces()) {
            left.load(params.source, left_rows, table);
        }
        if constexpr (kPatchesRight) {
            if (tile.row != tile.column && !in_pieces()) {
                right.load(params.source, right_rows, table);
            }
        } else {
            const int depths = kJob == kPatchImage ? params.source.dim : params.positions;
            const Element* matrix = static_cast<const Element*>(params.right) +
                                    static_cast<long long>(tile.group) * depths * params.columns;
            right.load(matrix, tile.column * Tiling::kColumns, params.columns, [&](int offset) -> long long {
                const int depth = first_depth + step * Tiling::kDepth + offset;
                return depth < depths ? matrix_row(table[offset], depth) : -1;
            });
        }
    }

    // After this and a barrier both sides are in the buffer.
    IGM_DEVICE void finish(Element* buffer) const {
        if (!in_pieces()) {
            left.store(buffer, Tiling::kLeftStride);
        }
        if (!kPatchesRight || (tile.row != tile.column && !in_pieces())) {
            right.store(right_of(buffer), Tiling::kRightStride);
        }
        if constexpr (kJob != kPatchImage) {
            if (in_pieces()) {
                copy_wait<0>();
            }
        }
    }

    // Whether any sum of the warp that begins at this row and column of the tile is part of the result.
    IGM_DEVICE bool is_wanted(int row, int column) const {
        constexpr int kWarpRows = Tiling::kRows / Tiling::kWarpsDown;
        const int rows = kJob == kPatchImage ? params.positions : params.source.dim;
        const int columns = kPatchesRight ? params.source.dim : params.columns;
        const bool above_diagonal = kPatchesRight && tile.row == tile.column && column >= row + kWarpRows;
        return tile.row * Tiling::kRows + row < rows && tile.column * Tiling::kColumns + column < columns &&
               !above_diagonal;
    }

    // Returns where the right side lies: on the diagonal it is the left one.
    IGM_DEVICE Element* right_of(Element* buffer) const {
        return kPatchesRight && tile.row == tile.column ? buffer : buffer + Tiling::kLeftElements;
    }

  private:
    IGM_DEVICE void make_entry(PatchRow& entry, int row) const { entry = patch_row(params.source, row); }
    IGM_DEVICE void make_entry(PatchPosition& entry, int position) const {
        entry = patch_position(params.source, tile.group, params.first_position + position,
                               params.first_position + params.positions);
    }
    static IGM_DEVICE int matrix_row(const PatchRow& entry, int) { return entry.row; }         // of Ω
    static IGM_DEVICE int matrix_row(const PatchPosition&, int position) { return position; }  // of Z
};

template <class Unit, int kJob, class Tiling = PatchTiling<Unit, kJob>>
IGM_KERNEL IGM_BLOCKS(Tiling::kThreads, Tiling::kResident) patch_product_kernel(const PatchProduct params) {
    using Operands = PatchOperands<Unit, kJob, Tiling>;
    using Depth = typename Operands::Depth;
    using Element = typename Unit::Element;
    using Sum = typename Unit::Sum;
    Depth* tables = reinterpret_cast<Depth*>(dynamic_shared());
    Element* buffers = reinterpret_cast<Element*>(dynamic_shared() + Tiling::kTableBytes);

    Operands operands(params);
    WarpSums<Unit, Tiling> sums;
    const bool multiplies = operands.is_wanted(sums.first_row(), sums.first_column());
    operands.make_table(tables, 0);
    operands.make_table(tables + Tiling::kDepth, 1);
    barrier();
    operands.fetch(tables, 0, buffers);
    operands.finish(buffers);
    barrier();
    for (int step = 0; step < operands.steps; ++step) {
        const int now = step % 2, next = 1 - now;
        Element* next_buffer = buffers + next * Tiling::kBufferElements;
        if (step + 1 < operands.steps) {
            operands.fetch(tables + next * Tiling::kDepth, step + 1, next_buffer);
        }
        operands.make_table(tables + now * Tiling::kDepth, step + 2);
        Element* buffer = buffers + now * Tiling::kBufferElements;
        if (multiplies) {
            sums.template multiply<kJob == kPatchImage>(buffer, operands.right_of(buffer));
        }
        if (step + 1 < operands.steps) {
            operands.finish(next_buffer);
        }
        barrier();
    }

    const PatchTile& tile = operands.tile;
    if constexpr (kJob == kPatchImage) {
        const int columns = params.columns, first_column = tile.column * Tiling::kColumns;
        const int first_position = tile.row * Tiling::kRows;
        Sum* image = static_cast<Sum*>(params.result) + static_cast<long long>(tile.group) * params.positions * columns;
        sums.for_pairs([&](int row, int column, const Sum* pair) {
            for (int k = 0; k < 2; ++k) {
                if (first_position + row < params.positions && first_column + column + k < columns) {
                    image[static_cast<long long>(first_position + row) * columns + first_column + column + k] = pair[k];
                }
            }
        });
    } else {
        struct alignas(2 * sizeof(Sum)) Pair {
            Sum values[2];
        };
        Sum* partial = static_cast<Sum*>(params.result) + block_index() * (Tiling::kRows * Tiling::kColumns);
        sums.for_pairs([&](int row, int column, const Sum* pair) {
            Pair* place = reinterpret_cast<Pair*>(partial + row * Tiling::kColumns + column);
            const Pair before = params.accumulate ? *place : Pair{};
            *place = Pair{{before.values[0] + pair[0], before.values[1] + pair[1]}};
        });
    }
}

}  // namespace igm
