#include "projector/panel_qr.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <vector>

#include "common/isa.hpp"
#include "common/parallel.hpp"
#include "projector/pseudo_random.hpp"

namespace igm {

namespace {

// Rows that share one partial Gram matrix; partials are added in order. 512 rows are ≥ 0.1 ms of work for 64 columns.
constexpr int64_t kChunkRows = 512;
// Rows worked on together: each entry of G is then read and written once per 8 products.
constexpr int kRows = 8;

// A remainder below 1e-13 of a column's squared norm is rounding noise of float64 Gram sums (and for float32 panels far
// below the rounding of the panel itself).
constexpr double kDependent = 1e-13;
// ‖G − I‖_F up to which one more round gives orthonormality to round-off: cond(A)² ≤ 1.5 / 0.5.
constexpr double kNearlyOrthonormal = 0.5;
// Two rounds are the rule, one more per generation of replaced columns; 32 are never reached.
constexpr int kMaxRounds = 32;

// out[0 … count) += Σ_r factors[r] · rows[r · stride …]
IGM_INLINE void add_rows(double* out, const double* rows, int64_t stride, const double* factors, int64_t count) {
    const double f0 = factors[0], f1 = factors[1], f2 = factors[2], f3 = factors[3];
    const double f4 = factors[4], f5 = factors[5], f6 = factors[6], f7 = factors[7];
    static_assert(kRows == 8, "one factor per row");
#pragma GCC ivdep  // out never lies in rows
    for (int64_t i = 0; i < count; ++i) {
        out[i] += ((f0 * rows[i] + f1 * rows[stride + i]) + (f2 * rows[2 * stride + i] + f3 * rows[3 * stride + i])) +
                  ((f4 * rows[4 * stride + i] + f5 * rows[5 * stride + i]) +
                   (f6 * rows[6 * stride + i] + f7 * rows[7 * stride + i]));
    }
}

// Rows of the panel as float64, kRows × columns; missing ones are zero.
template <class T>
IGM_INLINE void load_rows(const T* panel, int64_t rows, int64_t columns, double* block) {
    std::copy_n(panel, rows * columns, block);
    std::fill(block + rows * columns, block + kRows * columns, 0.0);
}

// The upper triangle of AᵀA for a chunk of rows.
template <class T>
void gram_chunk(const T* panel, int64_t rows, int64_t columns, double* gram) {
    std::vector<double> block(kRows * columns);
    std::fill_n(gram, columns * columns, 0.0);
    with_best_isa([&](auto) __attribute__((always_inline)) {
        for (int64_t row = 0; row < rows; row += kRows) {
            load_rows(panel + row * columns, std::min<int64_t>(kRows, rows - row), columns, block.data());
            for (int64_t i = 0; i < columns; ++i) {
                double factors[kRows];
                for (int r = 0; r < kRows; ++r) {
                    factors[r] = block[r * columns + i];
                }
                add_rows(gram + i * columns + i, block.data() + i, columns, factors, columns - i);
            }
        }
    });
}

template <class T>
void gram_matrix(const T* panel, int64_t rows, int64_t columns, std::vector<double>& partials, int threads) {
    const int64_t chunks = divide_up(rows, kChunkRows);
    const int64_t size = columns * columns;
    partials.resize(chunks * size);
    parallel_for(chunks, threads, [&](int64_t chunk) {
        const int64_t first = chunk * kChunkRows;
        gram_chunk(panel + first * columns, std::min(kChunkRows, rows - first), columns, &partials[chunk * size]);
    });
    for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        for (int64_t i = 0; i < size; ++i) {
            partials[i] += partials[chunk * size + i];
        }
    }
}

double distance_to_identity(const double* gram, int64_t columns) {
    double sum = 0;
    for (int64_t i = 0; i < columns; ++i) {
        for (int64_t j = i; j < columns; ++j) {
            const double difference = gram[i * columns + j] - (i == j ? 1.0 : 0.0);
            sum += (i == j ? 1.0 : 2.0) * difference * difference;
        }
    }
    return std::sqrt(sum);
}

// Upper-triangular R with RᵀR = G in place. A dependent column gets R's column e_j (nothing is taken out of it, nothing
// of it is taken out of others) and is reported.
std::vector<int64_t> cholesky(double* gram, int64_t columns) {
    std::vector<int64_t> dependent;
    for (int64_t j = 0; j < columns; ++j) {
        double* row = gram + j * columns;
        const double squared_norm = row[j];
        double pivot = squared_norm;
        for (int64_t i = 0; i < j; ++i) {
            pivot -= gram[i * columns + j] * gram[i * columns + j];
        }
        if (!(pivot > kDependent * squared_norm)) {
            dependent.push_back(j);
            for (int64_t i = 0; i < columns; ++i) {
                gram[std::min(i, j) * columns + std::max(i, j)] = i == j ? 1.0 : 0.0;
            }
            continue;
        }
        for (int64_t i = 0; i < j; ++i) {
            const double factor = gram[i * columns + j];
            for (int64_t l = j + 1; l < columns; ++l) {
                row[l] -= factor * gram[i * columns + l];
            }
        }
        row[j] = std::sqrt(pivot);
        for (int64_t l = j + 1; l < columns; ++l) {
            row[l] /= row[j];
        }
    }
    return dependent;
}

// R⁻¹, upper triangular: row i of R R⁻¹ = I from the last row up.
void invert(const double* upper, int64_t columns, double* inverse) {
    std::fill_n(inverse, columns * columns, 0.0);
    for (int64_t i = columns - 1; i >= 0; --i) {
        double* row = inverse + i * columns;
        for (int64_t m = i + 1; m < columns; ++m) {
            const double factor = upper[i * columns + m];
            for (int64_t j = m; j < columns; ++j) {
                row[j] -= factor * inverse[m * columns + j];
            }
        }
        row[i] = 1.0;
        for (int64_t j = i; j < columns; ++j) {
            row[j] /= upper[i * columns + i];
        }
    }
}

// A ← A R⁻¹. `inverse` holds kRows more rows of zeros: row blocks end behind it.
template <class T>
void multiply_chunk(T* panel, int64_t rows, int64_t columns, const double* inverse) {
    std::vector<double> product(columns);
    std::vector<double> factors(columns + kRows);  // zeros behind the row
    with_best_isa([&](auto) __attribute__((always_inline)) {
        for (int64_t row = 0; row < rows; ++row) {
            T* values = panel + row * columns;
            std::copy_n(values, columns, factors.data());
            std::fill(product.begin(), product.end(), 0.0);
            for (int64_t i = 0; i < columns; i += kRows) {
                add_rows(product.data() + i, inverse + i * columns + i, columns, factors.data() + i, columns - i);
            }
            for (int64_t j = 0; j < columns; ++j) {
                values[j] = static_cast<T>(product[j]);
            }
        }
    });
}

// Powers of two bring each column's largest entry to [½, 1): exact, and no square overflows or vanishes.
template <class T>
void scale_columns(T* panel, int64_t rows, int64_t columns) {
    std::vector<T> largest(columns, T(0));
    for (int64_t row = 0; row < rows; ++row) {
        for (int64_t j = 0; j < columns; ++j) {
            largest[j] = std::max(largest[j], std::abs(panel[row * columns + j]));
        }
    }
    std::vector<int> exponents(columns, 0);
    bool needed = false;
    for (int64_t j = 0; j < columns; ++j) {
        std::frexp(largest[j], &exponents[j]);
        needed = needed || std::abs(exponents[j]) > 32;
    }
    for (int64_t row = 0; needed && row < rows; ++row) {
        for (int64_t j = 0; j < columns; ++j) {
            panel[row * columns + j] = std::ldexp(panel[row * columns + j], -exponents[j]);
        }
    }
}

enum class Outcome { kOrthonormal, kNotFinite, kRoundsExhausted };

bool diagonal_is_finite(const double* gram, int64_t columns) {
    bool finite = true;
    for (int64_t j = 0; j < columns; ++j) {
        finite = finite && std::isfinite(gram[j * columns + j]);
    }
    return finite;
}

template <class T>
Outcome orthonormalize(T* panel, int64_t rows, int64_t columns, int threads) {
    std::vector<double> gram;
    std::vector<double> inverse((columns + kRows) * columns, 0.0);
    scale_columns(panel, rows, columns);
    for (int round = 0; round < kMaxRounds; ++round) {
        gram_matrix(panel, rows, columns, gram, threads);
        // Columns are scaled, so no square overflows: only a NaN or an infinite entry gets here. Without this check it
        // would count as dependence and wander from column to column until the rounds are used up.
        if (round == 0 && !diagonal_is_finite(gram.data(), columns)) {
            return Outcome::kNotFinite;
        }
        const bool last = distance_to_identity(gram.data(), columns) <= kNearlyOrthonormal;
        const std::vector<int64_t> dependent = cholesky(gram.data(), columns);
        invert(gram.data(), columns, inverse.data());
        parallel_for(divide_up(rows, kChunkRows), threads, [&](int64_t chunk) {
            const int64_t first = chunk * kChunkRows;
            multiply_chunk(panel + first * columns, std::min(kChunkRows, rows - first), columns, inverse.data());
        });
        for (int64_t column : dependent) {
            for (int64_t row = 0; row < rows; ++row) {
                panel[row * columns + column] = static_cast<T>(pseudo_random(round, row, column));
            }
        }
        if (last) {  // no column was dependent: G would have been far from I
            return Outcome::kOrthonormal;
        }
    }
    return Outcome::kRoundsExhausted;
}

}  // namespace

