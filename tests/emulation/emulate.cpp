// Executes launches on a CPU: blocks one after another in random order, the threads of a block as fibers that take
// turns at random. What kernels see of it: common/device.cuh and common/tensor_core.cuh in this folder.

#include <link.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

#include "common/instances.cuh"
#include "common/tensor_core.cuh"

#if defined(__x86_64__)
// Saves the registers that a call preserves and the stack pointer, and takes those of another stack. swapcontext() does
// the same and a system call for the signal mask, which takes ten times as long.
extern "C" void igm_emulation_switch(void** save, void* load);
__asm__(
    ".text\n"
    ".hidden igm_emulation_switch\n"
    ".globl igm_emulation_switch\n"
    ".type igm_emulation_switch, @function\n"
    "igm_emulation_switch:\n"
    "    pushq %rbp\n    pushq %rbx\n    pushq %r12\n    pushq %r13\n    pushq %r14\n    pushq %r15\n"
    "    movq %rsp, (%rdi)\n"
    "    movq %rsi, %rsp\n"
    "    popq %r15\n    popq %r14\n    popq %r13\n    popq %r12\n    popq %rbx\n    popq %rbp\n"
    "    ret\n"
    ".size igm_emulation_switch, .-igm_emulation_switch\n");
#else
#include <ucontext.h>
#endif

namespace igm {

std::map<std::string, EmulatedKernel>& kernel_instances() {
    static std::map<std::string, EmulatedKernel> instances;
    return instances;
}

namespace emulation {

State state{};

namespace {

constexpr int kMaxThreads = 1024;
constexpr int kMaxWarps = kMaxThreads / kWarp;
constexpr size_t kStackBytes = 256 * 1024;  // reserved; a kernel touches a few pages of it
constexpr size_t kGuardBytes = 4096;
constexpr unsigned char kPoison = 0xff;

// ---- contexts
// --------------------------------------------------------------------------------------------------------

#if defined(__x86_64__)
struct Context {
    void* stack_pointer;

    void start(char* stack, size_t bytes, void (*entry)()) {
        void** top = reinterpret_cast<void**>(stack + bytes);
        *--top = nullptr;  // where `entry` would return to; leaves the alignment that a called function finds
        *--top = reinterpret_cast<void*>(entry);
        top -= 6;  // the preserved registers
        std::fill(top, top + 6, nullptr);
        stack_pointer = top;
    }
    void switch_to(const Context& other) { igm_emulation_switch(&stack_pointer, other.stack_pointer); }
};
#else
struct Context {
    ucontext_t context;

