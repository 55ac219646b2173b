#pragma once

// csrc/common/tensor_core.cuh on a CPU: the fragment layouts of the PTX ISA (written there), exact products, sums in
// float64 that are rounded once. Asynchronous copies land when their thread waits for them and not before.

#include "common/device.cuh"

namespace igm {

struct Tf32 {
    unsigned bits;
};

namespace emulation {

struct Product {
    float* d;
    const unsigned* a;
    const unsigned* b;
};
void complete_bfloat16(void* const (&products)[kWarp]);
void complete_float16(void* const (&products)[kWarp]);
void complete_tf32(void* const (&products)[kWarp]);

struct MatrixRows {
    unsigned* r;
    const void* row;
    Site site;
};
void complete_load_transposed(void* const (&rows)[kWarp]);

// Of compute capability 8.0, by all 32 lanes.
void expect_matrix_unit(const char* operation, Site site);

void start_copy(void* shared, const void* global, int bytes, bool present, Site site);
void commit_copies();
void wait_copies(int pending);

inline void multiply(const char* operation, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                     Complete complete, Site site) {
    expect_matrix_unit(operation, site);
    Product product{d, a, b};
    meet_warp(operation, &product, complete, site);
}

}  // namespace emulation

inline void mma(BFloat16, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                emulation::Site site = emulation::Site::here()) {
    emulation::multiply("mma of BFloat16", d, a, b, emulation::complete_bfloat16, site);
}
inline void mma(Float16, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                emulation::Site site = emulation::Site::here()) {
    emulation::multiply("mma of Float16", d, a, b, emulation::complete_float16, site);
}
inline void mma(Tf32, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                emulation::Site site = emulation::Site::here()) {
    emulation::multiply("mma of Tf32", d, a, b, emulation::complete_tf32, site);
}
inline void mma_from_zero(Tf32, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                          emulation::Site site = emulation::Site::here()) {
    d[0] = d[1] = d[2] = d[3] = 0.0f;
    mma(Tf32{}, d, a, b, site);
}

// Round to nearest, ties away from zero, to 10 bits of mantissa.
inline Tf32 to_tf32(float value, emulation::Site site = emulation::Site::here()) {
    emulation::expect_matrix_unit("to_tf32", site);
    const unsigned bits = bit_cast<unsigned>(value);
    if (value != value) {
        return {0x7fffe000u};
    }
    return {(bits & 0x7f800000u) == 0x7f800000u ? bits : (bits + 0x1000u) & 0xffffe000u};
}

inline void split_tf32(float value, unsigned& big, unsigned& small, emulation::Site site = emulation::Site::here()) {
    big = to_tf32(value, site).bits;
    small = to_tf32(value - bit_cast<float>(big), site).bits;
}

inline void load_matrices_transposed(unsigned (&r)[4], const void* shared_row,
                                     emulation::Site site = emulation::Site::here()) {
    emulation::expect_matrix_unit("load_matrices_transposed", site);
    emulation::MatrixRows rows{r, shared_row, site};
    emulation::meet_warp("load_matrices_transposed", &rows, emulation::complete_load_transposed, site);
}

inline void copy_async_16(void* shared, const void* global, bool present,
                          emulation::Site site = emulation::Site::here()) {
    emulation::start_copy(shared, global, 16, present, site);
}
inline void copy_async_4(void* shared, const void* global, bool present,
                         emulation::Site site = emulation::Site::here()) {
    emulation::start_copy(shared, global, 4, present, site);
}
inline void copy_commit() { emulation::commit_copies(); }
template <int kPending>
inline void copy_wait() {
    emulation::wait_copies(kPending);
}

}  // namespace igm
