// CPU kernels of softmax. The softmax of a row is formed once and used by all k tangents.
#include "curvature/softmax.h"
#include "platform/reduction.h"

namespace lsfast::curvature::LSFAST_ISA {

template <class F>
void softmax_hessian_rows(const SoftmaxHessianParams& p, int64_t begin, int64_t end) {
  const int64_t classes = p.classes;
  // The first tangent's output row holds the probabilities until the last tangent is done, so nothing is allocated.
  for (int64_t row = begin; row < end; ++row) {
    const F* const logits = static_cast<const F*>(p.logits) + row * classes;
    const F scale = static_cast<const F*>(p.row_scale)[row];
    F largest = logits[0];
    for (int64_t c = 1; c < classes; ++c) largest = logits[c] > largest ? logits[c] : largest;
    F* const probability = static_cast<F*>(p.out) + row * classes;
    for (int64_t c = 0; c < classes; ++c) probability[c] = std::exp(logits[c] - largest);
    const F total = ordered_sum<F>(classes, [&](int64_t c) { return probability[c]; });
    for (int64_t c = 0; c < classes; ++c) probability[c] /= total;
    for (int64_t j = p.k - 1; j >= 0; --j) {
      const int64_t offset = (j * p.rows + row) * classes;
      const F* const tangent = static_cast<const F*>(p.tangents) + offset;
      F* const out = static_cast<F*>(p.out) + offset;
      const F mean = ordered_sum<F>(classes, [&](int64_t c) { return probability[c] * tangent[c]; });
      for (int64_t c = 0; c < classes; ++c) out[c] = scale * (probability[c] * (tangent[c] - mean));
    }
  }
}

void softmax_hessian(const SoftmaxHessianParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, softmax_hessian_rows<scalar_t>(p, begin, end));
}

constexpr SoftmaxKernels kSoftmaxKernels = {softmax_hessian};

}  // namespace lsfast::curvature::LSFAST_ISA
