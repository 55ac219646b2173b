#include "covariance/window_moments.hpp"

#include <algorithm>
#include <vector>

#include "common/isa.hpp"
#include "common/parallel.hpp"

namespace igm {

namespace {

// With channels_last memory and in linear layers, 16 float32 channels share a cache line.
constexpr int kChannels = 16;
// Columns that are summed down the rows together: their sums stay in L1.
constexpr int64_t kColumns = 512;

// One axis: places that serve the same taps form a class; places that serve none have class −1.
struct AxisClasses {
    std::vector<int64_t> of_place;
    std::vector<std::vector<int64_t>> taps;

    struct Run {
        int64_t begin, end, of_class;
    };
    std::vector<Run> runs;  // neighbours of one class, none of class −1

    AxisClasses(const PatchInput& input, const PatchGeometry& geometry, int axis) {
        const int64_t size = input.sizes[axis + 2];
        const int64_t* around = &geometry.padding[2 * (2 - axis)];
        const int64_t kernel = geometry.kernel[axis], stride = geometry.stride[axis],
                      dilation = geometry.dilation[axis];
        const int64_t outputs = (size + around[0] + around[1] - dilation * (kernel - 1) - 1) / stride + 1;
        std::vector<int64_t> served;
        for (int64_t place = 0; place < size; ++place) {
            served.clear();
            for (int64_t tap = 0; tap < kernel; ++tap) {
                const int64_t shifted = place + around[0] - tap * dilation;
                if (shifted >= 0 && shifted % stride == 0 && shifted / stride < outputs) {
                    served.push_back(tap);
                }
            }
            const auto found = std::find(taps.begin(), taps.end(), served);
            const int64_t of_class = served.empty() ? -1 : found - taps.begin();
            if (!served.empty() && found == taps.end()) {
                taps.push_back(served);
            }
            of_place.push_back(of_class);
            if (of_class >= 0 && !runs.empty() && runs.back().end == place && runs.back().of_class == of_class) {
                runs.back().end = place + 1;
            } else if (of_class >= 0) {
                runs.push_back({place, place + 1, of_class});
            }
        }
    }

    int64_t count() const { return static_cast<int64_t>(taps.size()); }
};

struct Classes {
    AxisClasses depth, height, width;

    Classes(const PatchInput& input, const PatchGeometry& geometry)
        : depth(input, geometry, 0), height(input, geometry, 1), width(input, geometry, 2) {}

    int64_t count() const { return depth.count() * height.count() * width.count(); }

