// A quantization scheme as kernels know it: what a number is rounded to, and by which scales.
#pragma once

#include "numerics/hadamard.h"
#include "numerics/normal_float.h"
#include "numerics/scaling.h"

namespace lsfast {

struct QuantScheme {
  ElementFormat element;
  ScaleRule rule;
  Compat compat;
  bool per_tensor;    // kFloat, kPowerOfTwo: one scale for the tensor
  bool tensor_scale;  // kE4m3: over one float32 for the tensor
  Rounding rounding;
  Overflow overflow;
  int32_t random_bits;
  Hadamard hadamard;

  LSFAST_HD bool needs_tensor_amax() const { return per_tensor || tensor_scale; }
  // Does a part of the tensor, and not all of it, share a scale?
  LSFAST_HD bool blocked() const { return rule != ScaleRule::kNone && !per_tensor; }
  LSFAST_HD int32_t code_bits() const { return 1 + element.exponent_bits + element.mantissa_bits; }
  // A code as stored: packed up to 8 bits, in whole numbers of two or four bytes beyond.
  LSFAST_HD int32_t stored_bits() const { return code_bits() <= 8 ? code_bits() : (code_bits() <= 16 ? 16 : 32); }
};

// `scaled` is x times the block's multiplier. NaN stays NaN; integers have no negative zero.
template <class F>
LSFAST_HD F round_scaled(F scaled, const QuantScheme& scheme, uint32_t word) {
  if (scheme.element.special == Special::kTable) {
    return static_cast<F>(round_to_normal_float(static_cast<float>(scaled), scheme.rounding, word, scheme.random_bits));
  }
  const F zero = is_integer(scheme.element.special) ? F(0) : F(-0.0);  // x + -0.0 is x, -0.0 + 0.0 is 0.0
  return round_to_element<F>(scaled, scheme.element, scheme.rounding, scheme.overflow, word, scheme.random_bits) + zero;
}

LSFAST_HD uint32_t encode_rounded(float rounded, const QuantScheme& scheme) {
  return scheme.element.special == Special::kTable ? encode_normal_float(rounded)
                                                   : encode_element(rounded, scheme.element);
}

LSFAST_HD float decode_code(uint32_t code, const QuantScheme& scheme) {
  return scheme.element.special == Special::kTable ? normal_float(static_cast<int>(code & 15u))
                                                   : decode_element(code, scheme.element);
}

}  // namespace lsfast
