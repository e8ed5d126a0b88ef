// Element formats ExMy and integers, and the rounding of a number to them: to nearest even, stochastically, or toward
// zero. (The one format that is a table of numbers is in normal_float.h.)
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
  // Not of exponent and mantissa: `mantissa_bits` is then the bits beside the sign, in two's complement.
  kInteger = 3,      // -127 .. 127 (INT8), -7 .. 7 (INT4)
  kFullInteger = 4,  // -128 .. 127, -8 .. 7
  kFraction = 5,     // k/64, k in -127 .. 127 (MXINT8)
  kTable = 6,        // the 16 numbers of NF4
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
  float largest_negative;  // the magnitude of the lowest number
};

LSFAST_HD constexpr bool is_integer(Special special) {
  return special == Special::kInteger || special == Special::kFullInteger || special == Special::kFraction;
}

LSFAST_HD constexpr int32_t element_bias(int exponent_bits) { return (1 << (exponent_bits - 1)) - 1; }

// 2 <= exponent_bits <= 8 and 0 <= mantissa_bits <= 23, so that every element value is a float32.
LSFAST_HD ElementFormat make_element_format(int exponent_bits, int mantissa_bits, Special special) {
  ElementFormat format;
  format.exponent_bits = exponent_bits;
  format.mantissa_bits = mantissa_bits;
  format.special = special;
  if (is_integer(special)) {
    // Numbers a step apart are the subnormals of a format whose smallest normal lies above them all.
    const int shift = special == Special::kFraction ? mantissa_bits - 1 : 0;
    format.min_exponent = mantissa_bits - shift;
    format.max_exponent = format.min_exponent - 1;
    const float step = power_of_two<float>(-shift);
    format.largest = static_cast<float>((1 << mantissa_bits) - 1) * step;
    format.largest_negative = format.largest + (special == Special::kFullInteger ? step : 0.0f);
    return format;
  }
  if (special == Special::kTable) {
    format.min_exponent = format.max_exponent = 0;
    format.largest = format.largest_negative = 1.0f;
    return format;
  }
  format.min_exponent = 1 - element_bias(exponent_bits);
  const int top_field = (1 << exponent_bits) - (special == Special::kIeee ? 2 : 1);
  format.max_exponent = top_field - element_bias(exponent_bits);
  // All mantissa bits set, but for kNanOnly, where that code is NaN and the one below it is the largest.
  const uint32_t ones = (1u << mantissa_bits) - 1u - (special == Special::kNanOnly ? 1u : 0u);
  format.largest =
      bit_cast<float>((static_cast<uint32_t>(format.max_exponent + 127) << 23) | (ones << (23 - mantissa_bits)));
  format.largest_negative = format.largest;
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
  // The significand as an integer, shifted right by the bits below the step: what stays counts steps, what falls out
  // is the fraction. Below the smallest normal the step is further away than the mantissa's own dropped bits.
  using Layout = FloatLayout<F>;
  using Bits = typename Layout::Bits;
  using Signed = typename Layout::Signed;
  constexpr Signed kWidth = 8 * sizeof(Bits);
  constexpr Signed kSignificant = Layout::kMantissaBits + 1;
  const Bits bits = bit_cast<Bits>(magnitude);
  const Bits exponent = bits & Layout::kInfinity;
  const Bits floor = static_cast<Bits>(format.min_exponent + Layout::kBias) << Layout::kMantissaBits;
  const Bits binade = exponent > floor ? exponent : floor;
  const Bits significand = (bits ^ exponent) | (Bits{1} << Layout::kMantissaBits);
  const Signed shift = static_cast<Signed>((binade - exponent) >> Layout::kMantissaBits) + Layout::kMantissaBits -
                       static_cast<Signed>(format.mantissa_bits);
  const Signed steps = static_cast<Signed>(significand >> (shift < kWidth ? shift : kWidth - 1));
  // The fraction's bits, moved to the top of the word: to the left, or for tiny numbers to the right.
  const Signed beyond = shift - kSignificant;
  const Signed left = beyond < 0 ? -beyond : 0;
  const Signed right = beyond < 0 ? 0 : (beyond < kWidth ? beyond : kWidth - 1);
  const Bits aligned = ((significand << (kWidth - kSignificant)) << left) >> right;
  const Bits fraction = beyond < kWidth ? aligned : Bits{0};
  const F step =
      bit_cast<F>(static_cast<Bits>(binade - (static_cast<Bits>(format.mantissa_bits) << Layout::kMantissaBits)));
  bracket.below = static_cast<F>(steps) * step;
  bracket.above = static_cast<F>(steps + 1) * step;
  bracket.fraction = static_cast<uint32_t>(fraction >> (kWidth - 32));
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

// Does x lie beyond the largest number of its sign?
template <class F>
LSFAST_HD bool saturates(F x, const ElementFormat& format) {
  return (x > static_cast<F>(format.largest)) | (x < -static_cast<F>(format.largest_negative));
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
  const F largest = static_cast<F>(bits == magnitude_bits ? format.largest : format.largest_negative);
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

// The same for nearest, saturating rounding of a number that is not NaN to a format whose largest and lowest are alike,
// in fewer operations: the largest is on the grid, so it may cap the number before it is rounded.
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

// An integer's code: two's complement in its 1 + mantissa_bits bits; NaN has none and takes the largest.
LSFAST_HD uint32_t encode_integer(float value, const ElementFormat& format) {
  const float steps = value * power_of_two<float>(format.mantissa_bits - format.min_exponent);
  const bool is_nan = (bit_cast<uint32_t>(value) & 0x7fffffffu) > 0x7f800000u;
  const int32_t number = static_cast<int32_t>(is_nan ? 0.0f : steps);
  const uint32_t largest = (1u << format.mantissa_bits) - 1u;
  return is_nan ? largest : static_cast<uint32_t>(number) & (2u * largest + 1u);
}

LSFAST_HD float decode_integer(uint32_t code, const ElementFormat& format) {
  const uint32_t sign = 1u << format.mantissa_bits;
  const int32_t number = static_cast<int32_t>(code & (sign - 1u)) - static_cast<int32_t>(code & sign);
  return static_cast<float>(number) * power_of_two<float>(format.min_exponent - format.mantissa_bits);
}

// The code of a number that is on the grid of a float format: sign, exponent field, mantissa, from the top. A NaN that
// the format has no code for takes the largest. Without branches, so that a loop over it vectorizes.
LSFAST_HD uint32_t encode_float(float value, const ElementFormat& format) {
  const int width = format.exponent_bits + format.mantissa_bits;
  const int dropped = 23 - format.mantissa_bits;
  const uint32_t bits = bit_cast<uint32_t>(value);
  const uint32_t magnitude = bits & 0x7fffffffu;
  const uint32_t sign = (bits >> 31) << width;
  const uint32_t largest = bit_cast<uint32_t>(format.largest);
  const uint32_t offset = static_cast<uint32_t>(format.min_exponent + 126) << format.mantissa_bits;
  const uint32_t top = ((1u << format.exponent_bits) - 1u) << format.mantissa_bits;
  const uint32_t quiet = format.mantissa_bits > 0 ? 1u << (format.mantissa_bits - 1) : 0u;
  const uint32_t largest_code = (largest >> dropped) - offset;
  const bool ieee = format.special == Special::kIeee;
  const uint32_t nan_code =
      ieee ? top | quiet : (format.special == Special::kNanOnly ? (1u << width) - 1u : largest_code);
  // Floats of one sign order as their bits. With 8 exponent bits the fields are those of float32, subnormals included.
  const bool wide = format.exponent_bits == 8;
  const uint32_t number = magnitude < largest ? magnitude : largest;
  const uint32_t smallest_normal = wide ? 0u : static_cast<uint32_t>(format.min_exponent + 127) << 23;
  const float to_steps = wide ? 0.0f : power_of_two<float>(format.mantissa_bits - format.min_exponent);
  const bool below = number < smallest_normal;
  const uint32_t steps =
      static_cast<uint32_t>(static_cast<int32_t>((below ? bit_cast<float>(number) : 0.0f) * to_steps));
  uint32_t code = below ? steps : (number >> dropped) - offset;
  code = ieee && magnitude == 0x7f800000u ? top : code;
  const bool is_nan = magnitude > 0x7f800000u;
  return (is_nan && format.special == Special::kFinite ? 0u : sign) | (is_nan ? nan_code : code);
}

LSFAST_HD uint32_t encode_element(float value, const ElementFormat& format) {
  return is_integer(format.special) ? encode_integer(value, format) : encode_float(value, format);
}

LSFAST_HD float decode_element(uint32_t code, const ElementFormat& format) {
  if (is_integer(format.special)) return decode_integer(code, format);
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
