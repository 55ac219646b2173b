#include "common/isa.hpp"

#include <cstdlib>
#include <string>

#include "common/error.hpp"

namespace igm {

namespace {

Isa detect() {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    const Isa best = avx512 ? Isa::kAvx512 : avx2 ? Isa::kAvx2 : Isa::kPortable;
#else
    const Isa best = Isa::kPortable;
#endif
    const char* wish = std::getenv("IGM_FAST_ISA");
    if (wish == nullptr || *wish == '\0') {
        return best;
    }
    for (Isa candidate : {Isa::kPortable, Isa::kAvx2, Isa::kAvx512}) {
        if (isa_name(candidate) == std::string(wish)) {
            return candidate < best ? candidate : best;
        }
    }
    throw Error(text("IGM_FAST_ISA=", wish, ", expected portable, avx2 or avx512. Unset it to let the CPU decide."));
}

}  // namespace

Isa isa() {
    static const Isa chosen = detect();
    return chosen;
}

const char* isa_name(Isa value) {
    switch (value) {
        case Isa::kAvx512:
            return "avx512";
        case Isa::kAvx2:
            return "avx2";
        case Isa::kPortable:
            break;
    }
    return "portable";
}

}  // namespace igm
