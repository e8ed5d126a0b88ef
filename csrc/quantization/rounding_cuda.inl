// How the CUDA kernels of quantization round the few elements a thread holds in registers, and what comes of them:
// values on the grid of the element, the derivative, or codes. Register arrays are indexed by constants alone.
#pragma once

#include "quantization/tile_cuda.inl"

namespace lsfast::quantization {

// The random word of the element k places on is that of index first + k step.
struct WordPlace {
  int64_t first;
  int64_t step;
};

template <int kCount, class F>
__device__ __forceinline__ void round_nearest(F (&values)[kCount], const ElementFormat& element) {
  const F zero = is_integer(element.special) ? F(0) : F(-0.0);
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    const F rounded = round_number_nearest(values[k], element) + zero;
    values[k] = values[k] != values[k] ? values[k] : rounded;
  }
}

// Loops that are not unrolled take the first elements and turn the array round.
template <int kCount, class F>
__device__ __forceinline__ void round_values(F (&values)[kCount], const QuantizeParams& p, const WordPlace& words) {
  QuantScheme scheme = p.scheme;
  const Special special = scheme.element.special;
  if (scheme.rounding == Rounding::kNearest && scheme.overflow == Overflow::kSaturate && special != Special::kTable &&
      special != Special::kFullInteger) {
    // Known to the compiler, so that each loop has one way through it.
    if (shares_exponent_range<F>(scheme.element)) {
      scheme.element.exponent_bits = 8;
      round_nearest(values, scheme.element);
    } else {
      scheme.element.exponent_bits = 7;
      round_nearest(values, scheme.element);
    }
    return;
  }
  if (scheme.rounding == Rounding::kStochastic && words.step == 1 && words.first % 4 == 0) {
    scheme.rounding = Rounding::kStochastic;
#pragma unroll 1
    for (int done = 0; done < kCount; done += 4) {
      const PhiloxWords four = philox4x32(p.seed, static_cast<uint64_t>(words.first + done) >> 2, p.stream);
      F rounded[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) rounded[k] = round_scaled(values[k], scheme, four.word[k]);
#pragma unroll
      for (int k = 0; k + 4 < kCount; ++k) values[k] = values[k + 4];
#pragma unroll
      for (int k = 0; k < 4; ++k) values[kCount - 4 + k] = rounded[k];
    }
    return;
  }
#pragma unroll 1
  for (int done = 0; done < kCount; ++done) {
    const uint64_t index = static_cast<uint64_t>(words.first + done * words.step);
    const uint32_t word = scheme.rounding == Rounding::kStochastic ? philox_word(p.seed, p.stream, index) : 0u;
    const F rounded = round_scaled(values[0], scheme, word);
#pragma unroll
    for (int k = 0; k + 1 < kCount; ++k) values[k] = values[k + 1];
    values[kCount - 1] = rounded;
  }
}

template <int kCount, class F>
__device__ __forceinline__ void scale_values(const F (&x)[kCount], const QuantScheme& scheme, float multiplier,
                                             F (&values)[kCount]) {
  const F by = static_cast<F>(multiplier);
  if (divides(scheme.compat)) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = x[k] / by;
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = scheme.rule == ScaleRule::kNone ? x[k] : x[k] * by;
  }
}

template <int kCount, class F>
__device__ __forceinline__ void to_derivative(const ElementFormat& element, F (&values)[kCount]) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = saturates(values[k], element) ? F(0) : F(1);
}

// The codes of kCount neighbours of at most 8 bits each, packed from the lowest bit up.
template <int kCount, class F>
__device__ __forceinline__ uint64_t packed_codes(F (&values)[kCount], const QuantScheme& scheme, int count) {
  const int bits = scheme.code_bits();
  uint64_t packed = 0u;
#pragma unroll 1
  for (int done = 0; done < kCount; ++done) {
    const uint64_t code = done < count ? encode_rounded(static_cast<float>(values[0]), scheme) : 0u;
    packed |= code << (done * bits);
#pragma unroll
    for (int k = 0; k + 1 < kCount; ++k) values[k] = values[k + 1];
  }
  return packed;
}

}  // namespace lsfast::quantization
