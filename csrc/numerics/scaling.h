// Scales of the scaled schemes: NVFP4 (E2M1 in blocks of 16 with an E4M3 scale and one float32 per tensor) and FP8 per
// tensor. Every operation is in float32 and in the order of the reference implementation; the order matters.
// Source: NVIDIA Transformer Engine, common/cast/nvfp4 and common/recipe (quantization).
#pragma once

#include <cfloat>

#include "numerics/element.h"

namespace lsfast {

constexpr int kNvfp4Block = 16;
constexpr float kNvfp4Range = 2688.0f;  // 448 * 6, the largest scale times the largest element

// Per tensor: enc = min(2688/amax, FLT_MAX), 1 where amax or enc is 0; dec = 1/enc. amax is over finite values.
struct Nvfp4TensorScale {
  float amax;
  float encode;
  float decode;
};

LSFAST_HD Nvfp4TensorScale nvfp4_tensor_scale(float amax) {
  Nvfp4TensorScale scale;
  scale.amax = amax;
  const float quotient = kNvfp4Range / amax;
  const float encode = quotient > FLT_MAX ? FLT_MAX : quotient;
  scale.encode = amax == 0.0f || encode == 0.0f ? 1.0f : encode;
  scale.decode = 1.0f / scale.encode;
  return scale;
}

// Per block: the multiplier before rounding and the factor after it. An amax of Inf or NaN makes the factor NaN, and
// with it the block, and no other.
struct Nvfp4BlockScale {
  float scale;       // on the E4M3 grid
  float multiplier;  // inv = min(1/(s dec), FLT_MAX)
  float factor;      // s amax (1/2688)
};

LSFAST_HD Nvfp4BlockScale nvfp4_block_scale(float block_amax, const Nvfp4TensorScale& tensor) {
  Nvfp4BlockScale block;
  const float unrounded = block_amax * (tensor.encode * (1.0f / 6.0f));
  block.scale = round_number_nearest(unrounded, e4m3_format());  // of a NaN: any number, the factor below is NaN
  const float inverse = 1.0f / (block.scale * tensor.decode);
  block.multiplier = inverse > FLT_MAX ? FLT_MAX : inverse;
  const float factor = block.scale * tensor.amax * (1.0f / kNvfp4Range);
  const bool finite = (bit_cast<uint32_t>(block_amax) & 0x7fffffffu) < 0x7f800000u;
  block.factor = finite ? factor : bit_cast<float>(0x7fc00000u);
  return block;
}

// FP8 per tensor ("current" scaling): largest/amax; an amax of 0, Inf or NaN gives 1; a quotient beyond float32 gives
// the largest float32. code = round(x * scale); value = code * (1/scale).
LSFAST_HD float tensor_scale(float largest, float amax) {
  const uint32_t bits = bit_cast<uint32_t>(amax);
  if (bits == 0u || bits >= 0x7f800000u) return 1.0f;
  const float scale = largest / amax;
  return scale > FLT_MAX ? FLT_MAX : scale;
}

}  // namespace lsfast
