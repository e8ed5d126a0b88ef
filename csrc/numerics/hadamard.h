// The random Hadamard transform: `size` consecutive elements times signs, times the Hadamard matrix in Sylvester's
// order, over sqrt(size). It spreads an outlier over its group before a block's scale is chosen. The order of additions
// is the same everywhere: stages 1, 2, 4, ... size/2, in each (a + b, a - b) of elements `stage` apart; the factor
// last. Source: NVIDIA, "Pretraining Large Language Models with NVFP4" (2025), arXiv:2509.25149, section 4.
#pragma once

#include "numerics/macros.h"

namespace lsfast {

constexpr int kLargestHadamard = 128;

struct Hadamard {
  int32_t size;       // 0 (none), 16, 32, 64 or 128
  uint32_t signs[4];  // bit i % 32 of word i / 32: element i is negated

  LSFAST_HD bool negates(int i) const { return (signs[i >> 5] >> (i & 31)) & 1u; }
};

// 1/sqrt(size): exact for 16 and 64, else the nearest F.
template <class F>
LSFAST_HD F hadamard_factor(int size) {
  return static_cast<F>(size == 16 ? 0.25
                                   : (size == 32 ? 0.17677669529663689 : (size == 64 ? 0.125 : 0.088388347648318447)));
}

}  // namespace lsfast
