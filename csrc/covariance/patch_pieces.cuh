#pragma once

// The sides of patch_product.cuh in pieces of 16 bytes: channels of the input are neighbours (channels-last images,
// rows of linear layers, what stage.cuh makes), of the type that is multiplied, and lie at multiples of 16 bytes. The
// rows of a piece share a tap, and either exist or lie in the padding together.
//
// A thread copies the same piece of the tile's rows at several depths, so that its half of an address is kept in
// registers, and the other half comes from the table of the step's positions. For the image rows and depths change
// places: positions are the tile's rows and have a table for the whole block, patches are the depth.

#include "covariance/patch_product.cuh"

namespace igm {

template <class Unit, int kJob, class Tiling>
struct PieceOperands : PatchBuffers<Unit, kJob, Tiling> {
    using Buffers = PatchBuffers<Unit, kJob, Tiling>;
    using Element = typename Unit::Element;
    using Buffers::left, Buffers::params, Buffers::table, Buffers::tile;
    static constexpr int kPiece = 16 / static_cast<int>(sizeof(Element));

    PatchRow left_row, right_row;  // of this thread's pieces

    IGM_DEVICE PieceOperands(const PatchProduct& params, const typename Buffers::Tile& tile) : Buffers(params, tile) {
        if constexpr (kJob == kPatchImage) {
            for (int row = thread_index(); row < Tiling::kRows; row += Tiling::kThreads) {
                make_entry(params, tile.group, positions()[row], tile.row * Tiling::kRows + row);
            }
        } else {
            make_entry(params, tile.group, left_row, tile.row * Tiling::kRows + piece<Tiling::kRows>());
            if constexpr (kJob == kPatchCovariance) {
                make_entry(params, tile.group, right_row, tile.column * Tiling::kColumns + piece<Tiling::kColumns>());
            }
        }
    }

    IGM_DEVICE void start(int step) const {
        if (step < tile.steps) {
            const typename Buffers::Depth* const entries = table(step);
            Element* const buffer = left(step);
            if constexpr (kJob == kPatchImage) {
                copy_positions(entries, buffer);
            } else {
                copy_rows<Tiling::kRows, Tiling::kLeftStride>(left_row, entries, buffer);
            }
            if constexpr (kJob != kPatchCovariance) {
                copy_matrix(step, buffer + Tiling::kLeftElements);
            } else if (!tile.on_diagonal()) {
                copy_rows<Tiling::kColumns, Tiling::kRightStride>(right_row, entries, buffer + Tiling::kLeftElements);
            }
        }
        copy_commit();
    }

    IGM_DEVICE void land(int) const { copy_wait<0>(); }

  private:
    static IGM_DEVICE PatchPosition* positions() {
        return reinterpret_cast<PatchPosition*>(dynamic_shared() + Tiling::kDepthTableBytes);
    }

    // First row of this thread's pieces of a side that is so many rows wide.
    template <int kRows>
    static IGM_DEVICE int piece() {
        return thread_index() % (kRows / kPiece) * kPiece;
    }

    template <int kRows, int kStride>
    IGM_DEVICE void copy_rows(const PatchRow& row, const PatchPosition* entries, Element* side) const {
        constexpr int kPieces = kRows / kPiece, kAtOnce = Tiling::kThreads / kPieces;
        static_assert(Tiling::kDepth % kAtOnce == 0, "whole steps");
        const unsigned guards = params.source.guards;
        const long long offset = row.offset * static_cast<long long>(sizeof(Element));
        const int thread = opaque(thread_index());  // the sums need the registers
        const int first = thread / kPieces, column = thread % kPieces * kPiece;
        IGM_UNROLL
        for (int i = 0; i < Tiling::kDepth && first < kAtOnce; i += kAtOnce) {
            const PatchPosition entry = entries[first + i];
            copy_async_16(side + (first + i) * kStride + column, entry.origin + offset, is_inside(guards, entry, row));
        }
    }

    // The left side of an image, [row][depth]. Eight threads write at once: rows r and r + 4, which share no bank.
    IGM_DEVICE void copy_positions(const PatchRow* entries, Element* side) const {
        constexpr int kPieces = Tiling::kDepth / kPiece, kAtOnce = Tiling::kThreads / kPieces;
        static_assert(kPieces == 4 && Tiling::kRows % kAtOnce == 0, "whole steps, pairs of rows");
        const unsigned guards = params.source.guards;
        const int column = thread_index() % kPieces;
        const PatchRow depth = entries[column];
        const long long offset = depth.offset * static_cast<long long>(sizeof(Element));
        int first = thread_index() / kPieces;
        first = (first & ~7) | (first & 1) << 2 | (first >> 1 & 3);
        IGM_UNROLL
        for (int i = 0; i < Tiling::kRows; i += kAtOnce) {
            const PatchPosition entry = positions()[first + i];
            copy_async_16(side + (first + i) * Tiling::kLeftStride + column * kPiece, entry.origin + offset,
                          is_inside(guards, entry, depth));
        }
    }

    // Rows of Ω or Z.
    IGM_DEVICE void copy_matrix(int step, Element* side) const {
        constexpr int kPieces = Tiling::kColumns / kPiece;
        const int depths = kJob == kPatchImage ? params.source.rows : params.positions;
        const int first_depth = tile.first_depth + step * Tiling::kDepth;
        const Element* const matrix = static_cast<const Element*>(params.right) +
                                      (static_cast<long long>(tile.group) * depths + first_depth) * params.columns +
                                      tile.column * Tiling::kColumns;
        const int columns = params.columns - tile.column * Tiling::kColumns;
        for (int i = opaque(thread_index()); i < Tiling::kDepth * kPieces; i += Tiling::kThreads) {
            const int depth = i / kPieces, column = i % kPieces * kPiece;
            const bool present = first_depth + depth < depths && column < columns;
            copy_async_16(side + depth * Tiling::kRightStride + column,
                          matrix + (present ? static_cast<long long>(depth) * params.columns + column : 0), present);
        }
    }
};

template <class Unit, int kJob, class Tiling>
struct PatchOperands {
    using Type = PieceOperands<Unit, kJob, Tiling>;
};

}  // namespace igm
