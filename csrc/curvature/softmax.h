// Softmax and what is made of it: parameters, CPU kernels, CUDA launchers.
#pragma once

#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::curvature {

// Scores to probabilities, in place: each row its softmax, all zeros where every score is -inf (or hidden).
struct ProbabilitiesParams {
  void* scores;  // [matrices, rows, cols] of `kind`
  int64_t matrices;
  int64_t rows;
  int64_t cols;
  int64_t causal;   // row i of a matrix sees the columns 0 ... causal + i alone; negative: it sees all
  ScalarKind kind;  // kFloat32 or kFloat64
};

// What of softmax a kernel differentiates. With p the softmax of a row x and t its tangent:
enum class SoftmaxOutput : int64_t {
  kSoftmax = 0,            // p: tangent (and adjoint, the derivative is symmetric) p (t - p.t)
  kLogSoftmax = 1,         // log p: tangent t - p.t
  kLogSumExp = 2,          // log sum exp x: tangent p.t, one number a row
  kLogSoftmaxAdjoint = 3,  // the adjoint of log p: t - p sum t
};

// First derivatives, for k rows of tangents at once. `out` may be `tangents`.
struct SoftmaxTangentParams {
  const void* probability;  // [rows, cols], float64 if `kind` is, else float32
  const void* tangents;     // [k, rows, cols] of `kind`
  void* out;                // [k, rows, cols] of `kind`; [k, rows] for kLogSumExp
  int64_t k;
  int64_t rows;
  int64_t cols;
  SoftmaxOutput output;
  ScalarKind kind;
};

// Tangents of the adjoint x_bar, where x has the tangent t and the adjoint y_bar of the output the tangent a:
//   kSoftmax     p (u - p.u),  u = c (t - p.t) + a,  c = y_bar - p.y_bar
//   kLogSoftmax  a - p (sum a + c (t - p.t)),        c = sum y_bar
//   kLogSumExp   p (a + c (t - p.t)),                c = y_bar
// `out` may be `adjoints`, `tangents_out` may be `tangents`.
struct SoftmaxAdjointTangentParams {
  const void* probability;  // [rows, cols], float64 if `kind` is, else float32
  const void* centered;     // c, of the same type: [rows, cols] for kSoftmax, else [rows]
  const void* tangents;     // [k, rows, cols] of `kind`
  const void* adjoints;     // [k, rows, cols] of `kind`; [k, rows] for kLogSumExp
  void* tangents_out;       // [k, rows, cols] of `kind`, p (t - p.t), or null; kSoftmax only
  void* out;                // [k, rows, cols] of `kind`
  int64_t k;
  int64_t rows;
  int64_t cols;
  SoftmaxOutput output;  // not kLogSoftmaxAdjoint
  ScalarKind kind;
};

// Each works on a range of rows (of all matrices), any range on any thread.
struct SoftmaxKernels {
  void (*probabilities)(const ProbabilitiesParams&, int64_t begin, int64_t end);
  void (*tangent)(const SoftmaxTangentParams&, int64_t begin, int64_t end);
  void (*adjoint_tangent)(const SoftmaxAdjointTangentParams&, int64_t begin, int64_t end);
};

const char* launch_probabilities(const ProbabilitiesParams& params, Stream stream);
const char* launch_softmax_tangent(const SoftmaxTangentParams& params, Stream stream);
const char* launch_softmax_adjoint_tangent(const SoftmaxAdjointTangentParams& params, Stream stream);

// The type of the arithmetic, and of what is shared by all rows: float64 for float64, else float32.
template <class T>
struct SoftmaxArithmetic {
  using Type = float;
};
template <>
struct SoftmaxArithmetic<double> {
  using Type = double;
};

template <class F, class T>
LSFAST_HD F softmax_load(T x) {
  return static_cast<F>(to_float(x));
}
template <>
LSFAST_HD double softmax_load<double, double>(double x) {
  return x;
}
template <class T, class F>
LSFAST_HD T softmax_store(F x) {
  return from_float<T>(static_cast<float>(x));
}
template <>
LSFAST_HD double softmax_store<double, double>(double x) {
  return x;
}

}  // namespace lsfast::curvature