    void start(char* stack, size_t bytes, void (*entry)()) {
        getcontext(&context);
        context.uc_stack.ss_sp = stack;
        context.uc_stack.ss_size = bytes;
        context.uc_link = nullptr;
        makecontext(&context, entry, 0);
    }
    void switch_to(const Context& other) { swapcontext(&context, &other.context); }
};
#endif

// AddressSanitizer has to know which stack is in use.
void announce_switch([[maybe_unused]] const void* stack, [[maybe_unused]] size_t bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(nullptr, stack, bytes);
#endif
}
void announce_arrival([[maybe_unused]] const void** from, [[maybe_unused]] size_t* bytes) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, from, bytes);
#endif
}

// ---- a block
// ---------------------------------------------------------------------------------------------------------

struct Copy {
    void* target;
    int bytes;
    int group;
    unsigned char data[16];
};

struct Fiber {
    Context context;
    const char* operation;  // where it waits; null: it runs, could run, or has ended
    Site site;
    bool finished;
    int groups;                // of copies, closed so far
    std::vector<Copy> copies;  // under way, in order
};

struct Warp {
    uint32_t runnable;
    int arrived;
    void* records[kWarp];
};

Context scheduler;
const void* scheduler_stack = nullptr;
size_t scheduler_stack_bytes = 0;
std::vector<Fiber> fibers(kMaxThreads);
Warp warps[kMaxWarps];
uint32_t runnable_warps = 0;
int finished = 0;
int arrived_at_barrier = 0;
bool brought = false, agreed = false;  // any_thread: so far, of the last one
int capability = 0;
uint64_t random_state = 1;
uint32_t stay = 0;  // of 2^32: how probable it is that the same warp goes on
const EmulatedKernel* kernel = nullptr;
const void* kernel_params = nullptr;
std::string error;
unsigned char* static_shared = nullptr;
size_t static_shared_bytes = 0;

uint32_t draw() {  // xorshift64*
    random_state ^= random_state >> 12;
    random_state ^= random_state << 25;
    random_state ^= random_state >> 27;
    return static_cast<uint32_t>((random_state * 0x2545f4914f6cdd1dull) >> 32);
}

int draw_bit(uint32_t mask) {
    const unsigned turn = draw() % 32;
    const uint32_t turned = turn == 0 ? mask : (mask >> turn) | (mask << (32 - turn));
    return static_cast<int>((static_cast<unsigned>(__builtin_ctz(turned)) + turn) % 32);
}

// All stacks lie in one reserved region, the lowest page of each closed, so that an overflow is a crash and no riddle.
char* stack_of(int thread) {
    static char* const region = [] {
        void* memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) {
            std::perror("emulation: no room for the stacks");
            std::abort();
        }
        for (int i = 0; i < kMaxThreads; ++i) {
            mprotect(static_cast<char*>(memory) + i * kStackBytes, 4096, PROT_NONE);
        }
        return static_cast<char*>(memory);
    }();
    return region + thread * kStackBytes;
}

// Stacks that start at different cache sets.
size_t stack_length(int thread) { return kStackBytes - static_cast<size_t>(thread) * 192 % 8192 / 64 * 64; }

void add_runnable(int thread) {
    warps[thread / kWarp].runnable |= 1u << thread % kWarp;
    runnable_warps |= 1u << thread / kWarp;
}

bool same(Site a, Site b) { return a.line == b.line && (a.file == b.file || std::strcmp(a.file, b.file) == 0); }

std::string describe(Site site) {
    const char* name = std::strrchr(site.file, '/');
    return std::string(name == nullptr ? site.file : name + 1) + ":" + std::to_string(site.line);
}

[[noreturn]] void leave(const std::string& what) {
    error = what;
    announce_switch(scheduler_stack, scheduler_stack_bytes);
    fibers[static_cast<size_t>(state.thread)].context.switch_to(scheduler);
    __builtin_unreachable();
}

std::string where() {
    return " (block " + std::to_string(state.block) + ", thread " + std::to_string(state.thread) + ")";
}

[[noreturn]] void report_standstill() {
    std::map<std::string, int> waiting;
    for (int thread = 0; thread < state.threads; ++thread) {
        const Fiber& fiber = fibers[static_cast<size_t>(thread)];
        if (!fiber.finished) {
            ++waiting[std::string(fiber.operation) + " at " + describe(fiber.site)];
        }
    }
    std::string what = "block " + std::to_string(state.block) + " stands still: ";
    for (const auto& [place, count] : waiting) {
        what += std::to_string(count) + " threads wait in " + place + ", ";
    }
    leave(what + std::to_string(finished) + " of " + std::to_string(state.threads) + " have ended");
}

int next_thread() {
    if (runnable_warps == 0) {
        report_standstill();
    }
    int warp = state.thread / kWarp;
    if (warps[warp].runnable == 0 || draw() >= stay) {
        warp = draw_bit(runnable_warps);
    }
    const int lane = draw_bit(warps[warp].runnable);
    warps[warp].runnable &= ~(1u << lane);
    if (warps[warp].runnable == 0) {
        runnable_warps &= ~(1u << warp);
    }
    return warp * kWarp + lane;
}

// The others go on; returns when it is this thread's turn again.
void pass_on() {
    Fiber& self = fibers[static_cast<size_t>(state.thread)];
    const int next = next_thread();
    state.thread = next;
    announce_switch(stack_of(next), kStackBytes);
    self.context.switch_to(fibers[static_cast<size_t>(next)].context);
    announce_arrival(nullptr, nullptr);
}

