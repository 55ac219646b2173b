#pragma once

// Matrix products whose left side are the patches u_p of an input, which nobody unfolds (patch_source.cuh):
//
//     covariance   Σ_p u_p u_pᵀ      [rows, rows], tiles on and below the diagonal only
//     image        Z[p] = u_pᵀ Ω     [positions, columns]
//     sketch       Σ_p u_p Z[p]      [rows, columns]
//
// A block owns a tile of the result and steps through the summation index, `kDepth` of it at a time: positions, or rows
// of a patch for the image. Both sides of a step lie in shared memory, as common/matrix_unit.cuh wants them; while
// the warps multiply one buffer, the other is filled: one barrier a step. What an address needs of the tile's rows
// is computed once, what it needs of a step's depths lies in a table for which one warp computes ahead. How elements
// travel differs:
//
//     patch_pieces.cuh   matrix units: 16 bytes of neighbouring channels at a time, copied asynchronously; inputs that
//                        do not lie so are staged first (stage.cuh)
//     patch_gather.cuh   without: element by element through registers, any strides and types
//
// Memory: a tile reads (rows + columns) elements for rows·columns products; x crosses DRAM about once, because blocks
// that run together share their positions. The summation is cut into splits for as many blocks as the GPU wants; the
// partial sums of one round (at most 16 MB) stay in L2 until patch_reduction.cuh adds them in a fixed order. The
// host takes so few samples at a time that neither Z nor a staged input leaves L2.
//
// Per step of a covariance in TF32, 128×128 by 16: 16 KiB copied for 2·128·128·16 operations, 32 per byte of L2;
// fragments of 64×64 sums a warp are 16 KiB read from shared memory for as many.

#include "common/matrix_unit.cuh"
#include "covariance/patch_source.cuh"

namespace igm {

// The sums of a warp's part of the tile; kDown × kAcross tiles of 16×16.
template <class Unit, class Tiling>
struct WarpSums {
    using Element = typename Unit::Element;
    static constexpr int kDown = Tiling::kRows / Tiling::kWarpsDown / 16;
    static constexpr int kAcross = Tiling::kColumns / Tiling::kWarpsAcross / 16;
    typename Unit::Sum values[kDown][kAcross][2][4] = {};

    static IGM_DEVICE int first_row() { return warp_index() % Tiling::kWarpsDown * (16 * kDown); }
    static IGM_DEVICE int first_column() { return warp_index() / Tiling::kWarpsDown * (16 * kAcross); }

    IGM_DEVICE void multiply(const Element* left, const Element* right) {
        right += first_column();
        IGM_NO_UNROLL
        for (int depth = 0; depth < Tiling::kDepth; depth += Unit::kDepth) {
            typename Unit::A a[kDown];
            load_left(a, left, depth);
            IGM_UNROLL
            for (int j = 0; j < kAcross; ++j) {
                const typename Unit::B b =
                    Unit::load_b(right + depth * Tiling::kRightStride + 16 * j, Tiling::kRightStride);
                IGM_UNROLL
                for (int half = 0; half < 2; ++half) {
                    multiply_half(j, half, a, Unit::columns(b, half));
                }
            }
        }
    }

