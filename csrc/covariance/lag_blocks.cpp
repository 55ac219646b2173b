#include "covariance/lag_blocks.hpp"

#include <algorithm>
#include <vector>

#include "common/isa.hpp"
#include "common/parallel.hpp"

namespace igm {

namespace {

// Channels of a block. In float32 the products of 16×16 channels take 2 KiB a term, the 144×144 entries that a 3×3
// kernel makes of them 81 KiB: all of it stays in L2, and both triangles are written in runs of 576 bytes.
constexpr int64_t kBlock = 16;

// One block of channel pairs.
struct Block {
    int64_t first_row;
    int64_t first_column;
    int64_t rows;
    int64_t columns;
};

// What a thread works in.
template <class T>
struct Scratch {
    std::vector<T> products;  // [terms, 2, kBlock, kBlock]: as they stand, and transposed
    std::vector<T> entries;   // [kBlock·taps, kBlock·taps]

    Scratch(int64_t taps, int64_t terms)
        : products(2 * terms * kBlock * kBlock, T(0)), entries(kBlock * taps * kBlock * taps) {}
};

template <class T>
IGM_INLINE void load_products(const T* products, int64_t channels, int64_t terms, const Block& block, T* loaded) {
    const bool full = block.rows == kBlock && block.columns == kBlock;
    for (int64_t term = 0; term < terms; ++term) {
        const T* direct_source = products + (term * channels + block.first_row) * channels + block.first_column;
        const T* mirrored_source = products + (term * channels + block.first_column) * channels + block.first_row;
        T* direct = loaded + 2 * term * kBlock * kBlock;
        T* transposed = direct + kBlock * kBlock;
        if (full) {  // sizes that the compiler knows: whole cache lines in a few instructions
            for (int64_t r = 0; r < kBlock; ++r) {
                std::copy_n(direct_source + r * channels, kBlock, direct + r * kBlock);
            }
            for (int64_t c = 0; c < kBlock; ++c) {
                for (int64_t r = 0; r < kBlock; ++r) {
                    transposed[r * kBlock + c] = mirrored_source[c * channels + r];
                }
            }
            continue;
        }
        for (int64_t r = 0; r < block.rows; ++r) {
            for (int64_t c = 0; c < block.columns; ++c) {
                direct[r * kBlock + c] = direct_source[r * channels + c];
                transposed[r * kBlock + c] = mirrored_source[c * channels + r];
            }
        }
    }
}

// entries[(r, i), (c, j)] = Σ_s weight_s · source_s[r, c].
template <class T>
IGM_INLINE void sum_sources(const LagSources& sources, int64_t taps, const Block& block, Scratch<T>& scratch) {
    for (int64_t r = 0; r < block.rows; ++r) {
        for (int64_t i = 0; i < taps; ++i) {
            T* entries = scratch.entries.data() + (r * taps + i) * kBlock * taps;
            for (int64_t j = 0; j < taps; ++j) {
                T sum[kBlock] = {};
                for (int64_t s = sources.first[i * taps + j]; s < sources.first[i * taps + j + 1]; ++s) {
                    const T* values = scratch.products.data() + (sources.code[s] * kBlock + r) * kBlock;
                    const T weight = static_cast<T>(sources.weight[s]);
                    for (int64_t c = 0; c < kBlock; ++c) {
                        sum[c] += weight * values[c];
                    }
                }
                for (int64_t c = 0; c < kBlock; ++c) {
                    entries[c * taps + j] = sum[c];
                }
            }
        }
    }
}

// Adds the entries to the lower triangle and, if asked to, copies the result to the upper one.
template <class T>
IGM_INLINE void store(T* out, int64_t size, int64_t taps, const Block& block, T alpha, bool mirror, T* entries) {
    const int64_t width = kBlock * taps;
    const int64_t first_row = block.first_row * taps;
    const int64_t first_column = block.first_column * taps;
    const bool on_diagonal = first_row == first_column;
    for (int64_t r = 0; r < block.rows * taps; ++r) {
        T* target = out + (first_row + r) * size + first_column;
        T* row = entries + r * width;
        const int64_t count = on_diagonal ? r + 1 : block.columns * taps;
        for (int64_t c = 0; c < count; ++c) {
            const T entry = target[c] + alpha * row[c];
            target[c] = entry;
            row[c] = entry;
        }
    }
    if (!mirror) {
        return;
    }
    // 16×16 at a time: a line of the entries is read by 16 rows of the copy while it is in L1.
    for (int64_t r0 = 0; r0 < block.rows * taps; r0 += 16) {
        const int64_t r1 = std::min(r0 + 16, block.rows * taps);
        for (int64_t c0 = 0; c0 < block.columns * taps && (!on_diagonal || c0 < r1); c0 += 16) {
            const int64_t c1 = std::min(c0 + 16, block.columns * taps);
            for (int64_t c = c0; c < c1; ++c) {
                T* target = out + (first_column + c) * size + first_row;
                for (int64_t r = on_diagonal ? std::max(r0, c + 1) : r0; r < r1; ++r) {
                    target[r] = entries[r * width + c];
                }
            }
        }
    }
}

template <class T>
void add(T* out, const T* products, int64_t channels, int64_t taps, int64_t terms, const LagSources& sources, T alpha,
         bool mirror, int threads) {
    const int64_t side = divide_up(channels, kBlock);
    parallel_for_uneven(side, threads, [&](int64_t item) {
        const int64_t block_row = side - 1 - item;  // the longest first
        Scratch<T> scratch(taps, terms);
        for (int64_t block_column = 0; block_column <= block_row; ++block_column) {
            const Block block{block_row * kBlock, block_column * kBlock,
                              std::min(kBlock, channels - block_row * kBlock),
                              std::min(kBlock, channels - block_column * kBlock)};
            with_best_isa([&](auto) __attribute__((always_inline)) {
                load_products(products, channels, terms, block, scratch.products.data());
                sum_sources(sources, taps, block, scratch);
                store(out, channels * taps, taps, block, alpha, mirror, scratch.entries.data());
            });
        }
    });
}

}  // namespace

void add_lag_blocks(void* out, const void* products, DType dtype, int64_t channels, int64_t taps, int64_t terms,
                    const LagSources& sources, double alpha, bool mirror, int threads) {
    dispatch_accumulator(dtype, [&](auto acc) {
        using T = typename decltype(acc)::Type;
        add(static_cast<T*>(out), static_cast<const T*>(products), channels, taps, terms, sources,
            static_cast<T>(alpha), mirror, threads);
    });
}

}  // namespace igm