#if defined(__SANITIZE_ADDRESS__)
__attribute__((no_sanitize_address))  // its frame is never left: nothing on it may stay poisoned
#endif
void fiber_main() {
    if (scheduler_stack == nullptr) {
        announce_arrival(&scheduler_stack, &scheduler_stack_bytes);  // the first fiber comes from there
    } else {
        announce_arrival(nullptr, nullptr);
    }
    kernel->call(*kernel, kernel_params);
    Fiber& self = fibers[static_cast<size_t>(state.thread)];
    self.finished = true;
    if (++finished == state.threads) {
        leave("");
    }
    pass_on();
}

void fill_static_shared() {
    if (static_shared != nullptr) {
        std::memset(static_shared, kPoison, static_shared_bytes);
    }
}

bool is_shared(const void* address, size_t bytes) {
    const unsigned char* first = static_cast<const unsigned char*>(address);
    const auto lies_in = [&](const unsigned char* begin, size_t length) {
        return begin != nullptr && first >= begin && first + bytes <= begin + length;
    };
    return lies_in(state.shared, static_cast<size_t>(state.shared_bytes)) ||
           lies_in(static_shared, static_shared_bytes);
}

void run_block(int64_t block, uint64_t seed) {
    state.block = block;
    random_state = (seed + 1) * 0x9e3779b97f4a7c15ull ^ (static_cast<uint64_t>(block) + 1) * 0xbf58476d1ce4e5b9ull;
    random_state = random_state == 0 ? 1 : random_state;
    draw();
    // Some blocks run in step, in others a warp runs far ahead.
    constexpr uint32_t kStay[4] = {0u, 0x80000000u, 0xf0000000u, 0xfff00000u};
    stay = kStay[draw() % 4];
    finished = arrived_at_barrier = 0;
    brought = false;
    runnable_warps = 0;
    std::fill(std::begin(warps), std::end(warps), Warp{});
    if (state.shared_bytes > 0) {
        std::memset(state.shared, kPoison, static_cast<size_t>(state.shared_bytes));
    }
    fill_static_shared();
    for (int thread = 0; thread < state.threads; ++thread) {
        Fiber& fiber = fibers[static_cast<size_t>(thread)];
        fiber.context.start(stack_of(thread), stack_length(thread), fiber_main);
        fiber.operation = nullptr;
        fiber.finished = false;
        fiber.groups = 0;
        fiber.copies.clear();
        add_runnable(thread);
    }
    state.thread = static_cast<int>(draw() % static_cast<uint32_t>(state.threads));
    state.thread = next_thread();
    scheduler_stack = nullptr;
    announce_switch(stack_of(state.thread), kStackBytes);
    scheduler.switch_to(fibers[static_cast<size_t>(state.thread)].context);
    announce_arrival(nullptr, nullptr);
#if defined(__SANITIZE_ADDRESS__)
    if (!error.empty()) {  // the fibers' frames were left standing
        for (int thread = 0; thread < state.threads; ++thread) {
            __asan_unpoison_memory_region(stack_of(thread) + 4096, kStackBytes - 4096);
        }
    }
#endif
}

// All thread-local variables of this library are static shared memory.
thread_local unsigned char some_static_shared = 0;

void find_static_shared() {
    asm volatile("" ::"r"(&some_static_shared) : "memory");  // from here on the block of this thread exists
    dl_iterate_phdr(
        [](dl_phdr_info* info, size_t, void*) {
            bool ours = false;
            size_t bytes = 0;
            for (int i = 0; i < info->dlpi_phnum; ++i) {
                const ElfW(Phdr) & header = info->dlpi_phdr[i];
                const uintptr_t begin = info->dlpi_addr + header.p_vaddr;
                const uintptr_t address = reinterpret_cast<uintptr_t>(&find_static_shared);
                ours = ours || (header.p_type == PT_LOAD && address >= begin && address < begin + header.p_memsz);
                bytes = header.p_type == PT_TLS ? header.p_memsz : bytes;
            }
            if (ours) {
                static_shared = static_cast<unsigned char*>(info->dlpi_tls_data);
                static_shared_bytes = bytes;
            }
            return ours ? 1 : 0;
        },
        nullptr);
}

