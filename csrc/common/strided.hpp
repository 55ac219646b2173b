#pragma once

#include <array>
#include <cstdint>

namespace igm {

// A view of N dimensions: pointer, sizes and strides in elements. Owns nothing.
template <class T, int N>
struct Strided {
    T* data;
    std::array<int64_t, N> sizes;
    std::array<int64_t, N> strides;

    template <class... Index>
    T& operator()(Index... index) const {
        static_assert(sizeof...(Index) == N, "one index per dimension");
        const int64_t indices[] = {static_cast<int64_t>(index)...};
        int64_t offset = 0;
        for (int dimension = 0; dimension < N; ++dimension) {
            offset += indices[dimension] * strides[dimension];
        }
        return data[offset];
    }
};

}  // namespace igm
