#pragma once

// The entries of implicit patches: no unfolded copy of the input exists, each entry is read where it lies.

#include "common/device.cuh"
#include "covariance/patch_params.hpp"

namespace igm {

// The part of an entry's address and coordinates that the position decides …
struct alignas(16) PatchPosition {
    const unsigned char* origin;
    unsigned lower, upper;  // first and last tap that lie inside the input along each axis, with guard bits
};

// … and the part that the row decides.
struct alignas(16) PatchRow {
    int offset;    // in elements; the host checks that 32 bits are enough within a patch
    unsigned tap;  // the tap's coordinates
};

// What a row stands for: channels go before taps, but for `together` of them that follow one another for each tap.
struct PatchPlace {
    int channel, tap;
};
IGM_DEVICE PatchPlace patch_place(int taps, int together, int row) {
    const int block = taps * together, first = row / block, rest = row - first * block, tap = rest / together;
    return {first * together + rest - tap * together, tap};
}

// A position from `end` on has no tap inside the input.
IGM_DEVICE PatchPosition patch_position(const PatchSource& source, int group, int position, int end) {
    PatchPosition result{static_cast<const unsigned char*>(source.input), source.guards, source.guards};
    const bool exists = position < end;
    int rest = exists ? position : 0;
    long long offset = group * source.channels * source.channel_stride;
    for (int axis = 2; axis >= 0; --axis) {
        const int place = rest % source.outputs[axis];
        rest /= source.outputs[axis];
        const int dilation = source.dilation[axis];
        const int first = place * source.step[axis] - source.before[axis];
        const int last = source.sizes[axis] - 1 - first;
        int low = first < 0 ? (dilation - 1 - first) / dilation : 0;
        int high = last < 0 ? -1 : last / dilation;
        high = high < source.kernel[axis] ? high : source.kernel[axis] - 1;
        if (!exists || high < low) {
            low = 1;
            high = 0;
        }
        offset += first * source.axis_stride[axis];
        result.lower -= static_cast<unsigned>(low) << source.shift[axis];
        result.upper += static_cast<unsigned>(high) << source.shift[axis];
    }
    result.origin += (offset + rest * source.sample_stride) * source.element_bytes;
    return result;
}

// A row beyond the last one lies outside of the input everywhere.
IGM_DEVICE PatchRow patch_row(const PatchSource& source, int row) {
    if (row >= source.rows) {
        return {0, static_cast<unsigned>(source.kernel[2]) << source.shift[2]};
    }
    const PatchPlace place = patch_place(source.taps, source.together, row);
    int rest = place.tap;
    PatchRow result{static_cast<int>(place.channel * source.channel_stride), 0u};
    for (int axis = 2; axis >= 0; --axis) {
        const int tap = rest % source.kernel[axis];
        rest /= source.kernel[axis];
        result.offset += static_cast<int>(tap * source.dilation[axis] * source.axis_stride[axis]);
        result.tap |= static_cast<unsigned>(tap) << source.shift[axis];
    }
    return result;
}

// A borrow in any field of tap − lower or upper − tap takes its guard bit away.
IGM_DEVICE bool is_inside(unsigned guards, const PatchPosition& position, const PatchRow& row) {
    return (~((row.tap + position.lower) & (position.upper - row.tap)) & guards) == 0u;
}

template <class Element, class In>
IGM_DEVICE Element patch_element(unsigned guards, const PatchPosition& position, const PatchRow& row) {
    In value{};
    if (is_inside(guards, position, row)) {
        value = *reinterpret_cast<const In*>(position.origin + row.offset * static_cast<long long>(sizeof(In)));
    }
    if constexpr (sizeof(Element) == 2) {
        return value;
    } else {
        return static_cast<Element>(to_float(value));
    }
}

// The same with the two parts in the other order.
template <class Element, class In>
IGM_DEVICE Element patch_element(unsigned guards, const PatchRow& row, const PatchPosition& position) {
    return patch_element<Element, In>(guards, position, row);
}

template <class T>
struct ElementTag {
    using Type = T;
};

// Calls f(ElementTag<T>{}) with the type behind a dtype code.
template <class F>
IGM_DEVICE void with_element_type(int dtype, const F& f) {
    if (dtype == 0) {
        f(ElementTag<float>{});
    } else if (dtype == 1) {
        f(ElementTag<double>{});
    } else if (dtype == 2) {
        f(ElementTag<Float16>{});
    } else {
        f(ElementTag<BFloat16>{});
    }
}

// Tile number t of those on or below the diagonal, row by row.
struct TilePlace {
    int row, column;
};
IGM_DEVICE TilePlace lower_tile(int tile) {
    int row = static_cast<int>((sqrt(8.0 * tile + 1.0) - 1.0) / 2.0);
    const int before = row * (row + 1) / 2;  // rounding may have put the row one off
    if (before > tile) {
        --row;
    } else if (before + row + 1 <= tile) {
        ++row;
    }
    return {row, tile - row * (row + 1) / 2};
}

}  // namespace igm