// The largest block of shared memory of a compute capability ("CUDA C++ Programming Guide", technical specifications).
int64_t max_shared_bytes(int compute_capability) {
    switch (compute_capability) {
        case 75:
            return 64 * 1024;
        case 80:
        case 87:
            return 163 * 1024;
        case 90:
        case 100:
        case 103:
            return 227 * 1024;
        default:
            return 99 * 1024;
    }
}

// Of exactly the planned length. Under AddressSanitizer the heap fences it; otherwise the bytes on both sides are
// looked at after every block.
struct SharedMemory {
    explicit SharedMemory(int64_t bytes) {
        state.shared_bytes = bytes;
#if defined(__SANITIZE_ADDRESS__)
        state.shared = bytes > 0 ? static_cast<unsigned char*>(std::malloc(static_cast<size_t>(bytes))) : nullptr;
#else
        memory = static_cast<unsigned char*>(std::malloc(static_cast<size_t>(bytes) + 2 * kGuardBytes));
        std::memset(memory, kPoison, static_cast<size_t>(bytes) + 2 * kGuardBytes);
        state.shared = memory + kGuardBytes;
#endif
    }
    ~SharedMemory() {
#if defined(__SANITIZE_ADDRESS__)
        std::free(state.shared);
#else
        std::free(memory);
#endif
        state.shared = nullptr;
    }
    SharedMemory(const SharedMemory&) = delete;
    SharedMemory& operator=(const SharedMemory&) = delete;

    bool fences_stand() const {
        if (memory == nullptr) {
            return true;
        }
        const unsigned char* after = state.shared + state.shared_bytes;
        const auto whole = [](unsigned char byte) { return byte == kPoison; };
        return std::all_of(memory, memory + kGuardBytes, whole) && std::all_of(after, after + kGuardBytes, whole);
    }

    unsigned char* memory = nullptr;
};

void run(const std::string& name, int64_t grid, int64_t block, int64_t shared_bytes, const void* params,
         int64_t params_bytes, int compute_capability, uint64_t seed) {
    const auto found = kernel_instances().find(name);
    if (found == kernel_instances().end()) {
        error = "no such kernel in the emulator";
        return;
    }
    kernel = &found->second;
    if (grid < 1 || grid > 2147483647 || block < 1 || block > kMaxThreads || shared_bytes < 0 ||
        shared_bytes > max_shared_bytes(compute_capability)) {
        error = "grid " + std::to_string(grid) + ", block " + std::to_string(block) + ", " +
                std::to_string(shared_bytes) + " bytes of shared memory: compute capability " +
                std::to_string(compute_capability) + " starts no such kernel";
        return;
    }
    if (params_bytes != static_cast<int64_t>(kernel->params_bytes)) {
        error = std::to_string(params_bytes) + " bytes of parameters, the kernel takes " +
                std::to_string(kernel->params_bytes);
        return;
    }
    alignas(64) unsigned char aligned_params[4096];
    std::memcpy(aligned_params, params, static_cast<size_t>(params_bytes));
    kernel_params = aligned_params;
    capability = compute_capability;
    state.threads = static_cast<int>(block);
    find_static_shared();
    SharedMemory shared(shared_bytes);
    std::vector<int64_t> blocks(static_cast<size_t>(grid));
    std::iota(blocks.begin(), blocks.end(), 0);
    std::mt19937_64 order(seed);
    std::shuffle(blocks.begin(), blocks.end(), order);
    for (int64_t index : blocks) {
        run_block(index, seed);
        if (error.empty() && !shared.fences_stand()) {
            error = "a write beyond the dynamic shared memory (block " + std::to_string(index) + ")";
        }
        if (!error.empty()) {
            return;
        }
    }
}

}  // namespace

