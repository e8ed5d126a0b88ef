// Cross-entropy of softmax: parameters, CPU kernels, CUDA launchers.
//
// A row i of logits z has the loss  sum_c q[i, c] (log_sum[i] - z[i, c]),  log_sum = log sum_c exp(z[i, c]), with
//   q[i, c] = factor[i] class_weight[c] ((1 - smoothing) t[i, c] + smoothing / classes),   mass[i] = sum_c q[i, c],
// t the one-hot of target[i], or given probabilities. With p = exp(z - log_sum) its derivatives in z are
//   gradient  g = mass p - q,   Hessian  mass (diag p - p p').
// Only log_sum is kept of a row besides its logits: p is formed again, once for all k tangents.
#pragma once

#include <type_traits>

#include "numerics/macros.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::curvature {

// "real" is the type of the arithmetic: float64 for float64, else float32. Rows lie as [outer, inner]: the classes of a
// row are `inner` elements apart.
struct CrossEntropyRows {
  const void* logits;         // [outer, classes, inner] of `kind`
  const int64_t* target;      // [outer, inner], or null
  const void* probabilities;  // [outer, classes, inner] of `kind`, or null; without any target q = 0
  const void* class_weight;   // [classes] real, or null: ones
  const void* factor;         // [outer, inner] real; a row with factor 0 is not read: all of it is 0
  double smoothing;
  int64_t outer;
  int64_t classes;
  int64_t inner;
  ScalarKind kind;  // any of them
};

struct CrossEntropyForwardParams {
  CrossEntropyRows rows;
  void* log_sum;  // [outer, inner] real
  void* mass;     // [outer, inner] real
  void* loss;     // [outer, inner] real; NaN where the target is no class
};

// out[j, i] = g[i] . tangents[j, i]
struct CrossEntropyTangentParams {
  CrossEntropyRows rows;
  const void* log_sum;   // [outer, inner] real
  const void* mass;      // [outer, inner] real
  const void* tangents;  // [k, outer, classes, inner] of `kind`
  void* out;             // [k, outer, inner] real
  int64_t k;
};

// out[j, i, :] = adjoints[j, i] g[i] + curvature[i] (p * u - p (p . u)),  u = tangents[j, i, :]
struct CrossEntropyAdjointParams {
  CrossEntropyRows rows;
  const void* log_sum;    // [outer, inner] real
  const void* mass;       // [outer, inner] real
  const void* adjoints;   // [k, outer, inner] real, or null: zeros
  const void* curvature;  // [outer, inner] real, or null with `tangents`: zeros
  const void* tangents;   // [k, outer, classes, inner] of `kind`, or null
  void* out;              // [k, outer, classes, inner] of `kind`; may be the memory of `tangents`
  int64_t k;
};

// Where the first class of a row lies.
LSFAST_HD int64_t first_logit(const CrossEntropyRows& rows, int64_t row) {
  return rows.inner == 1 ? row * rows.classes : row / rows.inner * rows.classes * rows.inner + row % rows.inner;
}

// The CPU works on items, any range on any thread: a row where inner is 1, else kCrossEntropyLanes neighbouring rows.
constexpr int kCrossEntropyLanes = 16;

inline int64_t cross_entropy_items(const CrossEntropyRows& rows) {
  return rows.inner == 1 ? rows.outer : rows.outer * ((rows.inner + kCrossEntropyLanes - 1) / kCrossEntropyLanes);
}

// Each call is lent memory of its own for `scratch`: this many real numbers.
inline int64_t cross_entropy_scratch(const CrossEntropyRows& rows) {
  return 2 * rows.classes * (rows.inner == 1 ? 1 : kCrossEntropyLanes);
}

struct CrossEntropyKernels {
  void (*forward)(const CrossEntropyForwardParams&, void* scratch, int64_t begin, int64_t end);
  void (*tangent)(const CrossEntropyTangentParams&, void* scratch, int64_t begin, int64_t end);
  void (*adjoint)(const CrossEntropyAdjointParams&, void* scratch, int64_t begin, int64_t end);
};

const char* launch_cross_entropy_forward(const CrossEntropyForwardParams& params, Stream stream);
const char* launch_cross_entropy_tangent(const CrossEntropyTangentParams& params, Stream stream);
const char* launch_cross_entropy_adjoint(const CrossEntropyAdjointParams& params, Stream stream);

// -- the arithmetic both backends share -------------------------------------------------------------------------------

// The label q of one row: `soft` for every class, and `hot` more at the class `target` (-1: at none).
template <class T>
struct CrossEntropyLabel {
  using F = Arithmetic<T>;
  const T* probabilities;  // of this row, `stride` apart; or null
  const F* class_weight;   // or null
  int64_t stride;
  F factor;
  F keep;   // 1 - smoothing
  F share;  // smoothing / classes
  F hot;
  int64_t target;
  bool is_soft;     // whether `soft` is not all 0
  bool is_a_class;  // false where a target is given that is none

  LSFAST_HD CrossEntropyLabel(const CrossEntropyRows& rows, int64_t row) {
    const int64_t first = first_logit(rows, row);
    probabilities = rows.probabilities == nullptr ? nullptr : static_cast<const T*>(rows.probabilities) + first;
    class_weight = static_cast<const F*>(rows.class_weight);
    stride = rows.inner;
    factor = static_cast<const F*>(rows.factor)[row];
    keep = static_cast<F>(1.0 - rows.smoothing);
    share = static_cast<F>(rows.smoothing / static_cast<double>(rows.classes));
    is_soft = probabilities != nullptr || (rows.target != nullptr && rows.smoothing != 0.0);
    target = rows.target == nullptr ? -1 : rows.target[row];
    is_a_class = rows.target == nullptr || (target >= 0 && target < rows.classes);
    target = is_a_class ? target : -1;
    hot = target < 0 ? F(0) : factor * (keep * weight(target));
  }

  LSFAST_HD F weight(int64_t c) const { return class_weight == nullptr ? F(1) : class_weight[c]; }

  LSFAST_HD F soft(int64_t c) const {
    const F label = probabilities == nullptr ? share : keep * widen(probabilities[c * stride]) + share;
    return factor * (weight(c) * label);
  }
};

}  // namespace lsfast::curvature
