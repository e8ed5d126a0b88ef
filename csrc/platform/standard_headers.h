// Every standard header a cpu.inl may use. Included before the target of an instruction set is set, so that no
// standard function is compiled for it: the linker keeps one copy of an inline function for the whole library.
#pragma once

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif
