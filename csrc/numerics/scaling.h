// Scales: how the largest magnitude of a block (and of its tensor) becomes what multiplies the block's numbers before
// they are rounded and after. Every operation is in float32 and in the order of the implementation it follows; the
// order matters. A scheme of any kind is  value = round(x multiplier) factor.
// Sources: NVIDIA Transformer Engine (FP8, NVFP4, MX rceil); OCP Microscaling Formats 1.0 (MX floor); torchao 0.18 and
// NVIDIA ModelOpt 0.46 (their variants); Dettmers et al. 2023, arXiv:2305.14314 (NF4).
#pragma once

#include <cfloat>

#include "numerics/element.h"

namespace lsfast {

enum class ScaleRule : int32_t {
  kNone = 0,        // x itself is rounded
  kFloat = 1,       // float32 largest/amax; value = code (1/scale)
  kPowerOfTwo = 2,  // the same with the scale's mantissa cut off
  kAbsmax = 3,      // multiply by 1/amax before, by amax after (tables whose largest is 1)
  kE4m3 = 4,        // NVFP4: E4M3, over one float32 for the tensor
  kFloor = 5,       // E8M0, 2^(floor(log2 amax) - emax): elements may saturate
  kCeil = 6,        // E8M0, one more if the mantissa of amax is not zero
  kEven = 7,        // E8M0, amax rounded to the element's mantissa first
  kRceil = 8,       // E8M0, amax/largest rounded up to a power of two
};

enum class Compat : int32_t { kDefault = 0, kTorchao = 1, kModelopt = 2 };

LSFAST_HD constexpr bool is_e8m0(ScaleRule rule) { return rule >= ScaleRule::kFloor; }

// Is a block's scale stored as a byte? Else as float32.
LSFAST_HD constexpr bool scale_is_byte(ScaleRule rule) { return rule == ScaleRule::kE4m3 || is_e8m0(rule); }

constexpr float kNvfp4Range = 2688.0f;  // 448 * 6, the largest scale times the largest element
constexpr uint32_t kFloat32Infinity = 0x7f800000u;
constexpr uint32_t kFloat32Nan = 0x7fc00000u;

LSFAST_HD float at_most_float_max(float x) { return x > FLT_MAX ? FLT_MAX : x; }

// What the blocks of a tensor share. Only kE4m3 over a tensor scale reads it.
struct TensorScale {
  float amax;
  float encode;  // Transformer Engine: enc = min(2688/amax, FLT_MAX), 1 where amax or enc is 0; others: 1/(amax/2688)
  float decode;  // Transformer Engine: 1/enc; others: amax/2688
  bool present;
};

LSFAST_HD TensorScale make_tensor_scale(float amax, bool present, Compat compat) {
  TensorScale scale{amax, 1.0f, 1.0f, present};
  if (!present || amax == 0.0f) return scale;
  if (compat == Compat::kDefault) {
    const float encode = at_most_float_max(kNvfp4Range / amax);
    scale.encode = encode == 0.0f ? 1.0f : encode;
    scale.decode = 1.0f / scale.encode;
  } else {
    scale.decode = amax / kNvfp4Range;
    scale.encode = 1.0f / scale.decode;
  }
  return scale;
}

struct BlockScale {
  float multiplier;  // before rounding; a divisor under Compat::kModelopt
  float factor;      // after rounding
  uint32_t code;     // see stored_code
};

LSFAST_HD bool divides(Compat compat) { return compat == Compat::kModelopt; }

// largest/amax; an amax of 0, Inf or NaN gives 1; a quotient beyond float32 gives the largest float32.
LSFAST_HD float float_scale(float range, float amax) {
  const float scale = at_most_float_max(range / amax);
  const uint32_t bits = bit_cast<uint32_t>(amax);
  return bits == 0u || bits >= kFloat32Infinity ? 1.0f : scale;
}

// What amax is mapped to: the largest number, but 127.5 (or 7.5) for an integer that also has -128 (or -8).
LSFAST_HD float scaled_range(const ElementFormat& element) {
  return element.special == Special::kFullInteger ? element.largest + 0.5f : element.largest;
}

// The biased exponent (an E8M0 byte) of an MX block; 0 for a zero block.
LSFAST_HD uint32_t e8m0_code(ScaleRule rule, uint32_t amax_bits, const ElementFormat& element) {
  // A subnormal amax is moved into the normal range, so that its exponent and mantissa can be read.
  const bool subnormal = amax_bits < 0x00800000u;
  const float moved = bit_cast<float>(amax_bits) * (subnormal ? 4294967296.0f : 1.0f);
  uint32_t bits = bit_cast<uint32_t>(moved);
  if (rule == ScaleRule::kEven) bits += 1u << (22 - element.mantissa_bits + (is_integer(element.special) ? 1 : 0));
  const uint32_t mantissa = bits & 0x7fffffu;
  const uint32_t largest = bit_cast<uint32_t>(element.largest);
  const uint32_t above = rule == ScaleRule::kRceil ? largest & 0x7fffffu : 0u;
  const bool up = (rule == ScaleRule::kCeil || rule == ScaleRule::kRceil) && mantissa > above;
  const int32_t exponent = static_cast<int32_t>(bits >> 23) - (subnormal ? 32 : 0) -
                           static_cast<int32_t>(largest >> 23) + 127 + (up ? 1 : 0);
  const int32_t clamped = exponent < 0 ? 0 : (exponent > 254 ? 254 : exponent);
  return amax_bits == 0u ? 0u : static_cast<uint32_t>(clamped);
}

LSFAST_HD float decode_e8m0(uint32_t code) {
  const uint32_t number = code == 0u ? 0x00400000u : code << 23;  // 2^-127 is subnormal
  return bit_cast<float>(code == 255u ? kFloat32Nan : number);
}

// What a block's numbers are multiplied by after rounding, from its scale as stored.
LSFAST_HD float e4m3_factor(float scale, const TensorScale& tensor, Compat compat) {
  if (!tensor.present) return scale;
  if (compat == Compat::kDefault) return scale * tensor.amax * (1.0f / kNvfp4Range);
  return tensor.amax == 0.0f ? 0.0f * scale : scale * tensor.decode;
}

LSFAST_HD float stored_factor(ScaleRule rule, uint32_t code, const TensorScale& tensor, Compat compat) {
  if (is_e8m0(rule)) return decode_e8m0(code);
  if (rule == ScaleRule::kE4m3) return e4m3_factor(decode_element(code, e4m3_format()), tensor, compat);
  return bit_cast<float>(code);
}

// A block's scale as stored: an E8M0 or E4M3 byte, or the bits of the factor.
LSFAST_HD uint32_t stored_code(ScaleRule rule, const BlockScale& block) {
  return rule == ScaleRule::kE4m3 ? encode_element(bit_cast<float>(block.code), e4m3_format()) : block.code;
}

template <ScaleRule rule>
LSFAST_HD BlockScale block_scale(uint32_t amax_bits, const ElementFormat& element, const TensorScale& tensor,
                                 Compat compat) {
  const float amax = bit_cast<float>(amax_bits);
  const bool finite = amax_bits < kFloat32Infinity;
  BlockScale block{1.0f, 1.0f, 0u};
  if constexpr (rule == ScaleRule::kFloat || rule == ScaleRule::kPowerOfTwo) {
    const float scale = float_scale(scaled_range(element), amax);
    const uint32_t kept = rule == ScaleRule::kPowerOfTwo ? 0xff800000u : 0xffffffffu;
    block.multiplier = bit_cast<float>(bit_cast<uint32_t>(scale) & kept);
    block.factor = 1.0f / block.multiplier;
    block.code = bit_cast<uint32_t>(block.factor);
  } else if constexpr (rule == ScaleRule::kAbsmax) {
    block.multiplier = float_scale(1.0f, amax);
    block.factor = amax_bits == 0u || !finite ? 1.0f : amax;
    block.code = bit_cast<uint32_t>(block.factor);
  } else if constexpr (rule == ScaleRule::kE4m3) {
    // The floor keeps other libraries' scales above zero; NaN or Inf in a block makes it NaN, and no other block.
    float scale;
    if (compat == Compat::kDefault) {
      scale = round_number_nearest(amax * (tensor.encode * (1.0f / 6.0f)), e4m3_format());
    } else {
      const float floor = compat == Compat::kTorchao ? 0.015625f : 0.001953125f;  // 2^-6, 2^-9
      const float wanted = compat == Compat::kTorchao ? amax / 6.0f / tensor.decode : amax / (6.0f * tensor.decode);
      const bool one = compat == Compat::kModelopt && wanted == 0.0f;  // its scale of a zero block
      scale = round_number_nearest(one ? 1.0f : (wanted < floor ? floor : wanted), e4m3_format());
    }
    block.multiplier = compat == Compat::kDefault   ? at_most_float_max(1.0f / (scale * tensor.decode))
                       : compat == Compat::kTorchao ? tensor.encode / scale
                                                    : scale * tensor.decode;
    block.factor = e4m3_factor(scale, tensor, compat);
    block.factor = finite ? block.factor : bit_cast<float>(kFloat32Nan);
    block.code = finite ? bit_cast<uint32_t>(scale) : kFloat32Nan;
  } else if constexpr (is_e8m0(rule)) {
    block.code = finite ? e8m0_code(rule, amax_bits, element) : 255u;
    block.factor = decode_e8m0(block.code);
    // The power of two 1/factor; torchao multiplies by another one where the scale byte is 0.
    const uint32_t inverse = (254u - (block.code > 253u ? 253u : block.code)) << 23;
    const uint32_t other = rule == ScaleRule::kRceil ? 0x3f800000u : 253u << 23;
    const bool differs = compat == Compat::kTorchao && block.code == 0u;
    block.multiplier = block.code == 254u ? bit_cast<float>(0x00400000u) : bit_cast<float>(differs ? other : inverse);
  }
  return block;
}

}  // namespace lsfast

// Runs `...` with `rule` a compile-time constant equal to `value`.
#define LSFAST_SCALE_CASE(RULE, ...)                                \
  case ::lsfast::ScaleRule::RULE: {                                 \
    constexpr ::lsfast::ScaleRule rule = ::lsfast::ScaleRule::RULE; \
    __VA_ARGS__;                                                    \
    break;                                                          \
  }

#define LSFAST_DISPATCH_SCALE(value, ...)       \
  switch (value) {                              \
    LSFAST_SCALE_CASE(kNone, __VA_ARGS__)       \
    LSFAST_SCALE_CASE(kFloat, __VA_ARGS__)      \
    LSFAST_SCALE_CASE(kPowerOfTwo, __VA_ARGS__) \
    LSFAST_SCALE_CASE(kAbsmax, __VA_ARGS__)     \
    LSFAST_SCALE_CASE(kE4m3, __VA_ARGS__)       \
    LSFAST_SCALE_CASE(kFloor, __VA_ARGS__)      \
    LSFAST_SCALE_CASE(kCeil, __VA_ARGS__)       \
    LSFAST_SCALE_CASE(kEven, __VA_ARGS__)       \
    LSFAST_SCALE_CASE(kRceil, __VA_ARGS__)      \
  }
