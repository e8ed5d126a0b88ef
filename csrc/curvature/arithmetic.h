// The element types of the curvature room (float32, float64, bfloat16), the type each is computed in, and the
// conversions between the two: bfloat16 is widened to float32 exactly and results are rounded once.
#pragma once

#include <type_traits>

#include "platform/scalar_type.h"

namespace lsfast::curvature {

template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, BFloat16>, float, T>;

template <class T>
LSFAST_HD Arithmetic<T> widen(T x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return to_float(x);
  } else {
    return x;
  }
}

template <class T>
LSFAST_HD T narrow(Arithmetic<T> x) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    return from_float<BFloat16>(x);
  } else {
    return x;
  }
}

}  // namespace lsfast::curvature

// Runs `...` with `scalar_t` bound to the C++ type of `kind`, one of those of this room.
#define LSFAST_DISPATCH_CURVATURE(kind, ...)                \
  switch (kind) {                                           \
    LSFAST_CASE(kFloat64, double, __VA_ARGS__)              \
    LSFAST_CASE(kBFloat16, ::lsfast::BFloat16, __VA_ARGS__) \
    default: {                                              \
      using scalar_t = float;                               \
      __VA_ARGS__;                                          \
      break;                                                \
    }                                                       \
  }
