// CPU kernels of softmax. What belongs to a row (its probabilities) stays in cache for all k tangents.
#include "curvature/softmax.h"
#include "numerics/exponential.h"
#include "platform/reduction.h"

namespace lsfast::curvature::LSFAST_ISA {

// The largest of a row, in lanes so that it vectorizes; which one is found does not depend on the order. -inf for an
// empty row. A NaN may be passed over: it makes the sum NaN later.
template <class F>
LSFAST_HD F row_maximum(const F* row, int64_t count) {
  F lane[kSumLanes];
  for (int k = 0; k < kSumLanes; ++k) lane[k] = -std::numeric_limits<F>::infinity();
  const int64_t full = count / kSumLanes * kSumLanes;
  for (int64_t i = 0; i < full; i += kSumLanes) {
    for (int k = 0; k < kSumLanes; ++k) lane[k] = row[i + k] > lane[k] ? row[i + k] : lane[k];
  }
  for (int64_t i = full; i < count; ++i) lane[i - full] = row[i] > lane[i - full] ? row[i] : lane[i - full];
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) lane[k] = lane[k + half] > lane[k] ? lane[k + half] : lane[k];
  }
  return lane[0];
}

template <class F>
void probabilities_rows(const ProbabilitiesParams& p, int64_t begin, int64_t end) {
  for (int64_t index = begin; index < end; ++index) {
    F* const row = static_cast<F*>(p.scores) + index * p.cols;
    const int64_t seen = p.causal < 0 ? p.cols : std::min(p.cols, p.causal + index % p.rows + 1);
    const F largest = row_maximum(row, seen);
    // A row of -inf alone is subtracted from nothing and stays -inf: its exponentials are zeros.
    const F origin = largest == -std::numeric_limits<F>::infinity() ? F(0) : largest;
    for (int64_t c = 0; c < seen; ++c) row[c] = exponential(row[c] - origin);
    const F total = ordered_sum<F>(seen, [&](int64_t c) { return row[c]; });
    const F inverse = total == F(0) ? F(0) : F(1) / total;
    for (int64_t c = 0; c < seen; ++c) row[c] *= inverse;
    for (int64_t c = seen; c < p.cols; ++c) row[c] = F(0);
  }
}

template <class T>
void softmax_tangent_rows(const SoftmaxTangentParams& p, int64_t begin, int64_t end) {
  using F = typename SoftmaxArithmetic<T>::Type;
  const int64_t cols = p.cols;
  for (int64_t row = begin; row < end; ++row) {
    const F* const probability = static_cast<const F*>(p.probability) + row * cols;
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t at = j * p.rows + row;
      const T* const tangent = static_cast<const T*>(p.tangents) + at * cols;
      T* const out = static_cast<T*>(p.out) + (p.output == SoftmaxOutput::kLogSumExp ? at : at * cols);
      const auto t = [&](int64_t c) { return softmax_load<F>(tangent[c]); };
      if (p.output == SoftmaxOutput::kLogSoftmaxAdjoint) {
        const F total = ordered_sum<F>(cols, [&](int64_t c) { return t(c); });
#pragma GCC ivdep
        for (int64_t c = 0; c < cols; ++c) out[c] = softmax_store<T>(t(c) - probability[c] * total);
        continue;
      }
      const F mean = ordered_sum<F>(cols, [&](int64_t c) { return probability[c] * t(c); });
      if (p.output == SoftmaxOutput::kLogSumExp) {
        *out = softmax_store<T>(mean);
      } else if (p.output == SoftmaxOutput::kLogSoftmax) {
#pragma GCC ivdep
        for (int64_t c = 0; c < cols; ++c) out[c] = softmax_store<T>(t(c) - mean);
      } else {
#pragma GCC ivdep
        for (int64_t c = 0; c < cols; ++c) out[c] = softmax_store<T>(probability[c] * (t(c) - mean));
      }
    }
  }
}

template <class T>
void softmax_adjoint_tangent_rows(const SoftmaxAdjointTangentParams& p, int64_t begin, int64_t end) {
  using F = typename SoftmaxArithmetic<T>::Type;
  const int64_t cols = p.cols;
  for (int64_t row = begin; row < end; ++row) {
    const F* const probability = static_cast<const F*>(p.probability) + row * cols;
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t at = j * p.rows + row;
      const T* const tangent = static_cast<const T*>(p.tangents) + at * cols;
      T* const out = static_cast<T*>(p.out) + at * cols;
      const auto t = [&](int64_t c) { return softmax_load<F>(tangent[c]); };
      const F mean = ordered_sum<F>(cols, [&](int64_t c) { return probability[c] * t(c); });
      if (p.output == SoftmaxOutput::kSoftmax) {
        const F* const centered = static_cast<const F*>(p.centered) + row * cols;
        const T* const adjoint = static_cast<const T*>(p.adjoints) + at * cols;
        const auto u = [&](int64_t c) { return centered[c] * (t(c) - mean) + softmax_load<F>(adjoint[c]); };
        const F mean_u = ordered_sum<F>(cols, [&](int64_t c) { return probability[c] * u(c); });
        if (p.tangents_out != nullptr) {
          T* const tangent_out = static_cast<T*>(p.tangents_out) + at * cols;
#pragma GCC ivdep
          for (int64_t c = 0; c < cols; ++c) {
            const F result = probability[c] * (u(c) - mean_u);
            const F moved = probability[c] * (t(c) - mean);
            out[c] = softmax_store<T>(result);
            tangent_out[c] = softmax_store<T>(moved);
          }
        } else {
#pragma GCC ivdep
          for (int64_t c = 0; c < cols; ++c) out[c] = softmax_store<T>(probability[c] * (u(c) - mean_u));
        }
        continue;
      }
      const F factor = static_cast<const F*>(p.centered)[row];
      if (p.output == SoftmaxOutput::kLogSoftmax) {
        const T* const adjoint = static_cast<const T*>(p.adjoints) + at * cols;
        const auto a = [&](int64_t c) { return softmax_load<F>(adjoint[c]); };
        const F total = ordered_sum<F>(cols, [&](int64_t c) { return a(c); });
#pragma GCC ivdep
        for (int64_t c = 0; c < cols; ++c) {
          out[c] = softmax_store<T>(a(c) - probability[c] * (total + factor * (t(c) - mean)));
        }
      } else {
        const F a = softmax_load<F>(static_cast<const T*>(p.adjoints)[at]);
#pragma GCC ivdep
        for (int64_t c = 0; c < cols; ++c) {
          out[c] = softmax_store<T>(probability[c] * (a + factor * (t(c) - mean)));
        }
      }
    }
  }
}

void probabilities(const ProbabilitiesParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, probabilities_rows<scalar_t>(p, begin, end));
}
void softmax_tangent(const SoftmaxTangentParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, softmax_tangent_rows<scalar_t>(p, begin, end));
}
void softmax_adjoint_tangent(const SoftmaxAdjointTangentParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, softmax_adjoint_tangent_rows<scalar_t>(p, begin, end));
}

constexpr SoftmaxKernels kSoftmaxKernels = {probabilities, softmax_tangent, softmax_adjoint_tangent};

}  // namespace lsfast::curvature::LSFAST_ISA
