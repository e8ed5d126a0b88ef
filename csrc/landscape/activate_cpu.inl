// CPU kernels of activations: one pass in place, bound by memory (relu) or by some twenty operations a number (gelu).
#include "landscape/activate.h"

namespace lsfast::landscape::LSFAST_ISA {

template <Activate kActivation, class T>
void activate_rows(const ActivateParams& p, int64_t begin, int64_t end) {
  using F = Arithmetic<T>;
  for (int64_t row = begin; row < end; ++row) {
    const int64_t first = row * p.columns;
    const int64_t count = std::min(p.columns, p.n - first);
    T* const y = static_cast<T*>(p.y) + first;
    if (p.added == Added::kNothing) {
      for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(activated<kActivation, F>(widen(y[i])));
    } else {
      const T* const x = static_cast<const T*>(p.x) + p.first_of_x(row);
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) y[i] = narrow<T>(activated<kActivation, F>(widen(y[i]) + widen(x[i])));
    }
  }
}

void activate(const ActivateParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_ACTIVATION(p.activation,
                             LSFAST_DISPATCH(p.kind, (activate_rows<kActivation, scalar_t>(p, begin, end))));
}

constexpr ActivateKernels kActivateKernels = {activate};

}  // namespace lsfast::landscape::LSFAST_ISA