// ---- what kernels call
// -----------------------------------------------------------------------------------------------

void fail(const char* what, Site site) { leave(what + (" at " + describe(site)) + where()); }

bool meet_block(const char* operation, bool condition, Site site) {
    Fiber& self = fibers[static_cast<size_t>(state.thread)];
    self.operation = operation;
    self.site = site;
    brought = brought || condition;
    if (++arrived_at_barrier < state.threads) {
        pass_on();
        return agreed;
    }
    for (int thread = 0; thread < state.threads; ++thread) {
        Fiber& other = fibers[static_cast<size_t>(thread)];
        if (!same(other.site, site)) {
            leave("thread " + std::to_string(thread) + " is in " + other.operation + " at " + describe(other.site) +
                  ", others in " + operation + " at " + describe(site) + where());
        }
        other.operation = nullptr;
        if (thread != state.thread) {
            add_runnable(thread);
        }
    }
    arrived_at_barrier = 0;
    agreed = brought;
    brought = false;
    return agreed;
}

void meet_warp(const char* operation, void* record, Complete complete, Site site) {
    const int first = state.thread / kWarp * kWarp, lane = state.thread % kWarp;
    const int lanes = std::min(kWarp, state.threads - first);
    Warp& warp = warps[state.thread / kWarp];
    Fiber& self = fibers[static_cast<size_t>(state.thread)];
    self.operation = operation;
    self.site = site;
    warp.records[lane] = record;
    if (++warp.arrived < lanes) {
        pass_on();
        return;
    }
    for (int other = 0; other < lanes; ++other) {
        Fiber& fiber = fibers[static_cast<size_t>(first + other)];
        if (!same(fiber.site, site)) {
            leave("lane " + std::to_string(other) + " of warp " + std::to_string(first / kWarp) + " is in " +
                  fiber.operation + " at " + describe(fiber.site) + ", others in " + operation + " at " +
                  describe(site) + where());
        }
        fiber.operation = nullptr;
        if (other != lane) {
            add_runnable(first + other);
        }
    }
    warp.arrived = 0;
    complete(warp.records);
}

void expect_matrix_unit(const char* operation, Site site) {
    if (capability < 80) {
        fail((std::string(operation) + ": needs compute capability 8.0, this launch is for " +
              std::to_string(capability))
                 .c_str(),
             site);
    }
    expect(state.threads % kWarp == 0, "a matrix operation in a block that is no whole number of warps", site);
}

namespace {

using Row = double __attribute__((vector_size(64)));  // 8 columns: most of the emulator's time goes into their sums

// D (16×8) += A (16×kDepth) B (kDepth×8); `unpack` makes a number of element i of a word.
// Not watched by the sanitizers: it sees nothing but the fragments, and takes most of their time.
template <int kDepth, class Unpack>
__attribute__((no_sanitize("address", "undefined"))) void multiply_fragments(void* const (&records)[kWarp],
                                                                             const Unpack& unpack) {
    double a[16][kDepth];
    Row b[kDepth];
    constexpr int kPerWord = kDepth == 16 ? 2 : 1;
    const auto product = [&](int lane) { return static_cast<const Product*>(records[lane]); };
    for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < kPerWord; ++i) {
            for (int word = 0; word < 4; ++word) {
                a[g + 8 * (word % 2)][kPerWord * t + i + kDepth / 2 * (word / 2)] = unpack(product(lane)->a[word], i);
            }
            for (int word = 0; word < 2; ++word) {
                b[kPerWord * t + i + kDepth / 2 * word][g] = unpack(product(lane)->b[word], i);
            }
        }
    }
    Row d[16];
    for (int row = 0; row < 16; ++row) {
        Row sum = {};
        for (int depth = 0; depth < kDepth; ++depth) {
            sum += a[row][depth] * b[depth];
        }
        d[row] = sum;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            float& sum = product(lane)->d[i];
            sum = static_cast<float>(sum + d[g + 8 * (i / 2)][2 * t + i % 2]);
        }
    }
}