    // Where bit i of the mask of eight depths is set: their columns 8i … 8i + 7 of the right side are not all zero.
    IGM_DEVICE void multiply_where(const unsigned* masks, const Element* left, const Element* right) {
        static_assert(Tiling::kWarpsAcross == 1, "a warp has all columns");
        IGM_NO_UNROLL
        for (int depth = 0; depth < Tiling::kDepth; depth += Unit::kDepth) {
            typename Unit::A a[kDown];
            load_left(a, left, depth);
            const unsigned mask = masks[depth / kMaskDepths];
            IGM_UNROLL
            for (int j = 0; j < kAcross; ++j) {
                IGM_UNROLL
                for (int half = 0; half < 2; ++half) {
                    if (mask >> (2 * j + half) & 1u) {
                        const Element* const place = right + depth * Tiling::kRightStride + 16 * j + 8 * half;
                        multiply_half(j, half, a, Unit::load_columns(place, Tiling::kRightStride));
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
    static IGM_DEVICE void load_left(typename Unit::A (&a)[kDown], const Element* left, int depth) {
        IGM_UNROLL
        for (int i = 0; i < kDown; ++i) {
            const int row = first_row() + 16 * i;
            if constexpr (Tiling::kByRows) {
                a[i] = Unit::load_a_by_rows(left + row * Tiling::kLeftStride + depth, Tiling::kLeftStride);
            } else {
                a[i] = Unit::load_a(left + depth * Tiling::kLeftStride + row, Tiling::kLeftStride);
            }
        }
    }

    IGM_DEVICE void multiply_half(int j, int half, const typename Unit::A (&a)[kDown],
                                  const typename Unit::Columns& columns) {
        IGM_UNROLL
        for (int i = 0; i < kDown; ++i) {
            Unit::multiply(values[i][j][half], a[i], columns);
        }
    }
};

// The tile of a block: of which group, where in its result, of which split; and the depths that it steps through.
template <int kJob, class Tiling>
struct PatchTile {
    static constexpr bool kTriangle = kJob == kPatchCovariance;
    int split, group, row, column;
    int first_depth, steps;

    IGM_DEVICE void find(const PatchProduct& params) {
        split = static_cast<int>(block_index() / params.tiles);
        const int number = params.first_tile + static_cast<int>(block_index() % params.tiles);
        const int across = params.tiles_across;
        const int per_group = kTriangle ? across * (across + 1) / 2 : params.tiles_down * across;
        group = number / per_group;
        const int tile = number % per_group;
        const TilePlace place = kTriangle ? lower_tile(tile) : TilePlace{tile / across, tile % across};
        row = place.row;
        column = place.column;
        first_depth = split * params.split_depths;
        const int rest = (kJob == kPatchImage ? params.source.rows : params.positions) - first_depth;
        steps = ((params.split_depths < rest ? params.split_depths : rest) + Tiling::kDepth - 1) / Tiling::kDepth;
    }

    // Both sides are the same, and one of them is enough.
    IGM_DEVICE bool on_diagonal() const { return kTriangle && row == column; }

    // Whether any sum of the warp that begins at this row and column of the tile is part of the result.
    IGM_DEVICE bool is_wanted(const PatchProduct& params, int first_row, int first_column) const {
        constexpr int kWarpRows = Tiling::kRows / Tiling::kWarpsDown;
        const int rows = kJob == kPatchImage ? params.positions : params.source.rows;
        const int columns = kTriangle ? params.source.rows : params.columns;
        const bool above_diagonal = on_diagonal() && first_column >= first_row + kWarpRows;
        return row * Tiling::kRows + first_row < rows && column * Tiling::kColumns + first_column < columns &&
               !above_diagonal;
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

IGM_DEVICE void make_entry(const PatchProduct& params, int, PatchRow& entry, int row) {
    entry = patch_row(params.source, row);
}
IGM_DEVICE void make_entry(const PatchProduct& params, int group, PatchPosition& entry, int position) {
    entry = patch_position(params.source, group, params.first_position + position,
                           params.first_position + params.positions);
}

// Where in shared memory the sides of a step lie, and the table of its depths.
template <class Unit, int kJob, class Tiling>
struct PatchBuffers {
    using Element = typename Unit::Element;
    using Depth = typename PatchSides<kJob>::Depth;
    using Tile = PatchTile<kJob, Tiling>;
    static_assert(Tiling::kEntryBytes == sizeof(PatchRow) && Tiling::kEntryBytes == sizeof(PatchPosition), "tables");

    const PatchProduct& params;
    const Tile& tile;

    IGM_DEVICE PatchBuffers(const PatchProduct& params, const Tile& tile) : params(params), tile(tile) {}

    // Entries for the depths of this step and those behind it that one warp makes at once; warps take turns.
    IGM_DEVICE void make_table(int step) const {
        constexpr int kDepths = Tiling::kDepth / Tiling::kEntries;  // per entry
        const int turn = step / Tiling::kTableSteps;
        if (step % Tiling::kTableSteps == 0 && warp_index() == turn % (Tiling::kThreads / kWarp)) {
            make_entry(params, tile.group, table(step)[lane_index()],
                       tile.first_depth + step * Tiling::kDepth + lane_index() * kDepths);
        }
    }

    IGM_DEVICE Depth* table(int step) const {
        return reinterpret_cast<Depth*>(dynamic_shared()) + step % Tiling::kTableSlots * Tiling::kEntries;
    }
    IGM_DEVICE Element* left(int step) const {
        return reinterpret_cast<Element*>(dynamic_shared() + Tiling::kTableBytes) + step % 2 * Tiling::kBufferElements;
    }
    IGM_DEVICE Element* right(int step) const { return left(step) + (tile.on_diagonal() ? 0 : Tiling::kLeftElements); }
};

// Brings both sides of a step to shared memory: PieceOperands or GatherOperands.
template <class Unit, int kJob, class Tiling>
struct PatchOperands;

template <class Unit, int kJob, class Tiling = PatchTiling<Unit, kJob>>
IGM_KERNEL IGM_BLOCKS(Tiling::kThreads, Tiling::kResident) patch_product_kernel(const PatchProduct params) {
    using Sum = typename Unit::Sum;
    // In shared memory: the sums need the registers.
    IGM_SHARED PatchTile<kJob, Tiling> tile;
    if (thread_index() == 0) {
        tile.find(params);
    }
    barrier();
    typename PatchOperands<Unit, kJob, Tiling>::Type operands(params, tile);
    WarpSums<Unit, Tiling> sums;
    const bool multiplies = tile.is_wanted(params, sums.first_row(), sums.first_column());

    const unsigned* masks = nullptr;
    if constexpr (kJob == kPatchImage) {
        masks = params.masks + (tile.group * params.tiles_across + tile.column) * params.mask_count +
                tile.first_depth / kMaskDepths;
    }

    operands.make_table(0);
    operands.make_table(1);
    barrier();
    operands.start(0);
    for (int step = 0; step < tile.steps; ++step) {
        operands.land(step);
        barrier();
        operands.start(step + 1);
        operands.make_table(step + 2);
        if (!multiplies) {
            continue;
        }
        if constexpr (kJob == kPatchImage) {
            sums.multiply_where(masks + step * (Tiling::kDepth / kMaskDepths), operands.left(step),
                                operands.right(step));
        } else {
            sums.multiply(operands.left(step), operands.right(step));
        }
    }

    struct alignas(2 * sizeof(Sum)) Pair {
        Sum values[2];
    };
    if constexpr (kJob == kPatchImage) {
        const int columns = params.columns, first_column = tile.column * Tiling::kColumns;
        const int first_position = tile.row * Tiling::kRows;
        const int groups = params.tiles / (params.tiles_down * params.tiles_across);
        Sum* image = static_cast<Sum*>(params.result) +
                     (static_cast<long long>(tile.split) * groups + tile.group) * params.positions * columns;
        sums.for_pairs([&](int row, int column, const Sum* pair) {
            if (first_position + row < params.positions) {
                Sum* const place =
                    image + static_cast<long long>(first_position + row) * columns + first_column + column;
                if (Tiling::kByRows && first_column + column < columns) {  // whose number is even
                    *reinterpret_cast<Pair*>(place) = Pair{{pair[0], pair[1]}};
                }
                for (int k = 0; !Tiling::kByRows && k < 2 && first_column + column + k < columns; ++k) {
                    place[k] = pair[k];
                }
            }
        });
    } else {
        Sum* partial = static_cast<Sum*>(params.result) + block_index() * (Tiling::kRows * Tiling::kColumns);
        sums.for_pairs([&](int row, int column, const Sum* pair) {
            Pair* place = reinterpret_cast<Pair*>(partial + row * Tiling::kColumns + column);
            const Pair before = params.accumulate ? *place : Pair{};
            *place = Pair{{before.values[0] + pair[0], before.values[1] + pair[1]}};
        });
    }
}

}  // namespace igm