    // Calls f(offset of the row in elements, class of the row) for all rows that any output sees.
    template <class F>
    IGM_INLINE void for_rows(const PatchInput& input, const F& f) const {
        for (int64_t n = 0; n < input.sizes[0]; ++n) {
            for (int64_t z = 0; z < input.sizes[2]; ++z) {
                for (int64_t y = 0; y < input.sizes[3]; ++y) {
                    if (depth.of_place[z] >= 0 && height.of_place[y] >= 0) {
                        f(n * input.strides[0] + z * input.strides[2] + y * input.strides[3],
                          depth.of_place[z] * height.count() + height.of_place[y]);
                    }
                }
            }
        }
    }
};

// out[tap] += the sums of all classes that serve it; values[class · step].
void spread(const Classes& classes, const std::array<int64_t, 3>& kernel, const double* values, int64_t step,
            double* out) {
    for (const auto& planes : classes.depth.taps) {
        for (const auto& rows : classes.height.taps) {
            for (const auto& columns : classes.width.taps) {
                for (const int64_t h : planes) {
                    for (const int64_t i : rows) {
                        for (const int64_t j : columns) {
                            out[(h * kernel[1] + i) * kernel[2] + j] += *values;
                        }
                    }
                }
                values += step;
            }
        }
    }
}

// Columns next to each other in memory: each is summed down the rows of a class, then the columns of a class.
template <class In, class Acc>
void channel_moments(const PatchInput& input, const Classes& classes, int64_t channel, double* sums, double* squares) {
    const int64_t row_classes = classes.depth.count() * classes.height.count();
    const int64_t most = std::min(kColumns, input.sizes[4]);
    std::vector<double> columns(2 * row_classes * most);
    const In* data = static_cast<const In*>(input.data) + channel * input.strides[1];
    const int64_t step = input.strides[4];
    for (int64_t first = 0; first < input.sizes[4]; first += most) {
        const int64_t count = std::min(most, input.sizes[4] - first);
        std::fill(columns.begin(), columns.end(), 0.0);
        classes.for_rows(input, [&](int64_t offset, int64_t row_class) {
            const In* row = data + offset + first * step;
            double* sum = &columns[2 * row_class * most];
            double* square = sum + most;
            with_best_isa([&](auto) __attribute__((always_inline)) {
                if (step == 1) {
#pragma GCC ivdep  // sums never lie in the input
                    for (int64_t x = 0; x < count; ++x) {
                        const double value = static_cast<Acc>(to_float(row[x]));
                        sum[x] += value;
                        square[x] += value * value;
                    }
                    return;
                }
                for (int64_t x = 0; x < count; ++x) {
                    const double value = static_cast<Acc>(to_float(row[x * step]));
                    sum[x] += value;
                    square[x] += value * value;
                }
            });
        });
        for (int64_t row_class = 0; row_class < row_classes; ++row_class) {
            const double* sum = &columns[2 * row_class * most];
            for (int64_t x = 0; x < count; ++x) {
                const int64_t column_class = classes.width.of_place[first + x];
                if (column_class >= 0) {
                    sums[row_class * classes.width.count() + column_class] += sum[x];
                    squares[row_class * classes.width.count() + column_class] += sum[most + x];
                }
            }
        }
    }
}

// Channels next to each other in memory: kChannels of them at a time.
template <class In, class Acc>
void block_moments(const PatchInput& input, const Classes& classes, int64_t channel, double* sums, double* squares) {
    const In* data = static_cast<const In*>(input.data) + channel;
    const int64_t filled = std::min<int64_t>(kChannels, input.sizes[1] - channel);
    classes.for_rows(input, [&](int64_t offset, int64_t row_class) {
        for (const AxisClasses::Run& run : classes.width.runs) {
            const int64_t place = (row_class * classes.width.count() + run.of_class) * kChannels;
            const In* source = data + offset + run.begin * input.strides[4];
            with_best_isa([&](auto) __attribute__((always_inline)) {
                double sum[kChannels] = {}, square[kChannels] = {};
                for (int64_t x = run.begin; x < run.end; ++x, source += input.strides[4]) {
                    if (filled == kChannels) {
#pragma GCC unroll 16
                        for (int c = 0; c < kChannels; ++c) {
                            const double value = static_cast<Acc>(to_float(source[c]));
                            sum[c] += value;
                            square[c] += value * value;
                        }
                        continue;
                    }
                    for (int64_t c = 0; c < filled; ++c) {
                        const double value = static_cast<Acc>(to_float(source[c]));
                        sum[c] += value;
                        square[c] += value * value;
                    }
                }
                for (int c = 0; c < kChannels; ++c) {
                    sums[place + c] += sum[c];
                    squares[place + c] += square[c];
                }
            });
        }
    });
}

template <class In, class Acc>
void moments(const PatchInput& input, const PatchGeometry& geometry, int64_t groups, Acc* total, Acc* trace,
             double alpha, int threads) {
    const Classes classes(input, geometry);
    const int64_t channels = input.sizes[1];
    const int64_t taps = geometry.kernel[0] * geometry.kernel[1] * geometry.kernel[2];
    const bool by_block = input.strides[1] == 1 && input.strides[4] != 1;
    const int64_t step = by_block ? kChannels : 1;
    std::vector<double> squares(channels);
    parallel_for(divide_up(channels, step), threads, [&](int64_t item) {
        const int64_t first = item * step;
        std::vector<double> by_class(2 * classes.count() * step);
        double* square_by_class = by_class.data() + classes.count() * step;
        if (by_block) {
            block_moments<In, Acc>(input, classes, first, by_class.data(), square_by_class);
        } else {
            channel_moments<In, Acc>(input, classes, first, by_class.data(), square_by_class);
        }
        std::vector<double> by_tap(2 * taps);
        for (int64_t c = first; c < std::min(first + step, channels); ++c) {
            std::fill(by_tap.begin(), by_tap.end(), 0.0);
            spread(classes, geometry.kernel, &by_class[c - first], step, by_tap.data());
            spread(classes, geometry.kernel, square_by_class + c - first, step, by_tap.data() + taps);
            for (int64_t tap = 0; tap < taps; ++tap) {
                total[c * taps + tap] = static_cast<Acc>(total[c * taps + tap] + alpha * by_tap[tap]);
                squares[c] += by_tap[taps + tap];
            }
        }
    });
    for (int64_t g = 0; g < groups; ++g) {
        double sum = 0;
        for (int64_t c = g * (channels / groups); c < (g + 1) * (channels / groups); ++c) {
            sum += squares[c];
        }
        trace[g] = static_cast<Acc>(trace[g] + alpha * sum);
    }
}

}  // namespace

void add_window_moments(const PatchInput& input, const PatchGeometry& geometry, int64_t groups, void* total,
                        void* trace, DType sums, double alpha, int threads) {
    dispatch(input.dtype, [&](auto in) {
        dispatch_accumulator(sums, [&](auto acc) {
            using In = typename decltype(in)::Type;
            using Acc = typename decltype(acc)::Type;
            moments<In>(input, geometry, groups, static_cast<Acc*>(total), static_cast<Acc*>(trace), alpha, threads);
        });
    });
}

}  // namespace igm
