// Element formats ExMy and the rounding of a number to them: to nearest even, stochastically, or toward zero.
//
// The rule: with e = max(floor(log2 |x|), 1 - bias) the representable numbers
// around x lie step = 2^(e - y) apart. Everything is derived from the bits of x; log2 is never called.
// Sources: OCP 8-bit Floating Point Specification 1.0; OCP Microscaling Formats 1.0; IEEE 754-2019.
#pragma once

#include "numerics/macros.h"

namespace lsfast {

// What the top of the code space means.
enum class Special : int32_t {
  kFinite = 0,   // every code is a number (E2M1, E3M2, E2M3, any ExMy with x <= 4)
  kNanOnly = 1,  // the all-ones code is NaN, there is no infinity (E4M3 "fn")
  kIeee = 2,     // the top exponent holds infinity and NaN (E5M2, bfloat16, float16, any ExMy with x >= 5)
};

enum class Rounding : int32_t { kNearest = 0, kStochastic = 1, kTowardZero = 2 };

// What becomes of a number that rounds beyond the largest of the format.
enum class Overflow : int32_t { kSaturate = 0, kInfinity = 1, kNan = 2 };

struct ElementFormat {
  int32_t exponent_bits;
  int32_t mantissa_bits;
  int32_t min_exponent;  // of the smallest normal: 1 - bias
  int32_t max_exponent;  // of the largest
  Special special;
  float largest;
};

LSFAST_HD constexpr int32_t element_bias(int exponent_bits) { return (1 << (exponent_bits - 1)) - 1; }

// 2 <= exponent_bits <= 8 and 0 <= mantissa_bits <= 23, so that every element value is a float32.
LSFAST_HD ElementFormat make_element_format(int exponent_bits, int mantissa_bits, Special special) {
  ElementFormat format;
  format.exponent_bits = exponent_bits;
  format.mantissa_bits = mantissa_bits;
  format.special = special;
  format.min_exponent = 1 - element_bias(exponent_bits);
  const int top_field = (1 << exponent_bits) - (special == Special::kIeee ? 2 : 1);
  format.max_exponent = top_field - element_bias(exponent_bits);
  // All mantissa bits set, but for kNanOnly, where that code is NaN and the one below it is the largest.
  const uint32_t ones = (1u << mantissa_bits) - 1u - (special == Special::kNanOnly ? 1u : 0u);
  format.largest =
      bit_cast<float>((static_cast<uint32_t>(format.max_exponent + 127) << 23) | (ones << (23 - mantissa_bits)));
  return format;
}

// The two neighbours of a magnitude among the (unbounded) numbers of a format, and where it lies between them.
template <class F>
struct Bracket {
  F below;
  F above;
  uint32_t fraction;  // floor((magnitude - below) / (above - below) * 2^32)
};

// Does the carrier have the exponent range of the format? Then its own gradual underflow is the format's, and a number
// is rounded by cutting the bits of its mantissa; else by adding a number whose last place is the step.
template <class F>
LSFAST_HD bool shares_exponent_range(const ElementFormat& format) {
  return sizeof(F) == sizeof(float) && format.exponent_bits == 8;
}

// Nearest even for formats of less range than the carrier: in a + c the sum has its last place at the step.
template <class F>
LSFAST_HD F nearest_by_addition(F magnitude, const ElementFormat& format, F* step) {
  using Layout = FloatLayout<F>;
  using Bits = typename Layout::Bits;
  const Bits exponent = bit_cast<Bits>(magnitude) & Layout::kInfinity;
  const Bits floor = static_cast<Bits>(format.min_exponent + Layout::kBias) << Layout::kMantissaBits;
  const Bits binade = exponent > floor ? exponent : floor;
  const int up = Layout::kMantissaBits - format.mantissa_bits;
  const F addend = bit_cast<F>(static_cast<Bits>(binade + (static_cast<Bits>(up) << Layout::kMantissaBits)));
  *step = bit_cast<F>(static_cast<Bits>(binade - (static_cast<Bits>(format.mantissa_bits) << Layout::kMantissaBits)));
  return (magnitude + addend) - addend;
}

LSFAST_HD uint32_t dropped_bits_mask(const ElementFormat& format) { return (1u << (23 - format.mantissa_bits)) - 1u; }

template <class F>
LSFAST_HD Bracket<F> bracket_magnitude(F magnitude, const ElementFormat& format) {
  Bracket<F> bracket;
  if (shares_exponent_range<F>(format)) {
    const uint32_t mask = dropped_bits_mask(format);
    const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(magnitude));
    const uint32_t below = bits & ~mask;
    bracket.below = static_cast<F>(bit_cast<float>(below));
    bracket.above = static_cast<F>(bit_cast<float>(below + mask + 1u));
    const uint32_t unscaled = bits & mask;
    bracket.fraction = format.mantissa_bits == 23 ? 0u : unscaled << (9 + format.mantissa_bits);
    return bracket;
  }
  F step;
  const F nearest = nearest_by_addition(magnitude, format, &step);
  bracket.below = nearest > magnitude ? nearest - step : nearest;
  bracket.above = bracket.below + step;
  // Every operation is exact: a difference of near numbers, a product with a power of two, and its 32 leading bits in
  // two halves, since not every processor converts to unsigned integers.
  using Layout = FloatLayout<F>;
  using Bits = typename Layout::Bits;
  const Bits twice_bias = static_cast<Bits>(2 * Layout::kBias) << Layout::kMantissaBits;
  const F inverse_step = bit_cast<F>(static_cast<Bits>(twice_bias - bit_cast<Bits>(step)));
  const F scaled = (magnitude - bracket.below) * inverse_step * static_cast<F>(65536.0);
  const int32_t high = static_cast<int32_t>(scaled);
  const int32_t low = static_cast<int32_t>((scaled - static_cast<F>(high)) * static_cast<F>(65536.0));
  bracket.fraction = (static_cast<uint32_t>(high) << 16) | static_cast<uint32_t>(low);
  return bracket;
}

