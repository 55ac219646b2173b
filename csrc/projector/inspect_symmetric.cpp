#include "projector/inspect_symmetric.hpp"

#include <algorithm>
#include <cmath>
#include <limits>

#include "common/isa.hpp"
#include "common/parallel.hpp"

namespace igm {

namespace {

// A block and the transpose of its mirror image are 32 × 32 float64 each: both stay in L1.
constexpr int64_t kBlock = 32;

// One lane per column of a block: the sums vectorise and their order is fixed.
struct Lanes {
    double squares[kBlock] = {};
    double largest[kBlock] = {};
    int64_t non_finite[kBlock] = {};
};

template <class T>
IGM_INLINE void look_at(T value, double& largest, int64_t& non_finite) {
    const T magnitude = std::abs(value);
    const bool finite = magnitude <= std::numeric_limits<T>::max();
    non_finite += !finite;
    const double candidate = finite ? magnitude : T(0);
    largest = candidate > largest ? candidate : largest;
}

// Block row `first_row` below and on the diagonal, together with the block column that mirrors it.
template <class T>
IGM_INLINE void inspect_rows(const T* matrix, int64_t size, int64_t first_row, Lanes& lanes) {
    const int64_t rows = std::min(kBlock, size - first_row);
    T mirrored[kBlock][kBlock];
    for (int64_t first_column = 0; first_column <= first_row; first_column += kBlock) {
        const int64_t columns = std::min(kBlock, size - first_column);
        for (int64_t column = 0; column < columns; ++column) {
            for (int64_t row = 0; row < rows; ++row) {
                mirrored[row][column] = matrix[(first_column + column) * size + first_row + row];
            }
        }
        const bool diagonal = first_column == first_row;
        const double weight = diagonal ? 1 : 2;  // off the diagonal each difference stands for two entries of C − Cᵀ
        for (int64_t row = 0; row < rows; ++row) {
            const T* values = matrix + (first_row + row) * size + first_column;
            for (int64_t column = 0; column < columns; ++column) {
                const double difference =
                    static_cast<double>(values[column]) - static_cast<double>(mirrored[row][column]);
                lanes.squares[column] += weight * (difference * difference);
                look_at(values[column], lanes.largest[column], lanes.non_finite[column]);
            }
            for (int64_t column = 0; !diagonal && column < columns; ++column) {
                look_at(mirrored[row][column], lanes.largest[column], lanes.non_finite[column]);
            }
        }
    }
}

}  // namespace

std::vector<SymmetricFacts> inspect_symmetric(const void* matrices, DType dtype, int64_t count, int64_t size,
                                              int threads) {
    const int64_t blocks = divide_up(size, kBlock);
    std::vector<Lanes> partials(count * blocks);
    dispatch_accumulator(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        parallel_for_uneven(count * blocks, threads, [&](int64_t item) {
            const T* matrix = static_cast<const T*>(matrices) + item / blocks * size * size;
            with_best_isa([&](auto) __attribute__((always_inline)) {
                inspect_rows(matrix, size, item % blocks * kBlock, partials[item]);
            });
        });
    });
    std::vector<SymmetricFacts> facts(count);
    for (int64_t item = 0; item < count * blocks; ++item) {
        SymmetricFacts& fact = facts[item / blocks];
        for (int64_t lane = 0; lane < kBlock; ++lane) {
            fact.asymmetry += partials[item].squares[lane];
            fact.largest = std::max(fact.largest, partials[item].largest[lane]);
            fact.non_finite += partials[item].non_finite[lane];
        }
    }
    for (SymmetricFacts& fact : facts) {
        // An infinite entry opposite a finite one would give inf instead of the NaN that the header promises.
        fact.asymmetry = fact.non_finite > 0 ? std::numeric_limits<double>::quiet_NaN() : std::sqrt(fact.asymmetry);
    }
    return facts;
}

}  // namespace igm
