#pragma once

// Runs device code on a CPU: what csrc/common/device.cuh offers to kernels, for an ordinary C++ compiler.
//
// The threads of a block are fibers (emulate.cpp). Each runs until a barrier or a collective of its warp; which one
// goes on is drawn at random, so code that lacks a barrier computes something else for some seed. Threads that wait for
// one another at different places, or for one that has ended, are an error of the launch. All memory starts as 0xff
// bytes, which are NaN: shared memory before every block, targets of asynchronous copies until they have landed.
//
// Not caught: a race of two threads that both write what they will write anyway; an access beyond a static shared array
// through a pointer (an index is checked by UBSan; dynamic shared memory is fenced on both sides).

#include <math.h>  // in the global namespace, as in CUDA

#include <cstdint>
#include <type_traits>

#include "common/element.hpp"

#define IGM_KERNEL __attribute__((unused)) void
// One system thread runs all fibers, so the block shares what is thread-local; and all of it lies in one place, where
// the emulator can find and poison it. `alignas` goes before IGM_SHARED.
#define IGM_SHARED static thread_local
#define IGM_DEVICE inline
#define IGM_BLOCKS(threads, per_multiprocessor)
#define IGM_UNROLL
#define IGM_NO_UNROLL
#define IGM_ROLLED

namespace igm {

constexpr int kWarp = 32;

namespace emulation {

struct State {
    int thread;
    int threads;
    long long block;
    long long shared_bytes;
    unsigned char* shared;
};
extern State state;

// Where a kernel called something: as a default argument, of the caller.
struct Site {
    const char* file;
    int line;
    static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
        return {file, line};
    }
};

// Ends the launch with this error.
[[noreturn]] void fail(const char* what, Site site);
inline void expect(bool condition, const char* what, Site site) {
    if (!condition) {
        fail(what, site);
    }
}
inline bool is_multiple(const void* address, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(address) % bytes == 0;
}

// The threads of the block meet; the result is true if one of them brought true.
bool meet_block(const char* operation, bool condition, Site site);

// The lanes of the warp meet, each with a record of its own. The last one to come calls `complete`, which may read and
// write the records of all (absent lanes of a narrower last warp are null); then all go on.
using Complete = void (*)(void* const (&records)[kWarp]);
void meet_warp(const char* operation, void* record, Complete complete, Site site);

template <class T>
struct Shuffle {
    T value;
    int source;
    T result;

    static void complete(void* const (&records)[kWarp]) {
        for (void* record : records) {
            if (record != nullptr) {
                Shuffle& lane = *static_cast<Shuffle*>(record);
                const Shuffle* source = static_cast<const Shuffle*>(records[lane.source]);
                if (source != nullptr) {
                    lane.result = source->value;
                } else {
                    __builtin_memset(&lane.result, 0xff, sizeof(T));
                }
            }
        }
    }
};

template <class T>
T shuffled(const char* operation, T value, int source, Site site) {
    static_assert(std::is_arithmetic<T>::value && sizeof(T) >= 4, "what __shfl_sync takes");
    Shuffle<T> lane{value, source & (kWarp - 1), value};
    meet_warp(operation, &lane, Shuffle<T>::complete, site);
    return lane.result;
}

}  // namespace emulation

inline int thread_index() { return emulation::state.thread; }
inline int block_size() { return emulation::state.threads; }
inline long long block_index() { return emulation::state.block; }
inline void barrier(emulation::Site site = emulation::Site::here()) { emulation::meet_block("barrier", false, site); }
inline bool any_thread(bool condition, emulation::Site site = emulation::Site::here()) {
    return emulation::meet_block("any_thread", condition, site);
}

inline int lane_index() { return thread_index() % kWarp; }
inline int warp_index() { return thread_index() / kWarp; }
inline int opaque(int value) { return value; }
inline void warp_barrier(emulation::Site site = emulation::Site::here()) {
    emulation::meet_warp("warp_barrier", &site, [](void* const(&)[kWarp]) {}, site);
}
template <class T>
T shuffle_xor(T value, int mask, emulation::Site site = emulation::Site::here()) {
    return emulation::shuffled("shuffle_xor", value, lane_index() ^ mask, site);
}
template <class T>
T shuffle(T value, int source_lane, emulation::Site site = emulation::Site::here()) {
    return emulation::shuffled("shuffle", value, source_lane, site);
}
inline bool any_lane(bool condition, emulation::Site site = emulation::Site::here()) {
    emulation::meet_warp(
        "any_lane", &condition,
        [](void* const(&records)[kWarp]) {
            bool any = false;
            for (void* record : records) {
                any = any || (record != nullptr && *static_cast<bool*>(record));
            }
            for (void* record : records) {
                if (record != nullptr) {
                    *static_cast<bool*>(record) = any;
                }
            }
        },
        site);
    return condition;
}

inline unsigned char* dynamic_shared() { return emulation::state.shared; }

struct alignas(16) Vector128 {
    uint32_t words[4];
};
inline Vector128 load_128(const void* address, emulation::Site site = emulation::Site::here()) {
    emulation::expect(emulation::is_multiple(address, 16), "load_128: an address that is no multiple of 16", site);
    return *static_cast<const Vector128*>(address);
}
inline void store_128(void* address, const Vector128& value, emulation::Site site = emulation::Site::here()) {
    emulation::expect(emulation::is_multiple(address, 16), "store_128: an address that is no multiple of 16", site);
    *static_cast<Vector128*>(address) = value;
}

}  // namespace igm
