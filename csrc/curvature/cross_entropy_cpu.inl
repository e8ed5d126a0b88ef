// CPU kernels of cross-entropy. p and the gradient g of an item are formed once in `scratch` and used by all k
// tangents. Sums over classes: ordered_sum where the classes of a row are neighbours; else of 64 classes at a time, in
// order.
#include "curvature/cross_entropy.h"
#include "numerics/exponential.h"
#include "platform/reduction.h"

namespace lsfast::curvature::LSFAST_ISA {

// Largest of `count` numbers; NaN is passed over, and comes back in what is made with it.
template <class F, class Term>
LSFAST_HD F largest_of(int64_t count, const Term& term) {
  F lane[kSumLanes];
  for (int l = 0; l < kSumLanes; ++l) lane[l] = term(0);
  const int64_t full = count / kSumLanes * kSumLanes;
  for (int64_t i = 0; i < full; i += kSumLanes) {
    for (int l = 0; l < kSumLanes; ++l) lane[l] = term(i + l) > lane[l] ? term(i + l) : lane[l];
  }
  for (int64_t i = full; i < count; ++i) lane[0] = term(i) > lane[0] ? term(i) : lane[0];
  for (int l = 1; l < kSumLanes; ++l) lane[0] = lane[l] > lane[0] ? lane[l] : lane[0];
  return lane[0];
}

// sums[l] = sum over c of term(c, l) for l < width.
template <class F, class Term>
LSFAST_HD void column_sums(int64_t classes, int width, F* sums, const Term& term) {
  for (int l = 0; l < width; ++l) sums[l] = F(0);
  for (int64_t first = 0; first < classes; first += 64) {
    const int64_t last = std::min<int64_t>(first + 64, classes);
    F part[kCrossEntropyLanes] = {};
    for (int64_t c = first; c < last; ++c) {
      for (int l = 0; l < width; ++l) part[l] += term(c, l);
    }
    for (int l = 0; l < width; ++l) sums[l] += part[l];
  }
}

// Where an item lies: `width` rows from `row` on, whose first logits are at `first`, classes `stride` apart.
struct CrossEntropyItem {
  int64_t row;
  int64_t first;
  int64_t stride;
  int width;

  LSFAST_HD CrossEntropyItem(const CrossEntropyRows& rows, int64_t item) {
    const int64_t groups = rows.inner == 1 ? 1 : (rows.inner + kCrossEntropyLanes - 1) / kCrossEntropyLanes;
    const int64_t lane = item % groups * kCrossEntropyLanes;
    row = item / groups * rows.inner + lane;
    first = item / groups * rows.classes * rows.inner + lane;
    stride = rows.inner;
    width = static_cast<int>(std::min<int64_t>(kCrossEntropyLanes, rows.inner - lane));
  }
};

template <class T>
LSFAST_HD void write_forward(const CrossEntropyForwardParams& p, int64_t row, Arithmetic<T> largest,
                             Arithmetic<T> total) {
  using F = Arithmetic<T>;
  const CrossEntropyRows& rows = p.rows;
  const CrossEntropyLabel<T> label(rows, row);
  const T* const z = static_cast<const T*>(rows.logits) + first_logit(rows, row);
  const F log_total = std::log(total);
  F mass = F(0), loss = F(0);
  if (label.factor != F(0)) {
    // Measured from the largest logit, which loses no digits where all are large.
    if (label.is_soft) {
      mass = ordered_sum<F>(rows.classes, [&](int64_t c) { return label.soft(c); });
      loss =
          ordered_sum<F>(rows.classes, [&](int64_t c) { return label.soft(c) * (largest - widen(z[c * rows.inner])); });
    }
    if (label.target >= 0) {
      mass += label.hot;
      loss += label.hot * (largest - widen(z[label.target * rows.inner]));
    }
    loss = label.is_a_class ? loss + mass * log_total : std::numeric_limits<F>::quiet_NaN();
  }
  static_cast<F*>(p.log_sum)[row] = largest + log_total;
  static_cast<F*>(p.mass)[row] = mass;
  static_cast<F*>(p.loss)[row] = loss;
}

// Rows of few classes, a lane each: what is a short loop for one row is a vector operation for kCrossEntropyLanes. The
// sums have the order, and the bits, of ordered_sum.
constexpr int64_t kShortRow = 64;

template <class T>
void forward_short_rows(const CrossEntropyForwardParams& p, int64_t begin, int64_t end) {
  using F = Arithmetic<T>;
  constexpr int kLanes = kCrossEntropyLanes;
  const int64_t classes = p.rows.classes;
  alignas(64) F tile[kShortRow][kLanes] = {};
  for (int64_t first = begin; first < end; first += kLanes) {
    const int width = static_cast<int>(std::min<int64_t>(kLanes, end - first));
    const T* const z = static_cast<const T*>(p.rows.logits) + first * classes;
    for (int l = 0; l < width; ++l) {
      for (int64_t c = 0; c < classes; ++c) tile[c][l] = widen(z[l * classes + c]);
    }
    alignas(64) F largest[kLanes];
    for (int l = 0; l < kLanes; ++l) largest[l] = tile[0][l];
    for (int64_t c = 1; c < classes; ++c) {
      for (int l = 0; l < kLanes; ++l) largest[l] = tile[c][l] > largest[l] ? tile[c][l] : largest[l];
    }
    for (int64_t c = 0; c < classes; ++c) {
      for (int l = 0; l < kLanes; ++l) tile[c][l] = exponential(tile[c][l] - largest[l]);
    }
    for (int64_t c = kSumLanes; c < classes; ++c) {
      for (int l = 0; l < kLanes; ++l) tile[c % kSumLanes][l] += tile[c][l];
    }
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
      for (int64_t c = 0; c < half && c + half < classes; ++c) {
        for (int l = 0; l < kLanes; ++l) tile[c][l] += tile[c + half][l];
      }
    }
    for (int l = 0; l < width; ++l) write_forward<T>(p, first + l, largest[l], tile[0][l]);
  }
}

