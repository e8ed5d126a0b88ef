// The types a basis may be stored in beside the type of the vectors: the same, or a narrower one.
#pragma once

#include "platform/scalar_type.h"

namespace lsfast::spectrum {

// The CPU makes sums in lanes of T over kChunk elements, then adds them in float64. With eps the unit roundoff of T, at
// most 1024 / 16 = 64 additions (128 for float64) lie behind a lane, so a sum is off by at most 65 eps sum |x_i y_i|
// whatever n is, and by about 8 eps / sqrt(n) |x||y| for errors that are independent.
constexpr int64_t kChunk = 1024;

template <class T, class S>
LSFAST_HD T from_stored(S x) {
  return static_cast<T>(widen(x));
}

template <class S, class T>
LSFAST_HD S to_stored(T x) {
  return narrow<S>(static_cast<Arithmetic<S>>(x));
}

}  // namespace lsfast::spectrum

// Runs `...` with `scalar_t` the type of the vectors and `stored_t` that of the basis.
#define LSFAST_STORED(SCALAR, STORED, ...) \
  {                                        \
    using scalar_t = SCALAR;               \
    using stored_t = STORED;               \
    __VA_ARGS__;                           \
  }

#define LSFAST_DISPATCH_STORED(kind, stored_kind, ...)       \
  if (kind == ::lsfast::ScalarKind::kFloat64) {              \
    if (stored_kind == ::lsfast::ScalarKind::kFloat64)       \
      LSFAST_STORED(double, double, __VA_ARGS__)             \
    else if (stored_kind == ::lsfast::ScalarKind::kFloat32)  \
      LSFAST_STORED(double, float, __VA_ARGS__)              \
    else                                                     \
      LSFAST_STORED(double, ::lsfast::BFloat16, __VA_ARGS__) \
  } else {                                                   \
    if (stored_kind == ::lsfast::ScalarKind::kFloat32)       \
      LSFAST_STORED(float, float, __VA_ARGS__)               \
    else                                                     \
      LSFAST_STORED(float, ::lsfast::BFloat16, __VA_ARGS__)  \
  }
