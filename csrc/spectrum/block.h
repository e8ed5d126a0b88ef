// A block of vectors against the rows of an orthonormal basis: projections, their subtraction, and combinations of the
// rows. Parameters, CPU kernel table and CUDA launchers, in plain C++.
#pragma once

#include "numerics/macros.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::spectrum {

// Vectors are cut into units of this size; a unit's sums are made by one thread (CPU) or block (CUDA), and units are
// added in their order: sums depend on n and dtype alone.
constexpr int64_t kBlockUnitBytes = 16384;

// new W = W - C Q (when C is given), then its projections on the rows of Q (when sums are asked for).
struct BlockProjectParams {
  const void* rows;            // [s, n] of `kind`, `rows_stride` elements apart: Q
  void* block;                 // [b, n] of `kind`, `block_stride` elements apart: W; written when C is given
  const double* coefficients;  // [b, s]: C; null: nothing is subtracted
  double* partial;             // [b, s, units] scratch; null: nothing is projected
  double* sums;                // [b, s]
  int64_t rows_stride;
  int64_t block_stride;
  int64_t s;
  int64_t b;
  int64_t n;
  ScalarKind kind;

  LSFAST_HD int64_t unit() const { return kBlockUnitBytes / (kind == ScalarKind::kFloat64 ? 8 : 4); }
  LSFAST_HD int64_t units() const { return (n + unit() - 1) / unit(); }
};

// out = S Q. Columns are read whole before they are written, by way of the scratch when `out` is the first rows of Q.
struct BlockCombineParams {
  const void* rows;            // [s, n] of `kind`, `rows_stride` elements apart: Q
  const double* coefficients;  // [p, s]: S
  void* out;                   // [p, n] of `kind`, `out_stride` elements apart
  void* scratch;  // [p, scratch_columns] of `kind`, for each range (CPU) or launch (CUDA); null: not in place
  int64_t scratch_columns;
  int64_t rows_stride;
  int64_t out_stride;
  int64_t s;
  int64_t p;
  int64_t n;
  ScalarKind kind;
};

struct BlockKernels {
  void (*project)(const BlockProjectParams&, int64_t begin, int64_t end);  // over units
  void (*combine)(const BlockCombineParams&, int64_t begin, int64_t end);  // over tiles of kChunk columns
};

// Columns that a combination on CUDA works on at a time.
int64_t block_combine_columns(const BlockCombineParams& params);

const char* launch_block_project(const BlockProjectParams& params, Stream stream);
const char* launch_block_combine(const BlockCombineParams& params, Stream stream);

}  // namespace lsfast::spectrum