unsigned short half_of(unsigned word, int i) { return static_cast<unsigned short>(word >> 16 * i); }

}  // namespace

void complete_bfloat16(void* const (&products)[kWarp]) {
    multiply_fragments<16>(
        products, [](unsigned word, int i) { return static_cast<double>(to_float(BFloat16{half_of(word, i)})); });
}

void complete_float16(void* const (&products)[kWarp]) {
    multiply_fragments<16>(
        products, [](unsigned word, int i) { return static_cast<double>(to_float(Float16{half_of(word, i)})); });
}

void complete_tf32(void* const (&products)[kWarp]) {
    multiply_fragments<8>(products, [](unsigned word, int) {  // the unit does not look at the lower 13 bits
        return static_cast<double>(bit_cast<float>(word & 0xffffe000u));
    });
}

void complete_load_transposed(void* const (&records)[kWarp]) {
    unsigned short matrices[4][8][8];
    for (int lane = 0; lane < kWarp; ++lane) {
        const MatrixRows& rows = *static_cast<const MatrixRows*>(records[lane]);
        expect(is_multiple(rows.row, 16), "load_matrices_transposed: a row that is not 16-byte aligned", rows.site);
        expect(is_shared(rows.row, 16), "load_matrices_transposed: a row outside shared memory", rows.site);
        std::memcpy(matrices[lane / 8][lane % 8], rows.row, 16);
    }
    for (int lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, t = lane % 4;
        for (int i = 0; i < 4; ++i) {
            static_cast<const MatrixRows*>(records[lane])->r[i] =
                matrices[i][2 * t][g] | static_cast<unsigned>(matrices[i][2 * t + 1][g]) << 16;
        }
    }
}

void start_copy(void* shared, const void* global, int bytes, bool present, Site site) {
    expect_matrix_unit("copy_async", site);
    expect(is_multiple(shared, static_cast<uintptr_t>(bytes)), "copy_async: a target that is not aligned", site);
    expect(is_multiple(global, static_cast<uintptr_t>(bytes)), "copy_async: a source that is not aligned", site);
    expect(is_shared(shared, static_cast<size_t>(bytes)), "copy_async: a target outside shared memory", site);
    Fiber& fiber = fibers[static_cast<size_t>(state.thread)];
    Copy copy{shared, bytes, fiber.groups, {}};
    if (present) {
        std::memcpy(copy.data, global, static_cast<size_t>(bytes));
    }
    fiber.copies.push_back(copy);
    std::memset(shared, kPoison, static_cast<size_t>(bytes));
}

void commit_copies() { ++fibers[static_cast<size_t>(state.thread)].groups; }

void wait_copies(int pending) {
    Fiber& fiber = fibers[static_cast<size_t>(state.thread)];
    size_t landed = 0;
    for (const Copy& copy : fiber.copies) {
        if (copy.group >= fiber.groups - pending) {
            break;
        }
        std::memcpy(copy.target, copy.data, static_cast<size_t>(copy.bytes));
        ++landed;
    }
    fiber.copies.erase(fiber.copies.begin(), fiber.copies.begin() + static_cast<std::ptrdiff_t>(landed));
}

}  // namespace emulation
}  // namespace igm

extern "C" {

// One name per line.
__attribute__((visibility("default"))) const char* igm_emulation_kernels() {
    static std::string names;
    names.clear();
    for (const auto& [name, kernel] : igm::kernel_instances()) {
        names += name + "\n";
    }
    return names.c_str();
}

// Null, or what went wrong; valid until the next call.
__attribute__((visibility("default"))) const char* igm_emulation_run(const char* kernel, int64_t grid, int64_t block,
                                                                     int64_t shared_bytes, const void* params,
                                                                     int64_t params_bytes, int compute_capability,
                                                                     uint64_t seed) {
    igm::emulation::error.clear();
    igm::emulation::run(kernel, grid, block, shared_bytes, params, params_bytes, compute_capability, seed);
    return igm::emulation::error.empty() ? nullptr : igm::emulation::error.c_str();
}

}  // extern "C"