template <class T>
void cross_entropy_forward_items(const CrossEntropyForwardParams& p, Arithmetic<T>* scratch, int64_t begin,
                                 int64_t end) {
  using F = Arithmetic<T>;
  const CrossEntropyRows& rows = p.rows;
  const int64_t classes = rows.classes;
  if (rows.inner == 1 && classes <= kShortRow) return forward_short_rows<T>(p, begin, end);
  for (int64_t index = begin; index < end; ++index) {
    const CrossEntropyItem item(rows, index);
    const T* const z = static_cast<const T*>(rows.logits) + item.first;
    if (rows.inner == 1) {
      const F largest = largest_of<F>(classes, [&](int64_t c) { return widen(z[c]); });
      for (int64_t c = 0; c < classes; ++c) scratch[c] = exponential(widen(z[c]) - largest);
      write_forward<T>(p, item.row, largest, ordered_sum<F>(classes, [&](int64_t c) { return scratch[c]; }));
      continue;
    }
    F largest[kCrossEntropyLanes], total[kCrossEntropyLanes];
    for (int l = 0; l < item.width; ++l) largest[l] = widen(z[l]);
    for (int64_t c = 1; c < classes; ++c) {
      for (int l = 0; l < item.width; ++l) {
        const F next = widen(z[c * item.stride + l]);
        largest[l] = next > largest[l] ? next : largest[l];
      }
    }
    column_sums(classes, item.width, total,
                [&](int64_t c, int l) { return exponential(widen(z[c * item.stride + l]) - largest[l]); });
    for (int l = 0; l < item.width; ++l) write_forward<T>(p, item.row + l, largest[l], total[l]);
  }
}

// p and g of an item, [classes, step] each, step 1 or kCrossEntropyLanes. A row of factor 0 gets zeros.
template <class T, class Params>
LSFAST_HD void form_item(const Params& p, const CrossEntropyItem& item, int step, Arithmetic<T>* probability,
                         Arithmetic<T>* gradient) {
  using F = Arithmetic<T>;
  const CrossEntropyRows& rows = p.rows;
  for (int l = 0; l < item.width; ++l) {
    const CrossEntropyLabel<T> label(rows, item.row + l);
    const T* const z = static_cast<const T*>(rows.logits) + item.first + l;
    const F log_sum = static_cast<const F*>(p.log_sum)[item.row + l];
    const F mass = static_cast<const F*>(p.mass)[item.row + l];
    if (label.factor == F(0)) {
      for (int64_t c = 0; c < rows.classes; ++c) probability[c * step + l] = gradient[c * step + l] = F(0);
      continue;
    }
    for (int64_t c = 0; c < rows.classes; ++c) {
      probability[c * step + l] = exponential(widen(z[c * item.stride]) - log_sum);
    }
    for (int64_t c = 0; c < rows.classes; ++c) gradient[c * step + l] = mass * probability[c * step + l];
    if (label.is_soft) {
      for (int64_t c = 0; c < rows.classes; ++c) gradient[c * step + l] -= label.soft(c);
    }
    if (label.target >= 0) gradient[label.target * step + l] -= label.hot;
  }
}

