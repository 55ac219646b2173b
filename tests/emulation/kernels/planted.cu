// A small product with one defect, or none: the emulator has to tell them apart (test_planted_defects.py).

#include "common/instances.cuh"
#include "common/matrix_unit.cuh"

namespace igm {

enum class Defect {
    kNone,
    kMissingBarrier,        // the tile is read while other threads still bring it
    kMissingSecondBarrier,  // the tile is overwritten while other threads still read it
    kMissingWait,           // the tile is read before the copies have landed
    kLoadOffByOne,          // the last row of a is the one behind it
    kStoreOffByOne,         // the last row of out is the one behind it
    kWrongFragment,         // the two fragments of b are confused
    kUninitialisedSum,      // sums start as what the registers held
    kUnwritten,             // the last row of out is left out
    kPartOfBlock,           // a barrier in a branch that one warp takes
    kPartOfWarp,            // a shuffle in a branch that half of the lanes take
    kEarlyEnd,              // threads that return before a barrier
    kSharedOverrun,         // a write behind dynamic shared memory
    kUninitialisedShared,   // shared memory that nobody has written
    kStaticIndex,           // an index behind a static shared array
};

constexpr int kRows = 16, kColumns = 32, kStep = 16, kThreads = 64;
constexpr int kStrideA = kRows + 8, kStrideB = kColumns + 8;

// out (16×32) = Σ over depth of a[depth][row] · b[depth][column], depth a multiple of 16. Two warps, 16 columns each.
struct Planted {
    const BFloat16* a;
    const BFloat16* b;
    float* out;
    int depth;
};

template <Defect kDefect>
IGM_KERNEL IGM_BLOCKS(kThreads, 1) planted_kernel(const Planted params) {
    IGM_SHARED float last[kThreads];
    BFloat16* tile_a = reinterpret_cast<BFloat16*>(dynamic_shared());
    BFloat16* tile_b = tile_a + kStep * kStrideA;
    float sums[2][4];
    if (kDefect != Defect::kUninitialisedSum) {
        for (int i = 0; i < 8; ++i) {
            sums[i / 4][i % 4] = 0.0f;
        }
    }
    for (int depth = 0; depth < params.depth; depth += kStep) {
        for (int pack = thread_index(); pack < kStep * kRows / 8; pack += kThreads) {
            const int row = pack / (kRows / 8), first = pack % (kRows / 8) * 8;
            const int wrong = kDefect == Defect::kLoadOffByOne && depth + row + 1 == params.depth ? 1 : 0;
            copy_async_16(tile_a + row * kStrideA + first, params.a + (depth + row + wrong) * kRows + first, true);
        }
        for (int pack = thread_index(); pack < kStep * kColumns / 8; pack += kThreads) {
            const int row = pack / (kColumns / 8), first = pack % (kColumns / 8) * 8;
            copy_async_16(tile_b + row * kStrideB + first, params.b + (depth + row) * kColumns + first, true);
        }
        copy_commit();
        if (kDefect != Defect::kMissingWait) {
            copy_wait<0>();
        }
        if (kDefect == Defect::kPartOfBlock && warp_index() == 0) {
            barrier();
        } else if (kDefect != Defect::kMissingBarrier && kDefect != Defect::kPartOfBlock) {
            barrier();
        }
        const auto rows = UnitHalf<BFloat16>::load_a(tile_a, kStrideA);
        auto columns = UnitHalf<BFloat16>::load_b(tile_b + 16 * warp_index(), kStrideB);
        if (kDefect == Defect::kWrongFragment) {
            const unsigned other = columns.words[1];
            columns.words[1] = columns.words[2];
            columns.words[2] = other;
        }
        for (int half = 0; half < 2; ++half) {
            UnitHalf<BFloat16>::multiply(sums[half], rows, UnitHalf<BFloat16>::columns(columns, half));
        }
        if (kDefect != Defect::kMissingSecondBarrier) {
            barrier();
        }
    }
    for (int half = 0; half < 2; ++half) {
        for (int i = 0; i < 4; ++i) {
            int row = sum_row(i);
            if (kDefect == Defect::kUnwritten && row == kRows - 1) {
                continue;
            }
            row += kDefect == Defect::kStoreOffByOne && row == kRows - 1 ? 1 : 0;
            params.out[row * kColumns + 16 * warp_index() + sum_column(half, i)] = sums[half][i];
        }
    }
    if (kDefect == Defect::kEarlyEnd && thread_index() % 2 == 0) {
        return;
    }
    if (kDefect == Defect::kPartOfWarp && lane_index() < 16) {
        sums[0][0] = shuffle_xor(sums[0][0], 1);
    }
    if (kDefect == Defect::kSharedOverrun) {
        tile_b[kStep * kStrideB + thread_index()] = BFloat16{1};
    }
    barrier();
    // Through static shared memory and back: out[0] of every thread is written once more.
    if (kDefect != Defect::kUninitialisedShared || thread_index() != 5) {
        last[thread_index() + (kDefect == Defect::kStaticIndex ? 1 : 0)] = sums[0][0];
    }
    barrier();
    const int neighbour = thread_index() ^ 1;
    params.out[neighbour % kWarp / 4 * kColumns + 16 * warp_index() + neighbour % 4 * 2] = last[neighbour];
}

IGM_INSTANCE(planted_kernel<igm::Defect::kNone>)
IGM_INSTANCE(planted_kernel<igm::Defect::kMissingBarrier>)
IGM_INSTANCE(planted_kernel<igm::Defect::kMissingSecondBarrier>)
IGM_INSTANCE(planted_kernel<igm::Defect::kMissingWait>)
IGM_INSTANCE(planted_kernel<igm::Defect::kLoadOffByOne>)
IGM_INSTANCE(planted_kernel<igm::Defect::kStoreOffByOne>)
IGM_INSTANCE(planted_kernel<igm::Defect::kWrongFragment>)
IGM_INSTANCE(planted_kernel<igm::Defect::kUninitialisedSum>)
IGM_INSTANCE(planted_kernel<igm::Defect::kUnwritten>)
IGM_INSTANCE(planted_kernel<igm::Defect::kPartOfBlock>)
IGM_INSTANCE(planted_kernel<igm::Defect::kPartOfWarp>)
IGM_INSTANCE(planted_kernel<igm::Defect::kEarlyEnd>)
IGM_INSTANCE(planted_kernel<igm::Defect::kSharedOverrun>)
IGM_INSTANCE(planted_kernel<igm::Defect::kUninitialisedShared>)
IGM_INSTANCE(planted_kernel<igm::Defect::kStaticIndex>)

}  // namespace igm
