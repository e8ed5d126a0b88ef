// CPU kernels of layer and RMS normalization: a row is taken for all k vectors while it is in cache. Formulas:
// normalization.h.
#include "curvature/normalization.h"
#include "platform/reduction.h"

namespace lsfast::curvature::LSFAST_ISA {

template <class T, bool kTangents, bool kParameters>
void row_norm_jvp_range(const RowNormParams& p, int64_t begin, int64_t end) {
  using F = Arithmetic<T>;
  const int64_t n = p.columns;
  const F* const weight = static_cast<const F*>(p.weight);
  for (int64_t row = begin; row < end; ++row) {
    const T* const x = element<T>(p.x, row * n);
    const F mean = p.mean == nullptr ? F(0) : static_cast<const F*>(p.mean)[row];
    const F rstd = static_cast<const F*>(p.rstd)[row];
    for (int64_t j = 0; j < p.k; ++j) {
      const T* const dx = element<T>(p.x_tangents, j * p.tangents_stride + row * n);
      const F* const dw = element<F>(p.weight_tangents, j * n);
      const F* const db = element<F>(p.bias_tangents, j * n);
      T* const out = static_cast<T*>(p.out) + (j * p.rows + row) * n;
      F m[2] = {};
      if constexpr (kTangents) {
        ordered_sums<F, 2>(n, m, [&](int64_t i, F* term) {
          term[0] = widen(dx[i]);
          term[1] = (widen(x[i]) - mean) * rstd * widen(dx[i]);
        });
        m[0] = p.mean == nullptr ? F(0) : m[0] / static_cast<F>(n);
        m[1] /= static_cast<F>(n);
      }
#pragma GCC ivdep
      for (int64_t i = 0; i < n; ++i) {
        const F xhat = (widen(x[i]) - mean) * rstd;
        F value = F(0);
        if constexpr (kTangents) value = weight[i] * (rstd * (widen(dx[i]) - m[0] - m[1] * xhat));
        if constexpr (kParameters) value += dw[i] * xhat + db[i];
        out[i] = narrow<T>(value);
      }
    }
  }
}

template <class T>
void row_norm_jvp_of(const RowNormParams& p, int64_t begin, int64_t end) {
  if (p.x_tangents == nullptr) return row_norm_jvp_range<T, false, true>(p, begin, end);
  if (p.weight_tangents == nullptr) return row_norm_jvp_range<T, true, false>(p, begin, end);
  row_norm_jvp_range<T, true, true>(p, begin, end);
}

void row_norm_jvp(const RowNormParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, row_norm_jvp_of<scalar_t>(p, begin, end));
}

// kTangents: x has tangents, so ybar is held; kWeight: so has w. (With tangents of w alone the sums are those of a
// vjp.)
template <class T, bool kTangents, bool kWeight>
void row_norm_vjp_range(const RowNormParams& p, int64_t begin, int64_t end) {
  using F = Arithmetic<T>;
  const int64_t n = p.columns;
  const F count = static_cast<F>(n);
  const F centred = p.mean == nullptr ? F(0) : F(1);
  const F* const weight = static_cast<const F*>(p.weight);
  for (int64_t part = begin; part < end; ++part) {
    const int64_t first = part * p.rows_per_part();
    const int64_t last = std::min(p.rows, first + p.rows_per_part());
    F* const partial = p.partial == nullptr ? nullptr : static_cast<F*>(p.partial) + part * n;
    const int64_t partial_stride = p.parts * n;
    if (partial != nullptr) {
      for (int64_t j = 0; j < 2 * p.k; ++j) std::memset(partial + j * partial_stride, 0, n * sizeof(F));
    }
    for (int64_t row = first; row < last; ++row) {
      const T* const x = element<T>(p.x, row * n);
      const T* const held = element<T>(p.held, row * n);
      const F mean = p.mean == nullptr ? F(0) : static_cast<const F*>(p.mean)[row];
      const F r = static_cast<const F*>(p.rstd)[row];
      F c[2] = {};
      if constexpr (kTangents) {
        ordered_sums<F, 2>(n, c, [&](int64_t i, F* term) {
          term[0] = weight[i] * widen(held[i]);
          term[1] = (widen(x[i]) - mean) * r * term[0];
        });
        c[0] *= centred / count;
        c[1] /= count;
      }
      for (int64_t j = 0; j < p.k; ++j) {
        const T* const adjoint = element<T>(p.adjoints, j * p.adjoints_stride + row * n);
        const T* const dx = element<T>(p.x_tangents, j * p.tangents_stride + row * n);
        const F* const dw = element<F>(p.weight_tangents, j * n);
        F s[5] = {};  // e1, e2, m1, m2, e3
        ordered_sums<F, kTangents ? 5 : 2>(n, s, [&](int64_t i, F* term) {
          const F xhat = (widen(x[i]) - mean) * r;
          F g = weight[i] * widen(adjoint[i]);
          if constexpr (kWeight) g += dw[i] * widen(held[i]);
          term[0] = g;
          term[1] = xhat * g;
          if constexpr (kTangents) {
            term[2] = widen(dx[i]);
            term[3] = xhat * widen(dx[i]);
            term[4] = weight[i] * widen(held[i]) * widen(dx[i]);
          }
        });
        const F e1 = centred * s[0] / count;
        const F e2 = s[1] / count;
        const F m1 = centred * s[2] / count;
        const F m2 = s[3] / count;
        const F offset = r * (m2 * c[0] + c[1] * m1) - e1;
        const F slope = -r * (s[4] / count - m1 * c[0] - F(3) * m2 * c[1]) - e2;
        if (p.out != nullptr) {
          T* const out = static_cast<T*>(p.out) + (j * p.rows + row) * n;
#pragma GCC ivdep
          for (int64_t i = 0; i < n; ++i) {
            const F xhat = (widen(x[i]) - mean) * r;
            F value = weight[i] * widen(adjoint[i]) + offset + slope * xhat;
            if constexpr (kWeight) value += dw[i] * widen(held[i]);
            if constexpr (kTangents) value -= r * (m2 * (weight[i] * widen(held[i])) + c[1] * widen(dx[i]));
            out[i] = narrow<T>(r * value);
          }
        }
        if (partial != nullptr) {
          F* const weight_sum = partial + j * partial_stride;
          F* const bias_sum = partial + (p.k + j) * partial_stride;
#pragma GCC ivdep
          for (int64_t i = 0; i < n; ++i) {
            const F xhat = (widen(x[i]) - mean) * r;
            F term = widen(adjoint[i]) * xhat;
            if constexpr (kTangents) term += widen(held[i]) * (r * (widen(dx[i]) - m1 - m2 * xhat));
            weight_sum[i] += term;
            bias_sum[i] += widen(adjoint[i]);
          }
        }
      }
    }
  }
}

template <class T>
void row_norm_vjp_of(const RowNormParams& p, int64_t begin, int64_t end) {
  if (p.x_tangents == nullptr) return row_norm_vjp_range<T, false, false>(p, begin, end);
  p.weight_tangents == nullptr ? row_norm_vjp_range<T, true, false>(p, begin, end)
                               : row_norm_vjp_range<T, true, true>(p, begin, end);
}

void row_norm_vjp(const RowNormParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, row_norm_vjp_of<scalar_t>(p, begin, end));
}

}  // namespace lsfast::curvature::LSFAST_ISA
