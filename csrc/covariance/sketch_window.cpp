#include "covariance/sketch_window.hpp"

namespace igm {

std::vector<OutputBox> SketchWindow::boxes(int64_t most, int64_t multiple) const {
    // The axis that is cut is the innermost one that does not fit as a whole; what lies outside of it is walked over.
    std::array<int64_t, 4> count = {1, 1, 1, 1};
    int64_t room = most;
    for (int axis = 3; axis >= 0 && room > 1; --axis) {
        const int64_t parts = divide_up(outputs_[axis], room);
        count[axis] = std::min(divide_up(divide_up(outputs_[axis], parts), multiple) * multiple, outputs_[axis]);
        room = parts == 1 ? room / outputs_[axis] : 1;
    }
    std::vector<OutputBox> result;
    for (int64_t n = 0; n < outputs_[0]; n += count[0]) {
        for (int64_t z = 0; z < outputs_[1]; z += count[1]) {
            for (int64_t y = 0; y < outputs_[2]; y += count[2]) {
                for (int64_t x = 0; x < outputs_[3]; x += count[3]) {
                    OutputBox box{{n, z, y, x}, count};
                    for (int axis = 0; axis < 4; ++axis) {
                        box.count[axis] = std::min(count[axis], outputs_[axis] - box.first[axis]);
                    }
                    result.push_back(box);
                }
            }
        }
    }
    return result;
}

std::vector<int64_t> SketchWindow::tap_offsets(const OutputBox& box) const {
    const auto& [az, ay, ax] = axes_;
    const int64_t row = ax.entries(box.count[3]);
    const int64_t plane = ay.entries(box.count[2]) * row;
    std::vector<int64_t> offsets;
    for (int64_t h = 0; h < kernel_[0]; ++h) {
        for (int64_t i = 0; i < kernel_[1]; ++i) {
            for (int64_t j = 0; j < kernel_[2]; ++j) {
                offsets.push_back(az.offset(h, box.count[1]) * plane + ay.offset(i, box.count[2]) * row +
                                  ax.offset(j, box.count[3]));
            }
        }
    }
    return offsets;
}

std::vector<int64_t> SketchWindow::row_offsets(const OutputBox& box) const {
    const auto& [az, ay, ax] = axes_;
    const int64_t row = ax.entries(box.count[3]);
    const int64_t plane = ay.entries(box.count[2]) * row;
    const int64_t sample = az.entries(box.count[1]) * plane;
    std::vector<int64_t> offsets;
    for (int64_t n = 0; n < box.count[0]; ++n) {
        for (int64_t z = 0; z < box.count[1]; ++z) {
            for (int64_t y = 0; y < box.count[2]; ++y) {
                offsets.push_back(n * sample + z * plane + y * row);
            }
        }
    }
    return offsets;
}

}  // namespace igm
