#include "covariance/sketch.hpp"

#include <algorithm>
#include <memory>
#include <vector>

#include "common/isa.hpp"
#include "common/parallel.hpp"
#include "covariance/sketch_product.hpp"
#include "covariance/sketch_window.hpp"
#include "covariance/sketch_winograd.hpp"

namespace igm {

namespace {

// Positions of a chunk: 768 · 80 columns of Z are 240 KiB, and stay in L2 while all rows of Y pass over them.
constexpr int64_t kMostPositions = 768;
constexpr int64_t kLeastPositions = 64;
constexpr int64_t kWindowBytes = 2 << 20;

template <class Real>
using Buffer = std::unique_ptr<Real[]>;

// For overwriting: nothing is initialised.
template <class Real>
Buffer<Real> buffer(int64_t count) {
    return Buffer<Real>(new Real[count]);
}

// Ω of one group, only where it is not zero. A panel of 16 columns is one strip if its two halves need the same taps,
// two strips of 8 columns if not: wide strips load less per product.
template <class Real>
struct PackedOmega {
    struct Strip {
        int64_t first_column;
        int64_t columns;  // 8 or 16; those beyond the last one are zero
        std::vector<int64_t> taps;
        int64_t start;  // in `values`: [taps, channels rounded up to lanes, columns]
    };
    std::vector<Strip> strips;
    Buffer<Real> values;

