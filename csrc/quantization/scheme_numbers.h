// A scheme as the operators get it, and the blocks it cuts a tensor into. For the room's ops.cpp files alone: it knows
// torch.
#pragma once

#include <vector>

#include "platform/torch_ops.h"
#include "quantization/quantization.h"

namespace lsfast::quantization {

using Numbers = std::vector<int64_t>;

// A scheme as the numbers that lsfast/scheme_numbers.py makes of it, in this order.
enum Number {
  kExponentBits,
  kMantissaBits,
  kSpecial,
  kRule,
  kCompat,
  kBlockHeight,
  kBlockLength,  // 0: no block, -1: a row, -2: the tensor
  kTensorScale,
  kRounding,
  kRandomBits,
  kOverflow,
  kHadamard,
  kSigns,  // and the three after it
  kNumbers = kSigns + 4,
};

inline void check_between(const char* op, const char* name, int64_t value, int64_t least, int64_t most) {
  STD_TORCH_CHECK(least <= value && value <= most, op, ": ", name, " must lie in ", least, "..", most, ", got ", value);
}

inline QuantScheme scheme_of(const char* op, const Numbers& n) {
  STD_TORCH_CHECK(static_cast<int>(n.size()) == kNumbers, op, ": a scheme has ", static_cast<int>(kNumbers),
                  " numbers, got ", n.size());
  check_between(op, "special", n[kSpecial], 0, 6);
  const Special special = static_cast<Special>(n[kSpecial]);
  const bool is_float = n[kSpecial] <= 2;
  check_between(op, "exponent_bits", n[kExponentBits], is_float ? 2 : 0, is_float ? 8 : 0);
  check_between(op, "mantissa_bits", n[kMantissaBits], is_float ? 0 : 3, is_float ? 23 : 7);
  check_between(op, "scale rule", n[kRule], 0, 8);
  check_between(op, "compat", n[kCompat], 0, 2);
  check_between(op, "rounding", n[kRounding], 0, 2);
  check_between(op, "random_bits", n[kRandomBits], 1, 32);
  check_between(op, "overflow", n[kOverflow], 0, 2);
  const int64_t size = n[kHadamard];
  STD_TORCH_CHECK(size == 0 || size == 16 || size == 32 || size == 64 || size == 128, op,
                  ": hadamard must be 0, 16, 32, 64 or 128, got ", size);
  QuantScheme scheme{};
  scheme.element = make_element_format(static_cast<int>(n[kExponentBits]), static_cast<int>(n[kMantissaBits]), special);
  scheme.rule = static_cast<ScaleRule>(n[kRule]);
  scheme.compat = static_cast<Compat>(n[kCompat]);
  scheme.per_tensor = n[kBlockLength] == -2;
  scheme.tensor_scale = n[kTensorScale] != 0;
  scheme.rounding = static_cast<Rounding>(n[kRounding]);
  scheme.random_bits = static_cast<int32_t>(n[kRandomBits]);
  scheme.overflow = static_cast<Overflow>(n[kOverflow]);
  scheme.hadamard.size = static_cast<int32_t>(size);
  for (int i = 0; i < 4; ++i) scheme.hadamard.signs[i] = static_cast<uint32_t>(n[kSigns + i]);
  const bool floats = scheme.rule == ScaleRule::kFloat || scheme.rule == ScaleRule::kPowerOfTwo;
  STD_TORCH_CHECK((scheme.rule == ScaleRule::kNone) == (n[kBlockLength] == 0), op,
                  ": a scale rule and a block go together, got rule ", n[kRule], " and block ", n[kBlockLength]);
  STD_TORCH_CHECK((!scheme.per_tensor || floats) && (!scheme.tensor_scale || scheme.rule == ScaleRule::kE4m3), op,
                  ": one scale for the tensor goes with float32 scales, one over block scales with e4m3 scales");
  STD_TORCH_CHECK(scheme.rule == ScaleRule::kNone || scheme.code_bits() <= 8, op,
                  ": elements of a scaled scheme have at most 8 bits, got ", scheme.code_bits());
  return scheme;
}

inline void check_block(const char* op, const Numbers& numbers) {
  const int64_t side = numbers[kBlockHeight];
  const int64_t block = numbers[kBlockLength];
  const bool fixed = block > 0;
  STD_TORCH_CHECK(!fixed || (16 <= block && block <= 512 && (block & (block - 1)) == 0), op,
                  ": a block must have 16, 32, 64, 128, 256 or 512 elements, got ", block);
  STD_TORCH_CHECK(side == 1 || (fixed && side == block), op, ": a block of two dimensions must be square, got ", side,
                  " x ", block);
}

// Of a checked block, where `length` is known.
inline void set_block(const char* op, QuantizeParams& params, const Numbers& numbers) {
  params.block_height = numbers[kBlockHeight];
  params.block_length = numbers[kBlockLength] > 0 ? numbers[kBlockLength] : params.length;
  params.word_inner = 1;
  const int64_t size = params.scheme.hadamard.size;
  STD_TORCH_CHECK(size == 0 || params.length % size == 0, op, ": hadamard of size ", size,
                  " needs an axis it divides, got one of ", params.length);
}

}  // namespace lsfast::quantization
