#pragma once

// Runs device code on a CPU: what csrc/common/device.cuh offers to kernels, for an ordinary C++ compiler.
//
// The threads of a block are fibers. Each runs until a barrier or its end, then the next one; when all have arrived the
// next phase starts, in another random order. So code that lacks a barrier computes something else for some seed, and
// a barrier that only part of the block reaches is reported. Built with AddressSanitizer, every access is checked.

#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

#include "common/element.hpp"

#define IGM_KERNEL void
#define IGM_SHARED static  // blocks run one after another, so the threads of one block share it and nobody else does
#define IGM_DEVICE inline
#define IGM_BLOCKS(threads, per_multiprocessor)

namespace igm {

namespace emulation {

struct Fiber {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool finished;
};

inline constexpr size_t kStackBytes = 256 * 1024;
inline std::vector<Fiber> fibers;
inline ucontext_t scheduler;
inline const void* scheduler_stack = nullptr;
inline size_t scheduler_stack_bytes = 0;
inline std::function<void()> body;
inline int thread = 0;
inline int threads = 0;
inline int64_t block = 0;
inline std::mt19937 order{0};  // seeded by the test

// AddressSanitizer has to know which stack is in use.
inline void announce_switch(void** keep, const void* stack, size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(keep, stack, bytes);
#else
    (void)keep, (void)stack, (void)bytes;
#endif
}

inline void announce_arrival(void* kept, const void** from, size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(kept, from, bytes);
#else
    (void)kept, (void)from, (void)bytes;
#endif
}

inline void to_scheduler(bool finished) {
    Fiber& fiber = fibers[thread];
    fiber.finished = finished;
    void* kept = nullptr;
    announce_switch(finished ? nullptr : &kept, scheduler_stack, scheduler_stack_bytes);
    swapcontext(&fiber.context, &scheduler);
    announce_arrival(kept, nullptr, nullptr);
}

inline void fiber_main() {
    announce_arrival(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    body();
    to_scheduler(true);
}

inline void resume(int index) {
    thread = index;
    void* kept = nullptr;
    announce_switch(&kept, fibers[index].stack.get(), kStackBytes);
    swapcontext(&scheduler, &fibers[index].context);
    announce_arrival(kept, nullptr, nullptr);
}

inline void run_block(int64_t block_number, int block_threads, std::function<void()> kernel) {
    block = block_number;
    threads = block_threads;
    body = std::move(kernel);
    fibers.resize(threads);
    std::vector<int> alive(threads);
    for (int index = 0; index < threads; ++index) {
        Fiber& fiber = fibers[index];
        if (!fiber.stack) {
            fiber.stack = std::make_unique<char[]>(kStackBytes);
        }
        getcontext(&fiber.context);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = kStackBytes;
        fiber.context.uc_link = nullptr;
        makecontext(&fiber.context, fiber_main, 0);
        alive[index] = index;
    }
    while (!alive.empty()) {
        std::shuffle(alive.begin(), alive.end(), order);
        for (int index : alive) {
            resume(index);
        }
        const size_t before = alive.size();
        alive.erase(std::remove_if(alive.begin(), alive.end(), [](int index) { return fibers[index].finished; }),
                    alive.end());
        if (!alive.empty() && alive.size() != before) {
            std::fprintf(stderr, "block %lld: %zu threads wait at a barrier, the others have ended\n",
                         static_cast<long long>(block), alive.size());
            std::abort();
        }
    }
}

}  // namespace emulation

inline int thread_index() { return emulation::thread; }
inline int block_size() { return emulation::threads; }
inline long long block_index() { return emulation::block; }
inline void barrier() { emulation::to_scheduler(false); }

struct alignas(16) Vector128 {
    uint32_t words[4];
};
inline Vector128 load_128(const void* address) { return *static_cast<const Vector128*>(address); }
inline void store_128(void* address, const Vector128& value) { *static_cast<Vector128*>(address) = value; }

}  // namespace igm
