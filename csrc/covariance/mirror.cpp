#include "covariance/mirror.hpp"

#include <algorithm>

#include "common/parallel.hpp"
#include "covariance/mirror_params.hpp"

namespace igm {

namespace {

// 32 rows of 32 float64 are 8 KiB: source and target block fit into L1 together, whatever the row stride.
constexpr int64_t kBlock = 32;

template <class T>
void mirror_rows(T* matrix, int64_t size, int64_t first_row) {
    const int64_t last_row = std::min(first_row + kBlock, size);
    for (int64_t first_column = 0; first_column <= first_row; first_column += kBlock) {
        for (int64_t row = first_row; row < last_row; ++row) {
            const int64_t last_column = std::min(first_column + kBlock, row);
            for (int64_t column = first_column; column < last_column; ++column) {
                matrix[column * size + row] = matrix[row * size + column];
            }
        }
    }
}

template <class T>
void mirror(T* data, int64_t matrices, int64_t size, int threads) {
    const int64_t blocks = divide_up(size, kBlock);
    parallel_for_uneven(matrices * blocks, threads, [&](int64_t item) {
        mirror_rows(data + item / blocks * size * size, size, item % blocks * kBlock);
    });
}

}  // namespace

void mirror_lower(void* data, DType dtype, int64_t matrices, int64_t size, int threads) {
    dispatch_accumulator(dtype, [&](auto acc) {
        using T = typename decltype(acc)::Type;
        mirror(static_cast<T*>(data), matrices, size, threads);
    });
}

Launches mirror_launches(void* data, DType dtype, int64_t matrices, int64_t size) {
    const int64_t side = divide_up(size, kMirrorTile), tiles = side * (side + 1) / 2;
    const LaunchPlan launch{matrices * tiles, kMirrorThreads, 0};
    check_plan("mirror_kernel", launch, {});
    if (launch.grid == 0) {
        return {};
    }
    const char* type = dtype == DType::kFloat64 ? type_name<double>() : type_name<float>();
    return {make_launch(text("igm::mirror_kernel<", type, ">"), launch,
                        Mirror{data, static_cast<int>(size), static_cast<int>(tiles)})};
}

}  // namespace igm
