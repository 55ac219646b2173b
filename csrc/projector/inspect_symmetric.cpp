#include "projector/inspect_symmetric.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/isa.hpp"
#include "common/parallel.hpp"

namespace igm {

namespace {

// A block and its mirror image are 64 × 64 entries each, which stay in cache.
constexpr int64_t kBlock = 64;
constexpr int64_t kCacheLine = 64;  // bytes
// Entries are taken 4 × 4, transposed in registers; sums are kept in 4 lanes, so that their order is fixed.
constexpr int kLanes = 4;
typedef double Sums __attribute__((vector_size(kLanes * sizeof(double))));

struct Partial {
    double differences = 0;  // Σ (c_ij − c_ji)²
    double squares = 0;      // Σ c_ij²
};

// By reference: how a vector is passed by value depends on the instruction set.
IGM_INLINE double total(const Sums& sums) { return (sums[0] + sums[1]) + (sums[2] + sums[3]); }

// Adds what a 4 × 4 tile and the one that mirrors it hold.
template <class T>
IGM_INLINE void inspect_tile(const T* below, const T* above, Sums& differences, Sums& squares) {
    typedef T Values __attribute__((vector_size(kLanes * sizeof(T)), aligned(alignof(T)), may_alias));
    Values rows[kLanes];
    Values columns[kLanes];
    for (int i = 0; i < kLanes; ++i) {
        rows[i] = *reinterpret_cast<const Values*>(below + i * kBlock);
        columns[i] = *reinterpret_cast<const Values*>(above + i * kBlock);
    }
    const Values low01 = __builtin_shufflevector(columns[0], columns[1], 0, 4, 1, 5);
    const Values high01 = __builtin_shufflevector(columns[0], columns[1], 2, 6, 3, 7);
    const Values low23 = __builtin_shufflevector(columns[2], columns[3], 0, 4, 1, 5);
    const Values high23 = __builtin_shufflevector(columns[2], columns[3], 2, 6, 3, 7);
    const Values mirrored[kLanes] = {
        __builtin_shufflevector(low01, low23, 0, 1, 4, 5), __builtin_shufflevector(low01, low23, 2, 3, 6, 7),
        __builtin_shufflevector(high01, high23, 0, 1, 4, 5), __builtin_shufflevector(high01, high23, 2, 3, 6, 7)};
    for (int i = 0; i < kLanes; ++i) {
        const Sums left = __builtin_convertvector(rows[i], Sums);
        const Sums right = __builtin_convertvector(mirrored[i], Sums);
        const Sums difference = left - right;
        differences += difference * difference;
        squares += left * left + right * right;
    }
}

// The block at (first_row, first_column), with zeros behind the matrix's edge.
template <class T>
IGM_INLINE void copy_block(const T* matrix, int64_t size, int64_t first_row, int64_t first_column, T* block) {
    for (int64_t row = 0; row < kBlock; ++row) {
        const int64_t columns = first_row + row < size ? std::min(kBlock, size - first_column) : 0;
        const T* source = matrix + (first_row + row) * size + first_column;
        std::fill(std::copy_n(source, columns, block + row * kBlock), block + (row + 1) * kBlock, T(0));
    }
}

// Rows of a block are too short for the processor to see them coming.
template <class T>
IGM_INLINE void prefetch_block(const T* block, int64_t stride) {
    for (int64_t row = 0; row < kBlock; ++row) {
        for (int64_t column = 0; column < kBlock; column += kCacheLine / static_cast<int64_t>(sizeof(T))) {
            __builtin_prefetch(block + row * stride + column);
        }
    }
}

// Block row `first_row` below and on the diagonal, together with the block column that mirrors it.
template <class T>
IGM_INLINE Partial inspect_rows(const T* matrix, int64_t size, int64_t first_row) {
    // Copies: rows of the matrix may all lie in the same few sets of the cache.
    T below[kBlock * kBlock];
    T above[kBlock * kBlock];
    Partial partial;
    for (int64_t first_column = 0; first_column <= first_row; first_column += kBlock) {
        copy_block(matrix, size, first_row, first_column, below);
        copy_block(matrix, size, first_column, first_row, above);
        if (first_row + kBlock <= size && first_column < first_row) {
            prefetch_block(matrix + first_row * size + first_column + kBlock, size);
            prefetch_block(matrix + (first_column + kBlock) * size + first_row, size);
        }
        Sums differences = {};
        Sums squares = {};
        for (int64_t row = 0; row < kBlock; row += kLanes) {
            for (int64_t column = 0; column < kBlock; column += kLanes) {
                inspect_tile(below + row * kBlock + column, above + column * kBlock + row, differences, squares);
            }
        }
        // A block on the diagonal has met every pair of entries twice; one below it, every pair once.
        const bool diagonal = first_column == first_row;
        partial.differences += (diagonal ? 1.0 : 2.0) * total(differences);
        partial.squares += (diagonal ? 0.5 : 1.0) * total(squares);
    }
    return partial;
}

template <class T>
SymmetricFacts summarise(const T* matrix, int64_t size, const Partial* partials, int64_t blocks) {
    SymmetricFacts facts;
    facts.least_diagonal = size > 0 ? std::numeric_limits<double>::infinity() : 0.0;
    for (int64_t block = 0; block < blocks; ++block) {
        facts.asymmetry += partials[block].differences;
        facts.norm += partials[block].squares;
    }
    for (int64_t i = 0; i < size; ++i) {
        const double entry = matrix[i * (size + 1)];
        facts.trace += entry;
        facts.least_diagonal = std::min(facts.least_diagonal, entry);
    }
    facts.asymmetry = std::sqrt(facts.asymmetry);
    facts.norm = std::sqrt(facts.norm);
    if (!std::isfinite(facts.norm)) {  // an entry is not finite, or squares overflowed: only now it is worth counting
        facts.non_finite = std::count_if(matrix, matrix + size * size, [](T value) { return !std::isfinite(value); });
    }
    if (facts.non_finite > 0) {
        facts.asymmetry = facts.norm = facts.trace = facts.least_diagonal = std::numeric_limits<double>::quiet_NaN();
    }
    return facts;
}

}  // namespace

std::vector<SymmetricFacts> inspect_symmetric(const void* matrices, DType dtype, int64_t count, int64_t size,
                                              int threads) {
    const int64_t blocks = divide_up(size, kBlock);
    std::vector<Partial> partials(count * blocks);
    std::vector<SymmetricFacts> facts(count);
    dispatch_accumulator(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        const T* first = static_cast<const T*>(matrices);
        parallel_for_uneven(count * blocks, threads, [&](int64_t item) {
            with_best_isa([&](auto) __attribute__((always_inline)) {
                partials[item] = inspect_rows(first + item / blocks * size * size, size, item % blocks * kBlock);
            });
        });
        for (int64_t i = 0; i < count; ++i) {
            facts[i] = summarise(first + i * size * size, size, partials.data() + i * blocks, blocks);
        }
    });
    return facts;
}

}  // namespace igm
