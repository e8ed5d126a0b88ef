// The tridiagonal eigensolver: parameters, CPU kernel and CUDA launcher.
#pragma once

#include "numerics/macros.h"
#include "platform/stream.h"

namespace lsfast::spectrum {

// Eigenvalues and squared first components of eigenvectors of k symmetric tridiagonal matrices; see ql.h.
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

struct TridiagonalKernels {
  void (*solve)(const TridiagonalParams&, int64_t begin, int64_t end);  // over k
};

const char* launch_tridiagonal(const TridiagonalParams& params, Stream stream);

}  // namespace lsfast::spectrum