// magnitude >= 0 and at most 2^(max_exponent + 1). `word` is used by stochastic rounding only: up if and only if
// floor(f 2^b) + (word >> (32 - b)) >= 2^b, with b = random_bits.
template <class F>
LSFAST_HD F round_magnitude(F magnitude, const ElementFormat& format, Rounding rounding, uint32_t word,
                            int random_bits) {
  if (rounding == Rounding::kNearest) {
    if (shares_exponent_range<F>(format)) {
      const uint32_t mask = dropped_bits_mask(format);
      const uint32_t bits = bit_cast<uint32_t>(static_cast<float>(magnitude));
      const uint32_t odd = mask == 0u ? 0u : (bits >> (23 - format.mantissa_bits)) & 1u;
      const uint32_t rounded = (bits + (mask >> 1) + odd) & ~mask;
      return static_cast<F>(bit_cast<float>(rounded));
    }
    F step;
    return nearest_by_addition(magnitude, format, &step);
  }
  const Bracket<F> bracket = bracket_magnitude(magnitude, format);
  if (rounding == Rounding::kTowardZero) return bracket.below;
  // floor(f 2^b) + w >= 2^b, asked without a carry: w > (2^b - 1) - floor(f 2^b).
  const int shift = 32 - random_bits;
  const uint32_t room = (0xffffffffu >> shift) - (bracket.fraction >> shift);
  return (word >> shift) > room ? bracket.above : bracket.below;
}

// x rounded to the format, with its sign; NaN stays NaN.
template <class F>
LSFAST_HD F round_to_element(F x, const ElementFormat& format, Rounding rounding, Overflow overflow, uint32_t word,
                             int random_bits) {
  using Layout = FloatLayout<F>;
  using Bits = typename Layout::Bits;
  const Bits bits = bit_cast<Bits>(x);
  const Bits magnitude_bits = bits & Layout::kMagnitudeMask;
  const F magnitude = bit_cast<F>(magnitude_bits);
  const F largest = static_cast<F>(format.largest);
  // Beyond 2^(max_exponent + 1) every number overflows alike; the cap keeps the arithmetic below in range.
  const Bits cap = static_cast<Bits>(format.max_exponent + 1 + Layout::kBias) << Layout::kMantissaBits;
  const F capped = magnitude_bits > cap ? bit_cast<F>(cap) : magnitude;
  F rounded = round_magnitude(capped, format, rounding, word, random_bits);
  if (overflow == Overflow::kSaturate) {
    rounded = rounded > largest ? largest : rounded;
  } else {
    const F beyond = overflow == Overflow::kInfinity ? bit_cast<F>(Layout::kInfinity)
                                                     : bit_cast<F>(static_cast<Bits>(Layout::kInfinity | 1));
    const bool infinite = magnitude_bits == Layout::kInfinity;
    // Truncation never rounds a finite number to infinity (IEEE 754-2019, 7.4).
    const F finite = rounding == Rounding::kTowardZero && !infinite ? largest : beyond;
    rounded = rounded > largest || infinite ? finite : rounded;
  }
  const bool is_nan = magnitude_bits > Layout::kInfinity;
  const Bits result = is_nan ? magnitude_bits : bit_cast<Bits>(rounded);
  return bit_cast<F>(static_cast<Bits>(result | (bits & ~Layout::kMagnitudeMask)));
}

