#pragma once

// All eigenpairs of a batch of small symmetric matrices A [m, m], m ≤ 112, a block each, in float64: one-sided Jacobi.
//
// W = A + sI with s = 2‖A‖_F is positive definite and its condition number is 3 at most. Rotations of pairs of its
// columns (Hestenes) make them orthogonal: W J = Q diag(λ + s), so that the columns become the eigenvectors, (λ + s)
// long. No second matrix collects the rotations, which leaves room for twice the m² in shared memory that the two-sided
// method has. Error in λ: a few roundings of s.
//
// A warp per pair, m/2 pairs at a time in the order of a tournament (m − 1 rounds, a barrier each), until a whole sweep
// meets no pair that is not orthogonal. Columns lie one after the other and lanes along them: no bank conflicts. All is
// in shared memory: DRAM sees A once and the results once.

#include "projector/block_reduce.cuh"
#include "projector/jacobi_params.hpp"

namespace igm {

// Makes two columns orthogonal, if they are not; keeps their squared norms. Of one warp. Returns whether they were not.
IGM_DEVICE bool rotate_columns(double* left, double* right, int size, double* left_norm, double* right_norm) {
    double product = 0.0;
    for (int row = lane_index(); row < size; row += kWarp) {
        product += left[row] * right[row];
    }
    product = warp_reduce<Sum>(product);
    const double alpha = *left_norm;
    const double beta = *right_norm;
    if (!(product * product > kJacobiTolerance * kJacobiTolerance * alpha * beta)) {
        return false;
    }
    const double zeta = (beta - alpha) / (2.0 * product);
    const double root = sqrt(1.0 + zeta * zeta);
    const double tangent = zeta < 0.0 ? 1.0 / (zeta - root) : 1.0 / (zeta + root);
    const double cosine = 1.0 / sqrt(1.0 + tangent * tangent);
    const double sine = cosine * tangent;
    warp_barrier();  // all lanes have read the norms
    for (int row = lane_index(); row < size; row += kWarp) {
        const double x = left[row];
        const double y = right[row];
        left[row] = cosine * x - sine * y;
        right[row] = sine * x + cosine * y;
    }
    if (lane_index() == 0) {
        *left_norm = alpha - tangent * product;
        *right_norm = beta + tangent * product;
    }
    return true;
}

// A power of two near a positive number, which may be subnormal.
IGM_DEVICE double power_of_two_below(double value) {
    const unsigned long long exponent = bit_cast<unsigned long long>(value) & 0x7ff0000000000000ull;
    return bit_cast<double>(exponent != 0 ? exponent : 0x0010000000000000ull);
}

static IGM_KERNEL IGM_BLOCKS(kJacobiWarps* kWarp, 1) jacobi_kernel(const Jacobi params) {
    IGM_SHARED double scratch[kJacobiWarps];
    double* columns = reinterpret_cast<double*>(dynamic_shared());
    const int size = params.size;
    double* norms = columns + size * size;  // squared
    const double* matrix = params.matrices + block_index() * size * size;
    double* eigenvalues = params.eigenvalues + block_index() * size;
    double* vectors = params.vectors + block_index() * size * size;
    const int warps = block_size() / kWarp;

    double largest = 0.0;
    bool finite = true;
    for (int place = thread_index(); place < size * size; place += block_size()) {
        const double entry = matrix[place] / 2 + matrix[place % size * size + place / size] / 2;
        columns[place] = entry;
        largest = Largest::apply(largest, entry < 0.0 ? -entry : entry);
        finite = finite && is_finite(entry);
    }
    if (any_thread(!finite)) {
        for (int place = thread_index(); place < size * size; place += block_size()) {
            vectors[place] = not_a_number();
        }
        for (int place = thread_index(); place < size; place += block_size()) {
            eigenvalues[place] = not_a_number();
        }
        return;
    }
    const double scale = power_of_two_below(block_reduce<Largest>(largest, scratch));
    double squares = 0.0;
    for (int place = thread_index(); place < size * size; place += block_size()) {
        const double entry = columns[place] / scale;
        columns[place] = entry;
        squares += entry * entry;
    }
    squares = block_reduce<Sum>(squares, scratch);
    const double shift = squares > 0.0 ? 2.0 * sqrt(squares) : 1.0;
    for (int column = thread_index(); column < size; column += block_size()) {
        columns[column * (size + 1)] += shift;
    }
    barrier();

    const int players = size + size % 2;  // an odd one out has a free round
    for (int sweep = 0; sweep < kJacobiSweeps; ++sweep) {
        for (int column = warp_index(); column < size; column += warps) {  // anew: rotations let them drift
            double sum = 0.0;
            for (int row = lane_index(); row < size; row += kWarp) {
                const double entry = columns[column * size + row];
                sum += entry * entry;
            }
            sum = warp_reduce<Sum>(sum);
            if (lane_index() == 0) {
                norms[column] = sum;
            }
        }
        barrier();
        bool rotated = false;
        for (int round = 0; round < players - 1; ++round) {
            for (int pair = warp_index(); pair < players / 2; pair += warps) {
                const int left = pair == 0 ? round : (round + players - 1 - pair) % (players - 1);
                const int right = pair == 0 ? players - 1 : (round + pair) % (players - 1);
                if (left < size && right < size) {
                    const bool turned = rotate_columns(columns + left * size, columns + right * size, size,
                                                       norms + left, norms + right);
                    rotated = rotated || turned;
                }
            }
            barrier();
        }
        if (!any_thread(rotated)) {
            break;
        }
    }

    // The columns have kept their directions, but thousands of rotations have stretched them all a little: eigenvalues
    // are uᵀAu, in whose error that of u enters squared.
    for (int column = warp_index(); column < size; column += warps) {
        const double* vector = columns + column * size;
        double quotient = 0.0;
        for (int j = lane_index(); j < size; j += kWarp) {
            double image = 0.0;
            for (int i = 0; i < size; ++i) {
                image += vector[i] * (matrix[i * size + j] / scale);
            }
            quotient += image * vector[j];
        }
        quotient = warp_reduce<Sum>(quotient);
        double length = 0.0;
        for (int row = lane_index(); row < size; row += kWarp) {
            length += vector[row] * vector[row];
        }
        length = warp_reduce<Sum>(length);
        if (lane_index() == 0) {
            norms[column] = quotient / length;
        }
    }
    barrier();
    for (int column = warp_index(); column < size; column += warps) {
        const double own = norms[column];
        double before = 0.0;  // how many eigenvalues come first
        double length = 0.0;
        for (int other = lane_index(); other < size; other += kWarp) {
            before += norms[other] > own || (norms[other] == own && other < column) ? 1.0 : 0.0;
            length += columns[column * size + other] * columns[column * size + other];
        }
        const int place = static_cast<int>(warp_reduce<Sum>(before));
        length = sqrt(warp_reduce<Sum>(length));
        for (int row = lane_index(); row < size; row += kWarp) {
            vectors[place * size + row] = columns[column * size + row] / length;
        }
        if (lane_index() == 0) {
            eigenvalues[place] = own * scale;
        }
    }
}

}  // namespace igm
