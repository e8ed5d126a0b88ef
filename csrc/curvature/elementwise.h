// Elementwise operations: parameters, CPU kernels, CUDA launchers.
#pragma once

#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::curvature {

// out = a * f + b * g for k rows (a * f where b is null), each product and the sum rounded. A row and the factors have
// one dense order in memory, whatever their shape; rows of a tensor begin a stride apart.
struct CombineParams {
  const void* a;       // [k, n], rows a_stride apart, of `kind`
  const void* f;       // [n] of `kind`
  const void* b;       // [k, n], rows b_stride apart, of `kind`; null: no second product
  const void* g;       // [n] of `kind`
  void* out;           // [k, n], rows out_stride apart, of `kind`; may be a or b
  int64_t a_stride;    // elements
  int64_t b_stride;    // elements
  int64_t out_stride;  // elements
  int64_t k;
  int64_t n;
  ScalarKind kind;  // any of them

  LSFAST_HD int64_t tiles() const;
};

constexpr int64_t kCombineTile = 2048;  // elements of the factors that stay in cache while the k rows pass by

LSFAST_HD int64_t CombineParams::tiles() const { return (n + kCombineTile - 1) / kCombineTile; }

// Works on a range of tiles() * k units, the rows of a tile neighbours.
struct ElementwiseKernels {
  void (*combine)(const CombineParams&, int64_t begin, int64_t end);
};

const char* launch_combine(const CombineParams& params, Stream stream);

}  // namespace lsfast::curvature
