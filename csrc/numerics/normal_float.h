// NF4: 16 numbers, the quantiles of a standard normal distribution scaled to [-1, 1], and the rounding to them.
// Source: Dettmers, Pagnoni, Holtzman, Zettlemoyer, "QLoRA" (2023), arXiv:2305.14314, appendix E. Nearest as in
// bitsandbytes: the next number from just above the midpoint on.
#pragma once

#include "numerics/element.h"

namespace lsfast {

constexpr int kNormalFloats = 16;

LSFAST_HD float normal_float(int code) {
  constexpr float kTable[kNormalFloats] = {
      -1.0f,
      -0.6961928009986877f,
      -0.5250730514526367f,
      -0.39491748809814453f,
      -0.28444138169288635f,
      -0.18477343022823334f,
      -0.09105003625154495f,
      0.0f,
      0.07958029955625534f,
      0.16093020141124725f,
      0.24611230194568634f,
      0.33791524171829224f,
      0.44070982933044434f,
      0.5626170039176941f,
      0.7229568362236023f,
      1.0f,
  };
  return kTable[code];
}

// NaN stays NaN; beyond the ends saturates.
LSFAST_HD float round_to_normal_float(float x, Rounding rounding, uint32_t word, int random_bits) {
  float below = normal_float(0);
  float above = normal_float(1);
  LSFAST_UNROLL
  for (int code = 1; code + 1 < kNormalFloats; ++code) {
    const bool reached = x >= normal_float(code);
    below = reached ? normal_float(code) : below;
    above = reached ? normal_float(code + 1) : above;
  }
  const float inside = x < -1.0f ? -1.0f : (x > 1.0f ? 1.0f : x);
  float rounded;
  if (rounding == Rounding::kNearest) {
    rounded = inside > (below + above) * 0.5f ? above : below;
  } else if (rounding == Rounding::kTowardZero) {
    rounded = inside < 0.0f && inside > below ? above : (inside < 1.0f ? below : 1.0f);
  } else {
    // The fraction of the step in float32, its 32 leading bits in two halves; below 1 also where the quotient rounds
    // up.
    const float quotient = (inside - below) / (above - below);
    const float scaled = (quotient < 0.99999994f ? quotient : 0.99999994f) * 65536.0f;
    const int32_t high = static_cast<int32_t>(scaled);
    const int32_t low = static_cast<int32_t>((scaled - static_cast<float>(high)) * 65536.0f);
    const uint32_t fraction = (static_cast<uint32_t>(high) << 16) | static_cast<uint32_t>(low);
    const int shift = 32 - random_bits;
    const uint32_t room = (0xffffffffu >> shift) - (fraction >> shift);
    rounded = (word >> shift) > room || inside == 1.0f ? above : below;
  }
  return x != x ? x : rounded;
}

// The code of one of the 16; NaN has none and takes the largest.
LSFAST_HD uint32_t encode_normal_float(float value) {
  uint32_t code = 0u;
  LSFAST_UNROLL
  for (int i = 1; i < kNormalFloats; ++i) code += value >= normal_float(i) ? 1u : 0u;
  return value != value ? 15u : code;
}

}  // namespace lsfast
