#pragma once

// A function that must be compiled with the instruction set of whoever calls it (see isa.hpp) has to be inlined there.
#define IGM_INLINE inline __attribute__((always_inline))
