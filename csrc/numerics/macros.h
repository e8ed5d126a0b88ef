// How a function is shared by host and device, and how a floating-point number is read as its bits.
//
// LSFAST_HD functions are always inlined: with a plain `inline` the linker keeps one copy for every instruction set,
// and that copy may be the AVX-512 one. LSFAST_UNROLL before a short loop makes it straight code.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define LSFAST_HD __host__ __device__ __forceinline__
#define LSFAST_UNROLL _Pragma("unroll")
#else
#define LSFAST_HD inline __attribute__((always_inline))
#define LSFAST_UNROLL _Pragma("GCC unroll 16")
#endif

namespace lsfast {

template <class To, class From>
LSFAST_HD To bit_cast(From value) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast needs types of one size");
  To result;
  memcpy(&result, &value, sizeof(To));
  return result;
}

// The layout of a binary floating-point type: what the rounding of element.h needs to know of its carrier.
template <class F>
struct FloatLayout;

template <>
struct FloatLayout<float> {
  using Bits = uint32_t;
  using Signed = int32_t;
  static constexpr int kMantissaBits = 23;
  static constexpr int kBias = 127;
  static constexpr Bits kMagnitudeMask = 0x7fffffffu;
  static constexpr Bits kInfinity = 0x7f800000u;
};

template <>
struct FloatLayout<double> {
  using Bits = uint64_t;
  using Signed = int64_t;
  static constexpr int kMantissaBits = 52;
  static constexpr int kBias = 1023;
  static constexpr Bits kMagnitudeMask = 0x7fffffffffffffffull;
  static constexpr Bits kInfinity = 0x7ff0000000000000ull;
};

// 2^exponent for an exponent in the normal range of F, from its bits.
template <class F>
LSFAST_HD F power_of_two(int exponent) {
  using Layout = FloatLayout<F>;
  using Bits = typename Layout::Bits;
  return bit_cast<F>(static_cast<Bits>(static_cast<Bits>(exponent + Layout::kBias) << Layout::kMantissaBits));
}

}  // namespace lsfast
