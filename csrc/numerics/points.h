// Points around the parameters, formed and rounded in one go: what a loss grid over quantized weights needs. A number
// of a point is theta + sum_k c_k d_k, in the dtype of theta and without fused multiply-add; a block of them is formed
// once for its largest magnitude and once to be rounded, so nothing but the quantized numbers is ever written.
#pragma once

#include "numerics/half.h"
#include "numerics/philox.h"
#include "numerics/scheme.h"

namespace lsfast {

// ((theta + c_0 d_0) + c_1 d_1) + ...
template <class T>
struct PointForm {
  const T* theta;        // [n]
  const T* directions;   // [d, n]
  const T* coordinates;  // [d], of this point
  int64_t n;
  int64_t d;

  LSFAST_HD T operator()(int64_t i) const {
    T value = theta[i];
    for (int64_t k = 0; k < d; ++k) value = value + coordinates[k] * directions[k * n + i];
    return value;
  }
};

LSFAST_HD BlockScale block_scale_of(const QuantScheme& scheme, uint32_t amax_bits, const TensorScale& tensor) {
  BlockScale block{1.0f, 1.0f, 0u};
  LSFAST_DISPATCH_SCALE(scheme.rule, block = block_scale<rule>(amax_bits, scheme.element, tensor, scheme.compat));
  return block;
}

// The largest magnitude, as bits, of the numbers form(first), form(first + stride), ...: of a block, or, in parts, of
// the tensor that a tensor scale is for.
template <class Form>
LSFAST_HD uint32_t formed_amax(const Form& form, int64_t first, int64_t stride, int count) {
  uint32_t largest = 0u;
  for (int i = 0; i < count; ++i) {
    const uint32_t bits = bit_cast<uint32_t>(to_float(form(first + i * stride))) & 0x7fffffffu;
    largest = largest > bits ? largest : bits;
  }
  return largest;
}

// Gives emit(index, value) every number of one block, quantized as fake_quantize would the whole point.
template <class Form, class Emit>
LSFAST_HD void quantize_formed(const Form& form, int64_t first, int64_t stride, int count, const QuantScheme& scheme,
                               const TensorScale& tensor, uint64_t seed, uint64_t stream, const Emit& emit) {
  const BlockScale block = block_scale_of(scheme, formed_amax(form, first, stride, count), tensor);
  for (int i = 0; i < count; ++i) {
    const int64_t index = first + i * stride;
    const uint32_t word =
        scheme.rounding == Rounding::kStochastic ? philox_word(seed, stream, static_cast<uint64_t>(index)) : 0u;
    const float scaled = times_scale(to_float(form(index)), block.multiplier, scheme.compat);
    emit(index, round_scaled(scaled, scheme, word) * block.factor);
  }
}

}  // namespace lsfast
