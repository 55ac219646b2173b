#pragma once

// The sides of patch_product.cuh element by element, through registers, from an input of any strides and type: an
// element costs a test of three instructions, an addition and its load. Eight rows by four depths go to a warp: then
// the stores to shared memory have no bank conflicts, and global loads find 8 neighbours: channels (`together`) or the
// taps of a channel.

#include "covariance/patch_product.cuh"

namespace igm {

// Which elements of a tile [kDepth][kTileRows] of patches a thread brings.
template <class Tiling, int kTileRows, class Element>
struct PatchShare {
    static constexpr int kLaneRows = 8, kLaneDepths = kWarp / kLaneRows;
    static constexpr int kWarpRows = kTileRows * kWarp / Tiling::kThreads;
    static constexpr int kRows = kWarpRows / kLaneRows;
    static constexpr int kDepths = Tiling::kDepth / kLaneDepths;
    static_assert(kWarpRows % 8 == 0 && Tiling::kDepth % kLaneDepths == 0, "whole warps");
    Element values[kDepths][kRows];

    static IGM_DEVICE int row(int i) { return warp_index() * kWarpRows + 8 * i + lane_index() % kLaneRows; }
    static IGM_DEVICE int depth(int i) { return lane_index() / kLaneRows + kLaneDepths * i; }

    template <class RowEntry, class DepthEntry>
    IGM_DEVICE void load(const PatchSource& source, const RowEntry (&rows)[kRows], const DepthEntry* depths) {
        with_element_type(source.dtype,
                          [&](auto tag) { load_as<typename decltype(tag)::Type>(source.guards, rows, depths); });
    }

    IGM_DEVICE void store(Element* tile, int stride) const {
        for (int i = 0; i < kDepths; ++i) {
            for (int j = 0; j < kRows; ++j) {
                tile[depth(i) * stride + row(j)] = values[i][j];
            }
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

    // The first of `depths` rows that there still are, from this column on.
    IGM_DEVICE void load(const Element* matrix, int depths, int columns, int first_column) {
        const int left = columns - first_column - column();
        for (int i = 0; i < kDepths; ++i) {
            const Element* source = matrix + static_cast<long long>(depth(i)) * columns + first_column + column();
            for (int j = 0; j < kColumns; ++j) {
                values[i][j] = Element{};
                if (depth(i) < depths && 16 * j < left) {
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

template <class Unit, int kJob, class Tiling>
struct GatherOperands : PatchBuffers<Unit, kJob, Tiling> {
    using Buffers = PatchBuffers<Unit, kJob, Tiling>;
    using Element = typename Unit::Element;
    using Row = typename PatchSides<kJob>::Row;
    using Left = PatchShare<Tiling, Tiling::kRows, Element>;
    using Buffers::left, Buffers::params, Buffers::right, Buffers::table, Buffers::tile;
    static_assert(!Tiling::kByRows, "stores go along rows");

    template <bool, class Patches, class>
    struct Choice {
        using Type = Patches;
    };
    template <class Patches, class Matrix>
    struct Choice<false, Patches, Matrix> {
        using Type = Matrix;
    };
    static constexpr bool kPatchesRight = kJob == kPatchCovariance;
    using RightPatches = PatchShare<Tiling, kPatchesRight ? Tiling::kColumns : Tiling::kRows, Element>;
    using Right = typename Choice<kPatchesRight, RightPatches, MatrixShare<Tiling, Element>>::Type;

    Row left_rows[Left::kRows], right_rows[RightPatches::kRows];
    Left left_share;
    Right right_share;

    IGM_DEVICE GatherOperands(const PatchProduct& params, const typename Buffers::Tile& tile) : Buffers(params, tile) {
        for (int i = 0; i < Left::kRows; ++i) {
            make_entry(params, tile.group, left_rows[i], tile.row * Tiling::kRows + Left::row(i));
        }
        for (int i = 0; kPatchesRight && i < RightPatches::kRows; ++i) {
            make_entry(params, tile.group, right_rows[i], tile.column * Tiling::kColumns + RightPatches::row(i));
        }
    }

    IGM_DEVICE void start(int step) {
        if (step >= tile.steps) {
            return;
        }
        left_share.load(params.source, left_rows, table(step));
        if constexpr (kPatchesRight) {
            if (!tile.on_diagonal()) {
                right_share.load(params.source, right_rows, table(step));
            }
        } else {
            const int depths = kJob == kPatchImage ? params.source.rows : params.positions;
            const int first = tile.first_depth + step * Tiling::kDepth;
            const Element* matrix = static_cast<const Element*>(params.right) +
                                    (static_cast<long long>(tile.group) * depths + first) * params.columns;
            right_share.load(matrix, depths - first, params.columns, tile.column * Tiling::kColumns);
        }
    }

    IGM_DEVICE void land(int step) const {
        left_share.store(left(step), Tiling::kLeftStride);
        if (!tile.on_diagonal()) {
            right_share.store(right(step), Tiling::kRightStride);
        }
    }
};

template <class T, int kJob, class Tiling>
struct PatchOperands<UnitPlain<T>, kJob, Tiling> {
    using Type = GatherOperands<UnitPlain<T>, kJob, Tiling>;
};

}  // namespace igm