    PackedOmega(const Real* omega, int64_t channels, int64_t taps, int64_t columns, int lanes, int threads) {
        const auto width = [&](int64_t first, int64_t most) { return std::clamp<int64_t>(columns - first, 0, most); };
        std::vector<std::vector<int64_t>> needed(divide_up(columns, kSketchPanel) * 2);
        parallel_for(static_cast<int64_t>(needed.size()), threads, [&](int64_t block) {
            const int64_t first = block * kSketchBlock;
            for (int64_t tap = 0; tap < taps; ++tap) {
                bool zero = true;
                for (int64_t c = 0; c < channels && zero; ++c) {
                    const Real* row = omega + (c * taps + tap) * columns + first;
                    zero = std::all_of(row, row + width(first, kSketchBlock), [](Real value) { return value == 0; });
                }
                if (!zero) {
                    needed[block].push_back(tap);
                }
            }
        });
        const int64_t padded = divide_up(channels, lanes) * lanes;
        int64_t size = 0;
        const auto add = [&](int64_t block, int64_t blocks) {
            strips.push_back({block * kSketchBlock, blocks * kSketchBlock, needed[block], size});
            size += static_cast<int64_t>(needed[block].size()) * padded * blocks * kSketchBlock;
        };
        for (int64_t block = 0; block < static_cast<int64_t>(needed.size()); block += 2) {
            if (needed[block] == needed[block + 1] || needed[block + 1].empty()) {
                add(block, 2);
            } else {
                add(block, 1);
                add(block + 1, 1);
            }
        }
        values = buffer<Real>(size);
        parallel_for(static_cast<int64_t>(strips.size()), threads, [&](int64_t i) {
            const Strip& strip = strips[i];
            Real* target = values.get() + strip.start;
            for (const int64_t tap : strip.taps) {
                std::fill_n(target, padded * strip.columns, Real(0));
                for (int64_t c = 0; c < channels; ++c) {
                    std::copy_n(omega + (c * taps + tap) * columns + strip.first_column,
                                width(strip.first_column, strip.columns), target + c * strip.columns);
                }
                target += padded * strip.columns;
            }
        });
    }
};

template <class Real>
struct Group {
    int64_t first_channel;
    int64_t channels;
    const Real* omega;
    Real* sketch;
    int64_t columns;
};

// Z [panels, positions, 16] of one chunk. An item is one row of one strip: Ω's strip stays in cache for the next row.
template <int kVectorBytes, class Real>
void make_images(const PackedOmega<Real>& omega, const Real* window, int64_t places, int64_t blocks,
                 const std::vector<int64_t>& taps, const SketchRows& rows, Real* images, int threads) {
    constexpr int kRows = SketchTiling<kVectorBytes, Real>::kRows;
    const int64_t positions = rows.count * rows.length;
    std::vector<std::vector<int64_t>> offsets;
    for (const auto& strip : omega.strips) {
        offsets.emplace_back();
        for (const int64_t tap : strip.taps) {
            offsets.back().push_back(taps[tap]);
        }
    }
    parallel_for_uneven(static_cast<int64_t>(offsets.size()) * rows.count, threads, [&](int64_t item) {
        const int64_t row = item % rows.count;
        const auto& chosen = omega.strips[item / rows.count];
        const std::vector<int64_t>& tap_offsets = offsets[item / rows.count];
        const SketchStrip<Real> strip{tap_offsets.data(), static_cast<int64_t>(tap_offsets.size()),
                                      omega.values.get() + chosen.start};
        const Real* from = window + rows.offsets[row] * kRows;
        Real* out = images + (chosen.first_column / kSketchPanel * positions + row * rows.length) * kSketchPanel +
                    chosen.first_column % kSketchPanel;
        with_vectors<kVectorBytes>([&]() __attribute__((always_inline)) {
            if (chosen.columns == kSketchPanel) {
                image_row<kVectorBytes, kSketchPanel>(rows.length, from, blocks, places * kRows, strip, out);
            } else {
                image_row<kVectorBytes, kSketchBlock>(rows.length, from, blocks, places * kRows, strip, out);
            }
        });
    });
}

// What the second product of a chunk reads: u [channel blocks, places, kRows], the rows of positions in it, one offset
// per tap, and Z [panels, positions, 16], the same for all taps or one after the other.
template <class Real>
struct Factors {
    const Real* window;
    int64_t places;
    std::vector<int64_t> tap_offsets;
    SketchRows rows;
    const Real* images;
    int64_t panel_stride;
    int64_t tap_stride;
};

// sums [channels, taps, columns] += alpha · u Z for one chunk. An item is what one tile of sums gets from all
// positions.
template <int kVectorBytes, class Real>
void add_products(const Factors<Real>& factors, int64_t all_channels, int64_t columns, Real alpha, Real* sums,
                  int threads) {
    constexpr int kRows = SketchTiling<kVectorBytes, Real>::kRows;
    const int64_t blocks = divide_up(all_channels, kRows);
    const int64_t taps = static_cast<int64_t>(factors.tap_offsets.size());
    // All tiles of one panel come first: its part of Z stays in L2.
    parallel_for_uneven(divide_up(columns, kSketchPanel) * taps * blocks, threads, [&](int64_t item) {
        const int64_t panel = item / blocks / taps;
        const int64_t tap = item / blocks % taps;
        const int64_t block = item % blocks;
        const int64_t channels = std::min<int64_t>(kRows, all_channels - block * kRows);
        const int64_t width = std::min<int64_t>(kSketchPanel, columns - panel * kSketchPanel);
        Real tile[kRows * kSketchPanel];
        with_vectors<kVectorBytes>([&]() __attribute__((always_inline)) {
            product_tiles<kVectorBytes, kRows>(
                channels, factors.window + (block * factors.places + factors.tap_offsets[tap]) * kRows, factors.rows,
                factors.images + panel * factors.panel_stride + tap * factors.tap_stride, tile);
        });
        for (int64_t c = 0; c < channels; ++c) {
            Real* out = sums + ((block * kRows + c) * taps + tap) * columns + panel * kSketchPanel;
            for (int64_t j = 0; j < width; ++j) {
                out[j] += alpha * tile[c * kSketchPanel + j];
            }
        }
    });
}

template <int kVectorBytes, class Real>
void add_group(const SketchWindow& plan, const Group<Real>& group, bool winograd, Real alpha, int threads) {
    constexpr int kRows = SketchTiling<kVectorBytes, Real>::kRows;
    const int64_t channels = group.channels, columns = group.columns;
    const int64_t blocks = divide_up(channels, kRows);
    const int64_t panels = divide_up(columns, kSketchPanel);
    const PackedOmega<Real> omega(group.omega, channels, plan.taps(), columns, kRows, threads);
    const int64_t position_bytes = blocks * kRows * static_cast<int64_t>(sizeof(Real));
    const std::vector<OutputBox> boxes =
        plan.boxes(std::clamp(kWindowBytes / position_bytes, kLeastPositions, kMostPositions), winograd ? 2 : 1);
    int64_t most_places = 0, most_tiles = 0;
    for (const OutputBox& box : boxes) {
        most_places = std::max(most_places, plan.places(box));
        most_tiles = std::max(most_tiles, winograd ? TileGrid(box).places() : 0);
    }
    const Buffer<Real> window = buffer<Real>(blocks * most_places * kRows);
    const Buffer<Real> images = buffer<Real>(panels * boxes[0].positions() * kSketchPanel);
    const Buffer<Real> window_values = buffer<Real>(blocks * kWinograd * most_tiles * kRows);
    const Buffer<Real> image_values = buffer<Real>(panels * kWinograd * most_tiles * kSketchPanel);
    std::vector<Real> transformed(winograd ? channels * kWinograd * columns : 0);
    for (const OutputBox& box : boxes) {
        const int64_t places = plan.places(box), positions = box.positions();
        const std::vector<int64_t> row_offsets = plan.row_offsets(box);
        const SketchRows rows{row_offsets.data(), static_cast<int64_t>(row_offsets.size()), box.count[3]};
        const std::vector<int64_t> taps = plan.tap_offsets(box);
        plan.pack<kRows>(box, group.first_channel, channels, window.get(), threads);
        make_images<kVectorBytes>(omega, window.get(), places, blocks, taps, rows, images.get(), threads);
        if (!winograd) {
            add_products<kVectorBytes>(
                Factors<Real>{window.get(), places, taps, rows, images.get(), positions * kSketchPanel, 0}, channels,
                columns, alpha, group.sketch, threads);
            continue;
        }
        const TileGrid grid(box);
        const int64_t tile_places = grid.places(), begin = 0;
        transform_window<kVectorBytes>(grid, window.get(), blocks, window_values.get(), threads);
        transform_images<kVectorBytes>(grid, images.get(), panels, image_values.get(), threads);
        std::vector<int64_t> offsets(kWinograd);
        for (int64_t e = 0; e < kWinograd; ++e) {
            offsets[e] = e * tile_places;
        }
        add_products<kVectorBytes>(Factors<Real>{window_values.get(),
                                                 kWinograd * tile_places,
                                                 offsets,
                                                 {&begin, 1, grid.tiles()},
                                                 image_values.get(),
                                                 kWinograd * tile_places * kSketchPanel,
                                                 tile_places * kSketchPanel},
                                   channels, columns, Real(1), transformed.data(), threads);
    }
    if (winograd) {
        add_transformed(transformed.data(), channels, columns, alpha, group.sketch, threads);
    }
}

template <int kVectorBytes, class Real>
void add_sketch(const PatchInput& input, const PatchGeometry& geometry, int64_t groups, const Real* omega, Real* sketch,
                int64_t columns, bool winograd, Real alpha, int threads) {
    const SketchWindow plan(input, geometry);
    const int64_t channels = input.sizes[1] / groups;
    const int64_t size = channels * plan.taps() * columns;
    for (int64_t g = 0; g < groups; ++g) {
        add_group<kVectorBytes, Real>(plan, {g * channels, channels, omega + g * size, sketch + g * size, columns},
                                      winograd, alpha, threads);
    }
}

}  // namespace

void add_conv_sketch(const PatchInput& input, const PatchGeometry& geometry, int64_t groups, const void* omega,
                     void* sketch, DType sums, int64_t columns, bool winograd, double alpha, int threads) {
    dispatch_accumulator(sums, [&](auto acc) {
        using Acc = typename decltype(acc)::Type;
        const auto run = [&](auto vector_bytes) {
            add_sketch<decltype(vector_bytes)::value>(input, geometry, groups, static_cast<const Acc*>(omega),
                                                      static_cast<Acc*>(sketch), columns, winograd,
                                                      static_cast<Acc>(alpha), threads);
        };
        switch (isa()) {
            case Isa::kAvx512:
                return run(std::integral_constant<int, 64>{});
            case Isa::kAvx2:
                return run(std::integral_constant<int, 32>{});
            case Isa::kPortable:
                return run(std::integral_constant<int, 16>{});
        }
    });
}

}  // namespace igm
