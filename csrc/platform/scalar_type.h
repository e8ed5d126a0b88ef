// The element types a kernel's tensors may have, and the one switch from a run-time type to a C++ type.
#pragma once

#include "numerics/half.h"

namespace lsfast {

enum class ScalarKind : int32_t { kFloat32 = 0, kFloat64 = 1, kBFloat16 = 2, kFloat16 = 3 };

}  // namespace lsfast

// Runs `...` with `scalar_t` bound to the C++ type of `kind`.
#define LSFAST_CASE(KIND, TYPE, ...) \
  case ::lsfast::ScalarKind::KIND: { \
    using scalar_t = TYPE;           \
    __VA_ARGS__;                     \
    break;                           \
  }

#define LSFAST_DISPATCH(kind, ...)                          \
  switch (kind) {                                           \
    LSFAST_CASE(kFloat32, float, __VA_ARGS__)               \
    LSFAST_CASE(kFloat64, double, __VA_ARGS__)              \
    LSFAST_CASE(kBFloat16, ::lsfast::BFloat16, __VA_ARGS__) \
    LSFAST_CASE(kFloat16, ::lsfast::Float16, __VA_ARGS__)   \
  }

#define LSFAST_DISPATCH_REAL(kind, ...)        \
  switch (kind) {                              \
    LSFAST_CASE(kFloat64, double, __VA_ARGS__) \
    default: {                                 \
      using scalar_t = float;                  \
      __VA_ARGS__;                             \
      break;                                   \
    }                                          \
  }
