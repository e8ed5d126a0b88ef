// The spectrum room: projections on a Lanczos basis, the step of the recurrence, and the tridiagonal eigensolver.
// Parameters, CPU kernel table and CUDA launchers, in plain C++.
#pragma once

#include "numerics/macros.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::spectrum {

// Vectors are cut into units; a unit's sums are made by one thread (CPU) or block (CUDA), and units are combined in
// their order: sums depend on n and dtype alone.
constexpr int64_t kUnitBytes = 32768;

// new w = w - sum_j coefficients_j basis_j, then either its projections on the basis or its squared norm.
struct OrthogonalizeParams {
  const void* basis;           // [k, rows, n] of `kind`; the first `count` rows take part
  const void* w;               // [k, n] of `kind`
  void* out;                   // [k, n] of `kind`, the new w; may be w. Unused when nothing is subtracted
  const double* coefficients;  // [k, count]; null: nothing is subtracted
  double* partial;             // [k, outputs, units] scratch
  double* sums;                // [k, outputs]
  int64_t k;
  int64_t rows;
  int64_t n;
  int64_t count;
  bool project;  // sums are the `count` projections of the new w; else its squared norm
  ScalarKind kind;

  LSFAST_HD int64_t unit() const { return kUnitBytes / (kind == ScalarKind::kFloat64 ? 8 : 4); }
  LSFAST_HD int64_t units() const { return (n + unit() - 1) / unit(); }
  LSFAST_HD int64_t outputs() const { return project ? count : 1; }
};

// The end of a Lanczos step: entries of T, whether the probe goes on, and the next basis vector; see recurrence.h.
struct AdvanceParams {
  void* w;                     // [k, n] of `kind`: the orthogonalized product; on return the next basis vector
  void* basis;                 // [k, rows, n] of `kind`: row `row` becomes the next basis vector
  const double* norm_squared;  // [k] of w
  const double* projections;   // [k, count] of the product on the basis
  const double* corrections;   // [k, count] of the second pass; null: there was none
  double* alpha;               // [k, m]: column `step` is written
  double* beta;                // [k, m]: column `step` is written, step - 1 read
  double* scale;               // [k, m] running estimate of |T|: column `step` is written, step - 1 read
  int64_t* steps;              // [k] steps taken so far
  int64_t k;
  int64_t rows;
  int64_t n;
  int64_t m;
  int64_t count;
  int64_t column;  // which of the projections is that on the current vector
  int64_t step;
  int64_t row;  // below 0: w is left as it is, the residual
  double tolerance;
  ScalarKind kind;
};

// Eigenvalues and squared first components of eigenvectors of k symmetric tridiagonal matrices; see tridiagonal.h.
struct TridiagonalParams {
  const double* alpha;   // [k, m] diagonals
  const double* beta;    // [k, m] off-diagonals; the last column is not read
  const int64_t* steps;  // [k] size of each matrix, 0..m
  double* nodes;         // [k, m] ascending; beyond `steps`, the last one again
  double* weights;       // [k, m]; beyond `steps`, 0
  double* scratch;       // [3, m, k] for CUDA, [3, k, m] for the CPU
  int64_t* failed;       // [k] 1 where the iteration did not converge
  int64_t k;
  int64_t m;
};

// Each works on a range, which may run on any thread.
struct CpuKernels {
  void (*orthogonalize)(const OrthogonalizeParams&, int64_t begin, int64_t end);  // over k * units, fills `partial`
  void (*advance)(const AdvanceParams&, int64_t begin, int64_t end);              // over k * blocks of kAdvanceBlock
  void (*tridiagonal)(const TridiagonalParams&, int64_t begin, int64_t end);      // over k
};

constexpr int64_t kAdvanceBlock = 8192;  // elements of a vector that the CPU normalizes in one piece

const char* launch_orthogonalize(const OrthogonalizeParams& params, Stream stream);
const char* launch_advance(const AdvanceParams& params, Stream stream);
const char* launch_tridiagonal(const TridiagonalParams& params, Stream stream);

}  // namespace lsfast::spectrum
