#pragma once

#include <sstream>
#include <stdexcept>
#include <string>

namespace igm {

// The caller's slip: becomes ValueError in Python (pybind11 maps std::invalid_argument).
class Error : public std::invalid_argument {
  public:
    using std::invalid_argument::invalid_argument;
};

// The machine's fault (driver, launch, missing route): becomes RuntimeError.
class MachineError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

template <class... Parts>
std::string text(const Parts&... parts) {
    std::ostringstream stream;
    (stream << ... << parts);
    return stream.str();
}

}  // namespace igm

// Three parts in one sentence: what was given, what is expected, the way out. Checked before anything is written.
#define IGM_EXPECT(condition, given, expected, way_out)                                     \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            throw ::igm::Error(::igm::text(given, ", expected ", expected, ". ", way_out)); \
        }                                                                                   \
    } while (false)
