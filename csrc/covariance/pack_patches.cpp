#include "covariance/pack_patches.hpp"

#include <algorithm>

#include "common/isa.hpp"
#include "common/parallel.hpp"

namespace igm {

namespace {

// With channels_last memory and in linear layers, 16 float32 channels share a cache line: a work item takes all of them
// position by position, so that the line is read once.
constexpr int64_t kChannelBlock = 16;
// Positions of one work item. A run of them is at most this long: the lines of a run stay in L1 while 16 channels and
// all taps read them.
constexpr int64_t kPositionBlock = 256;

constexpr int64_t output_size(int64_t size, int64_t before, int64_t after, int64_t kernel, int64_t stride,
                              int64_t dilation) {
    return (size + before + after - dilation * (kernel - 1) - 1) / stride + 1;
}

// The outputs x in [begin, end) whose tap `x·stride + offset` falls inside of 0 … size−1.
struct Inside {
    int64_t begin;
    int64_t end;

    Inside(int64_t size, int64_t stride, int64_t offset)
        : begin(offset >= 0 ? 0 : divide_up(-offset, stride)),
          end(offset >= size ? 0 : (size - 1 - offset) / stride + 1) {}
};

template <class In, class Acc>
IGM_INLINE void copy_run(const In* source, int64_t step, Acc* target, int64_t count) {
    if (step == 1) {
        for (int64_t i = 0; i < count; ++i) {
            target[i] = static_cast<Acc>(to_float(source[i]));
        }
    } else {
        for (int64_t i = 0; i < count; ++i) {
            target[i] = static_cast<Acc>(to_float(source[i * step]));
        }
    }
}

// One run: `count` outputs from (n, z, y, x) on, all in one row of the output; every tap of channels [first, last).
template <class In, class Acc>
IGM_INLINE void pack_run(const PatchInput& input, const PatchGeometry& geometry, int64_t first_channel,
                         int64_t last_channel, const std::array<int64_t, 4>& position, int64_t count, Acc* target,
                         int64_t tile_stride) {
    const auto [n, z, y, x] = position;
    const auto& [depth, height, width] = geometry.kernel;
    const int64_t taps = depth * height * width;
    const int64_t step = geometry.stride[2] * input.strides[4];
    const In* data = static_cast<const In*>(input.data);
    for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t plane =
            z * geometry.stride[0] - geometry.padding[4] + tap / (height * width) * geometry.dilation[0];
        const int64_t row = y * geometry.stride[1] - geometry.padding[2] + tap / width % height * geometry.dilation[1];
        const bool row_inside = plane >= 0 && plane < input.sizes[2] && row >= 0 && row < input.sizes[3];
        const int64_t offset = tap % width * geometry.dilation[2] - geometry.padding[0];
        const Inside inside(input.sizes[4], geometry.stride[2], offset);
        const int64_t begin = row_inside ? std::clamp(inside.begin - x, int64_t(0), count) : count;
        const int64_t end = row_inside ? std::clamp(inside.end - x, begin, count) : count;
        // Formed as an offset: the first tap may lie in the padding, and an address there must not be made.
        const int64_t source = n * input.strides[0] + plane * input.strides[2] + row * input.strides[3] +
                               ((x + begin) * geometry.stride[2] + offset) * input.strides[4];
        Acc* out = target + (first_channel * taps + tap) * tile_stride;
        for (int64_t c = first_channel; c < last_channel; ++c, out += taps * tile_stride) {
            std::fill_n(out, begin, Acc(0));
            if (begin < end) {
                copy_run(data + (source + c * input.strides[1]), step, out + begin, end - begin);
            }
            std::fill_n(out + end, count - end, Acc(0));
        }
    }
}

template <class In, class Acc>
void pack(const PatchInput& input, const PatchGeometry& geometry, PatchRange range, Acc* tile, int threads) {
    const auto out = [&](int axis) {  // axis 2 (x) is padded by the first pair, axis 0 (z) by the last
        const int64_t* around = &geometry.padding[2 * (2 - axis)];
        return output_size(input.sizes[2 + axis], around[0], around[1], geometry.kernel[axis], geometry.stride[axis],
                           geometry.dilation[axis]);
    };
    const int64_t depth = out(0);
    const int64_t height = out(1);
    const int64_t width = out(2);
    const int64_t channels = input.sizes[1];
    const int64_t channel_blocks = divide_up(channels, kChannelBlock);
    const int64_t position_blocks = divide_up(range.count, kPositionBlock);
    parallel_for(channel_blocks * position_blocks, threads, [&](int64_t item) {
        const int64_t first_channel = item / position_blocks * kChannelBlock;
        const int64_t last_channel = std::min(first_channel + kChannelBlock, channels);
        int64_t done = item % position_blocks * kPositionBlock;
        const int64_t stop = std::min(done + kPositionBlock, range.count);
        with_best_isa([&](auto) __attribute__((always_inline)) {
            while (done < stop) {
                const int64_t p = range.first + done;
                const int64_t x = p % width;
                const int64_t count = std::min(width - x, stop - done);
                pack_run<In>(input, geometry, first_channel, last_channel,
                             {p / width / height / depth, p / width / height % depth, p / width % height, x}, count,
                             tile + done, range.count);
                done += count;
            }
        });
    });
}

}  // namespace

void pack_patches(const PatchInput& input, const PatchGeometry& geometry, PatchRange range, void* tile,
                  DType tile_dtype, int threads) {
    dispatch(input.dtype, [&](auto in) {
        dispatch_accumulator(tile_dtype, [&](auto acc) {
            using In = typename decltype(in)::Type;
            using Acc = typename decltype(acc)::Type;
            pack<In>(input, geometry, range, static_cast<Acc*>(tile), threads);
        });
    });
}

}  // namespace igm
