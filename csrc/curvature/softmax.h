// Softmax and what is made of it: parameters, CPU kernels, CUDA launchers.
#pragma once

#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::curvature {

// Products with the Hessian of cross-entropy in its logits, for k tangents at once. Row i of the Hessian's block:
//   out[j, i, :] = row_scale[i] * (p * u - p (p . u)),  p = softmax(logits[i, :]),  u = tangents[j, i, :]
struct SoftmaxHessianParams {
  const void* logits;     // [rows, classes] of `kind`
  const void* row_scale;  // [rows] of `kind`
  const void* tangents;   // [k, rows, classes] of `kind`
  void* out;              // [k, rows, classes] of `kind`
  int64_t k;
  int64_t rows;
  int64_t classes;
  ScalarKind kind;  // kFloat32 or kFloat64
};

// Works on a range of rows, any range on any thread.
struct SoftmaxKernels {
  void (*softmax_hessian)(const SoftmaxHessianParams&, int64_t begin, int64_t end);
};

const char* launch_softmax_hessian(const SoftmaxHessianParams& params, Stream stream);

}  // namespace lsfast::curvature
