#include "projector/jacobi_eigh.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "common/error.hpp"
#include "common/isa.hpp"
#include "common/parallel.hpp"

namespace igm {

namespace {

// Convergence is quadratic from the third sweep or so on; 8 to 10 are the rule for a full matrix.
constexpr int kMaxSweeps = 40;

// (x, y) ← (c x − s y, s x + c y)
IGM_INLINE void rotate(double* x, double* y, double c, double s, int64_t count) {
#pragma GCC ivdep  // two different rows
    for (int64_t i = 0; i < count; ++i) {
        const double left = x[i];
        const double right = y[i];
        x[i] = c * left - s * right;
        y[i] = s * left + c * right;
    }
}

// The rotation that makes entry (p, q) zero, on rows and columns p and q. Returns false if the entry is noise already.
IGM_INLINE bool rotate_pair(double* matrix, double* vectors, int64_t size, int64_t p, int64_t q, double noise) {
    double* row_p = matrix + p * size;
    double* row_q = matrix + q * size;
    const double off = row_p[q];
    if (!(std::abs(off) > noise)) {
        return false;
    }
    // t = tan of the smaller of the two angles; for a huge theta theta² may overflow and t becomes 0, which is right.
    const double theta = (row_q[q] - row_p[p]) / (2.0 * off);
    const double t = std::copysign(1.0, theta) / (std::abs(theta) + std::sqrt(theta * theta + 1.0));
    const double c = 1.0 / std::sqrt(t * t + 1.0);
    const double s = t * c;
    const double diagonal_p = row_p[p] - t * off;
    const double diagonal_q = row_q[q] + t * off;
    rotate(row_p, row_q, c, s, size);
    row_p[p] = diagonal_p;
    row_q[q] = diagonal_q;
    row_p[q] = row_q[p] = 0.0;
    for (int64_t i = 0; i < size; ++i) {
        matrix[i * size + p] = row_p[i];
        matrix[i * size + q] = row_q[i];
    }
    rotate(vectors + p * size, vectors + q * size, c, s, size);
    return true;
}

// False: still rotating after kMaxSweeps, which a matrix within the contract cannot cause.
bool solve(double* matrix, double* eigenvalues, double* eigenvectors, int64_t size) {
    std::vector<double> vectors(size * size, 0.0);  // row i becomes eigenvector i
    for (int64_t i = 0; i < size; ++i) {
        vectors[i * size + i] = 1.0;
    }
    const double largest = std::accumulate(matrix, matrix + size * size, 0.0,
                                           [](double most, double value) { return std::max(most, std::abs(value)); });
    // Half an ulp of the largest entry: rotations by smaller ones are rounded away on a diagonal of that size, and
    // where all eigenvalues are equal they would go on for ever. What is left moves no eigenvalue by more than
    // eps·size·largest.
    const double noise = std::numeric_limits<double>::epsilon() / 2 * largest;
    bool rotated = true;
    for (int sweep = 0; rotated && sweep < kMaxSweeps; ++sweep) {
        rotated = false;
        with_best_isa([&](auto) __attribute__((always_inline)) {
            for (int64_t p = 0; p + 1 < size; ++p) {
                for (int64_t q = p + 1; q < size; ++q) {
                    rotated = rotate_pair(matrix, vectors.data(), size, p, q, noise) || rotated;
                }
            }
        });
    }
    std::vector<int64_t> order(size);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return matrix[a * size + a] > matrix[b * size + b]; });
    for (int64_t i = 0; i < size; ++i) {
        eigenvalues[i] = matrix[order[i] * size + order[i]];
        for (int64_t row = 0; row < size; ++row) {
            eigenvectors[row * size + i] = vectors[order[i] * size + row];
        }
    }
    return !rotated;
}

}  // namespace

void jacobi_eigh(double* matrices, double* eigenvalues, double* eigenvectors, int64_t count, int64_t size,
                 int threads) {
    const int64_t bad =
        std::count_if(matrices, matrices + count * size * size, [](double value) { return !std::isfinite(value); });
    IGM_EXPECT(bad == 0, text("jacobi_eigh: ", bad, " entries are NaN or infinite"), "finite ones",
               "See inspect_symmetric.");
    std::atomic<int64_t> failures{0};
    parallel_for(count, threads, [&](int64_t i) {
        const int64_t offset = i * size * size;
        failures += !solve(matrices + offset, eigenvalues + i * size, eigenvectors + offset, size);
    });
    if (failures > 0) {
        throw MachineError(text("jacobi_eigh: ", failures, " of ", count, " matrices of size ", size,
                                " still change after ", kMaxSweeps,
                                " sweeps, expected about 10. Check that they are symmetric and of a scale between "
                                "1e-290 and 1e300."));
    }
}

}  // namespace igm
