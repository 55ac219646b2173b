#pragma once

#include <type_traits>

#include "common/inline.hpp"

namespace igm {

enum class Isa : int { kPortable = 0, kAvx2 = 1, kAvx512 = 2 };

// The best instruction set of this CPU, asked once; the environment variable IGM_FAST_ISA=portable|avx2|avx512 lowers
// it.
Isa isa();
const char* isa_name(Isa);

#if defined(__x86_64__)
#define IGM_TARGET_AVX2 __attribute__((target("avx2,fma,f16c")))
#define IGM_TARGET_AVX512 __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")))
#else
#define IGM_TARGET_AVX2
#define IGM_TARGET_AVX512
#endif

template <int kVectorBytes>
constexpr bool kHasFma = kVectorBytes >= 32;

namespace detail {
template <class Body>
IGM_TARGET_AVX2 __attribute__((noinline)) void run_avx2(const Body& body) {
    body(std::integral_constant<int, 32>{});
}
template <class Body>
IGM_TARGET_AVX512 __attribute__((noinline)) void run_avx512(const Body& body) {
    body(std::integral_constant<int, 64>{});
}
}  // namespace detail

// Runs body(bytes of a vector register, as a constant) compiled for the instruction set of this CPU. Mark the body
// `[&](auto vector_bytes) __attribute__((always_inline)) {…}`; what it calls must be IGM_INLINE, or it stays portable.
template <class Body>
void with_best_isa(const Body& body) {
    switch (isa()) {
        case Isa::kAvx512:
            return detail::run_avx512(body);
        case Isa::kAvx2:
            return detail::run_avx2(body);
        case Isa::kPortable:
            return body(std::integral_constant<int, 16>{});
    }
}

}  // namespace igm
