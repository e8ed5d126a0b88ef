// The storage types bfloat16 and float16 as plain 16-bit structs, and their exact conversions to and from float32.
// (No header of torch or CUDA is needed, and every backend gets the same bits.)
#pragma once

#include <type_traits>

#include "numerics/macros.h"

namespace lsfast {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

LSFAST_HD float to_float(float x) { return x; }
LSFAST_HD float to_float(double x) { return static_cast<float>(x); }
LSFAST_HD float to_float(BFloat16 x) { return bit_cast<float>(static_cast<uint32_t>(x.bits) << 16); }
LSFAST_HD float to_float(Float16 x) {
  const uint32_t magnitude = x.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(x.bits & 0x8000u) << 16;
  // Read the field as a float32 with bias 127: 2^112 too small; the product is exact, subnormals included.
  const float scaled = bit_cast<float>(magnitude << 13) * power_of_two<float>(112);
  const uint32_t special = 0x7f800000u | (magnitude << 13);
  const uint32_t bits = magnitude >= 0x7c00u ? special : bit_cast<uint32_t>(scaled);
  return bit_cast<float>(bits | sign);
}

template <class T>
LSFAST_HD T from_float(float x);
template <>
LSFAST_HD float from_float<float>(float x) {
  return x;
}
template <>
LSFAST_HD double from_float<double>(float x) {
  return static_cast<double>(x);
}
template <>
LSFAST_HD BFloat16 from_float<BFloat16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const uint32_t quiet = (bits >> 16) | 0x40u;
  return {static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? quiet : rounded)};
}
template <>
LSFAST_HD Float16 from_float<Float16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  // Normal results: drop 13 bits to nearest even and move the bias. Subnormal: let an addition do the rounding.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + ((magnitude >> 13) & 1u)) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000u;
  uint32_t result = magnitude < 0x38800000u ? subnormal : normal;
  result = magnitude >= 0x477ff000u ? 0x7c00u : result;
  result = magnitude > 0x7f800000u ? 0x7e00u : result;
  return {static_cast<uint16_t>(result | sign)};
}

// What a type is computed in: float for the 16-bit types, else the type itself; exact on the way in, rounded on the way
// out.
template <class T>
using Arithmetic = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
LSFAST_HD Arithmetic<T> widen(T x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return to_float(x);
  }
}

template <class T>
LSFAST_HD T narrow(Arithmetic<T> x) {
  if constexpr (std::is_same_v<T, double>) {
    return x;
  } else {
    return from_float<T>(x);
  }
}

}  // namespace lsfast