// The same for nearest, saturating rounding of a number that is not NaN, in fewer operations: the largest is on the
// grid, so it may cap the number before it is rounded.
template <class F>
LSFAST_HD F round_number_nearest(F x, const ElementFormat& format) {
  using Layout = FloatLayout<F>;
  using Bits = typename Layout::Bits;
  const Bits bits = bit_cast<Bits>(x);
  const F magnitude = bit_cast<F>(static_cast<Bits>(bits & Layout::kMagnitudeMask));
  const F largest = static_cast<F>(format.largest);
  const F capped = magnitude < largest ? magnitude : largest;
  const F rounded = round_magnitude(capped, format, Rounding::kNearest, 0u, 32);
  return bit_cast<F>(static_cast<Bits>(bit_cast<Bits>(rounded) | (bits & ~Layout::kMagnitudeMask)));
}

// The code of a number that is on the grid of the format: sign, exponent field, mantissa, from the top.
LSFAST_HD uint32_t encode_element(float value, const ElementFormat& format) {
  const int width = format.exponent_bits + format.mantissa_bits;
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 31) << width;
  const uint32_t top_exponent = ((1u << format.exponent_bits) - 1u) << format.mantissa_bits;
  if (magnitude > 0x7f800000u) {
    const uint32_t quiet = format.mantissa_bits > 0 ? 1u << (format.mantissa_bits - 1) : 0u;
    if (format.special == Special::kIeee) return sign | top_exponent | quiet;
    if (format.special == Special::kNanOnly) return sign | ((1u << width) - 1u);
    return encode_element(format.largest, format);
  }
  if (magnitude == 0x7f800000u && format.special == Special::kIeee) return sign | top_exponent;
  const float largest = format.largest;
  const float number = bit_cast<float>(magnitude) > largest ? largest : bit_cast<float>(magnitude);
  const uint32_t number_bits = bit_cast<uint32_t>(number);
  const int exponent = static_cast<int>(number_bits >> 23) - 127;
  if (format.exponent_bits == 8) return sign | (number_bits >> (23 - format.mantissa_bits));
  if (exponent < format.min_exponent) {
    const float steps = number * power_of_two<float>(format.mantissa_bits - format.min_exponent);
    return sign | static_cast<uint32_t>(steps);
  }
  const uint32_t field = static_cast<uint32_t>(exponent - format.min_exponent + 1);
  return sign | (field << format.mantissa_bits) | ((number_bits & 0x7fffffu) >> (23 - format.mantissa_bits));
}

LSFAST_HD float decode_element(uint32_t code, const ElementFormat& format) {
  const int width = format.exponent_bits + format.mantissa_bits;
  const uint32_t sign = ((code >> width) & 1u) << 31;
  const uint32_t field = (code >> format.mantissa_bits) & ((1u << format.exponent_bits) - 1u);
  const uint32_t mantissa = code & ((1u << format.mantissa_bits) - 1u);
  const bool top = field == (1u << format.exponent_bits) - 1u;
  const uint32_t ones = (1u << format.mantissa_bits) - 1u;
  if (format.special == Special::kIeee && top) {
    return bit_cast<float>(sign | 0x7f800000u | (mantissa != 0u ? 0x400000u : 0u));
  }
  if (format.special == Special::kNanOnly && top && mantissa == ones) return bit_cast<float>(sign | 0x7fc00000u);
  if (format.exponent_bits == 8)
    return bit_cast<float>(sign | ((code & ((1u << width) - 1u)) << (23 - format.mantissa_bits)));
  float magnitude;
  if (field == 0u) {
    magnitude = static_cast<float>(mantissa) * power_of_two<float>(format.min_exponent - format.mantissa_bits);
  } else {
    const uint32_t exponent = field + static_cast<uint32_t>(format.min_exponent + 126);
    magnitude = bit_cast<float>((exponent << 23) | (mantissa << (23 - format.mantissa_bits)));
  }
  return bit_cast<float>(bit_cast<uint32_t>(magnitude) | sign);
}

LSFAST_HD ElementFormat e4m3_format() { return make_element_format(4, 3, Special::kNanOnly); }
LSFAST_HD ElementFormat e5m2_format() { return make_element_format(5, 2, Special::kIeee); }
LSFAST_HD ElementFormat e2m1_format() { return make_element_format(2, 1, Special::kFinite); }

}  // namespace lsfast