void panel_qr(void* panels, DType dtype, int64_t count, int64_t rows, int64_t columns, int threads) {
    IGM_EXPECT(columns <= rows, text("panel_qr: panel of ", rows, " rows and ", columns, " columns"), "columns <= rows",
               "No more than `rows` columns can be orthonormal.");
    if (columns == 0) {
        return;
    }
    // One level of parallelism: over panels when there are enough of them, else over the rows of each.
    const int inner_threads = count >= threads ? 1 : threads;
    const int outer_threads = count >= threads ? threads : 1;
    std::atomic<int64_t> not_finite{0};
    std::atomic<int64_t> exhausted{0};
    dispatch_accumulator(dtype, [&](auto tag) {
        using T = typename decltype(tag)::Type;
        parallel_for(count, outer_threads, [&](int64_t i) {
            const Outcome outcome =
                orthonormalize(static_cast<T*>(panels) + i * rows * columns, rows, columns, inner_threads);
            not_finite += outcome == Outcome::kNotFinite;
            exhausted += outcome == Outcome::kRoundsExhausted;
        });
    });
    IGM_EXPECT(not_finite == 0, text("panel_qr: ", not_finite, " of ", count, " panels hold NaN or infinite entries"),
               "finite ones", "Look for them in the covariance (inspect_symmetric); the other panels are done.");
    if (exhausted > 0) {
        throw MachineError(text("panel_qr: ", exhausted, " of ", count, " panels of ", rows, " × ", columns,
                                " are not orthonormal after ", kMaxRounds,
                                " rounds, expected 2 or 3. Report it with the panel: no finite one should do this."));
    }
}

}  // namespace igm