template <class T>
void cross_entropy_tangent_items(const CrossEntropyTangentParams& p, Arithmetic<T>* scratch, int64_t begin,
                                 int64_t end) {
  using F = Arithmetic<T>;
  const CrossEntropyRows& rows = p.rows;
  const int64_t classes = rows.classes, count = rows.outer * rows.inner;
  const int step = rows.inner == 1 ? 1 : kCrossEntropyLanes;
  F* const probability = scratch;
  F* const gradient = scratch + classes * step;
  for (int64_t index = begin; index < end; ++index) {
    const CrossEntropyItem item(rows, index);
    form_item<T>(p, item, step, probability, gradient);
    for (int64_t j = 0; j < p.k; ++j) {
      const T* const u = static_cast<const T*>(p.tangents) + j * count * classes + item.first;
      F* const out = static_cast<F*>(p.out) + j * count + item.row;
      if (step == 1) {
        *out = ordered_sum<F>(classes, [&](int64_t c) { return gradient[c] * widen(u[c]); });
      } else {
        column_sums(classes, item.width, out,
                    [&](int64_t c, int l) { return gradient[c * step + l] * widen(u[c * item.stride + l]); });
      }
    }
  }
}

template <class T>
void cross_entropy_adjoint_items(const CrossEntropyAdjointParams& p, Arithmetic<T>* scratch, int64_t begin,
                                 int64_t end) {
  using F = Arithmetic<T>;
  const CrossEntropyRows& rows = p.rows;
  const int64_t classes = rows.classes, count = rows.outer * rows.inner;
  const int step = rows.inner == 1 ? 1 : kCrossEntropyLanes;
  F* const probability = scratch;
  F* const gradient = scratch + classes * step;
  for (int64_t index = begin; index < end; ++index) {
    const CrossEntropyItem item(rows, index);
    form_item<T>(p, item, step, probability, gradient);
    F adjoint[kCrossEntropyLanes], curvature[kCrossEntropyLanes], mean[kCrossEntropyLanes] = {};
    for (int l = 0; l < item.width; ++l) {
      curvature[l] = p.tangents == nullptr ? F(0) : static_cast<const F*>(p.curvature)[item.row + l];
    }
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t offset = j * count * classes + item.first;
      const T* const u = p.tangents == nullptr ? nullptr : static_cast<const T*>(p.tangents) + offset;
      T* const out = static_cast<T*>(p.out) + offset;
      for (int l = 0; l < item.width; ++l) {
        adjoint[l] = p.adjoints == nullptr ? F(0) : static_cast<const F*>(p.adjoints)[j * count + item.row + l];
      }
      if (u == nullptr && step == 1) {
        const F a = adjoint[0];
        for (int64_t c = 0; c < classes; ++c) out[c] = narrow<T>(a * gradient[c]);
      } else if (u == nullptr) {
        for (int64_t c = 0; c < classes; ++c) {
          for (int l = 0; l < item.width; ++l) {
            out[c * item.stride + l] = narrow<T>(adjoint[l] * gradient[c * step + l]);
          }
        }
      } else if (step == 1) {
        const F a = adjoint[0], b = curvature[0];
        const F m = ordered_sum<F>(classes, [&](int64_t c) { return probability[c] * widen(u[c]); });
        for (int64_t c = 0; c < classes; ++c) {
          out[c] = narrow<T>(a * gradient[c] + b * (probability[c] * (widen(u[c]) - m)));
        }
      } else {
        column_sums(classes, item.width, mean,
                    [&](int64_t c, int l) { return probability[c * step + l] * widen(u[c * item.stride + l]); });
        for (int64_t c = 0; c < classes; ++c) {
          for (int l = 0; l < item.width; ++l) {
            const F moved = probability[c * step + l] * (widen(u[c * item.stride + l]) - mean[l]);
            out[c * item.stride + l] = narrow<T>(adjoint[l] * gradient[c * step + l] + curvature[l] * moved);
          }
        }
      }
    }
  }
}

void cross_entropy_forward(const CrossEntropyForwardParams& p, void* scratch, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.rows.kind,
                  cross_entropy_forward_items<scalar_t>(p, static_cast<Arithmetic<scalar_t>*>(scratch), begin, end));
}

void cross_entropy_tangent(const CrossEntropyTangentParams& p, void* scratch, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.rows.kind,
                  cross_entropy_tangent_items<scalar_t>(p, static_cast<Arithmetic<scalar_t>*>(scratch), begin, end));
}

void cross_entropy_adjoint(const CrossEntropyAdjointParams& p, void* scratch, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.rows.kind,
                  cross_entropy_adjoint_items<scalar_t>(p, static_cast<Arithmetic<scalar_t>*>(scratch), begin, end));
}

constexpr CrossEntropyKernels kCrossEntropyKernels = {cross_entropy_forward, cross_entropy_tangent,
                                                      cross_entropy_adjoint};

}  // namespace lsfast::curvature::LSFAST_ISA
