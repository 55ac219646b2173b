#pragma once

// Matrix units, matrix loads and asynchronous copies: one thin function per PTX instruction. This is the body for nvcc
// and NVRTC; tests/emulation/common has the one that follows the fragment layouts of the PTX ISA on a CPU.
//
// A fragment is what one lane holds. With g = lane / 4 and t = lane % 4 ("PTX ISA, Matrix fragments for mma"):
//   D, C (16×8, float)       d[0], d[1] = (g, 2t), (g, 2t+1);   d[2], d[3] = (g+8, 2t), (g+8, 2t+1)
//   A (16×16, 16 bits each)  a[0] = (g, 2t..2t+1), a[1] = (g+8, 2t..), a[2] = (g, 2t+8..), a[3] = (g+8, 2t+8..)
//   B (16×8, 16 bits each)   b[0] = (2t..2t+1, g), b[1] = (2t+8.., g)
//   A (16×8, tf32)           a[0] = (g, t), a[1] = (g+8, t), a[2] = (g, t+4), a[3] = (g+8, t+4)
//   B (8×8, tf32)            b[0] = (t, g), b[1] = (t+4, g)
// The lower index of a pair lies in the lower half of the word.
//
// All need compute capability 8.0; launch plans choose kernels without them below (Turing), where these trap.

#include "common/device.cuh"

namespace igm {

#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 800
#define IGM_TENSOR_CORE(...) __VA_ARGS__
#else
#define IGM_TENSOR_CORE(...) __trap()
#endif

// D += A B; every lane of the warp takes part.
IGM_DEVICE void mma(BFloat16, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    IGM_TENSOR_CORE(
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};" : "+f"(d[0]),
            "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

IGM_DEVICE void mma(Float16, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    IGM_TENSOR_CORE(
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};" : "+f"(d[0]),
            "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

// float32 with 10 bits of mantissa, as the matrix unit reads it; the lower 13 bits are zero.
struct Tf32 {
    unsigned bits;
};

IGM_DEVICE Tf32 to_tf32(float value) {
    Tf32 result{0};
    IGM_TENSOR_CORE(asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(result.bits) : "f"(value)));
    return result;
}

IGM_DEVICE void mma(Tf32, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    IGM_TENSOR_CORE(
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%0,%1,%2,%3};" : "+f"(d[0]),
            "+f"(d[1]), "+f"(d[2]), "+f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1])));
}

// big + small = value up to 2⁻²² of it: value rounded, and the rounded rest.
IGM_DEVICE void split_tf32(float value, unsigned& big, unsigned& small) {
    IGM_TENSOR_CORE(
        asm("{\n"
            ".reg .f32 rest;\n"
            "cvt.rna.tf32.f32 %0, %2;\n"
            "sub.rn.f32 rest, %2, %0;\n"
            "cvt.rna.tf32.f32 %1, rest;\n"
            "}" : "=&r"(big),
            "=r"(small) : "f"(value)));
}

// D = A B.
IGM_DEVICE void mma_from_zero(Tf32, float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
    IGM_TENSOR_CORE(
        asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
            "{%10,%10,%10,%10};" : "=f"(d[0]),
            "=f"(d[1]), "=f"(d[2]), "=f"(d[3]) : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]),
            "f"(0.0f)));
}

// Four 8×8 matrices of 16-bit elements from shared memory, each transposed: lane l gives the 16-byte-aligned address of
// row l % 8 of matrix l / 8 and gets, of matrix i, the elements (2t, g) and (2t+1, g) in r[i].
IGM_DEVICE void load_matrices_transposed(unsigned (&r)[4], const void* shared_row) {
    IGM_TENSOR_CORE(asm volatile(
        "ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];" : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]),
        "=r"(r[3]) : "r"(static_cast<unsigned>(__cvta_generic_to_shared(shared_row))) : "memory"));
}

// Starts a copy of 16 bytes from global to shared memory, both addresses multiples of 16; with `present` false it
// writes zeros and reads nothing. It has landed after copy_wait() of its group and a barrier.
IGM_DEVICE void copy_async_16(void* shared, const void* global, bool present) {
    IGM_TENSOR_CORE(asm volatile(
        "cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
        "l"(global), "r"(present ? 16 : 0) : "memory"));
}

// The same for 4 bytes.
IGM_DEVICE void copy_async_4(void* shared, const void* global, bool present) {
    IGM_TENSOR_CORE(asm volatile(
        "cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(static_cast<unsigned>(__cvta_generic_to_shared(shared))),
        "l"(global), "r"(present ? 4 : 0) : "memory"));
}

// Closes the group of copies started since the last call.
IGM_DEVICE void copy_commit() { IGM_TENSOR_CORE(asm volatile("cp.async.commit_group;" :: : "memory")); }

// Waits until at most kPending of this thread's groups are still under way.
template <int kPending>
IGM_DEVICE void copy_wait() {
    IGM_TENSOR_CORE(asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory"));
}

}  // namespace igm
