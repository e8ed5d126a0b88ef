// CPU kernels of elementwise operations. Bound by memory: each row is read and written once, and a tile of the factors
// is read once for all rows.
#include "curvature/elementwise.h"

namespace lsfast::curvature::LSFAST_ISA {

template <class T>
void combine_range(const CombineParams& p, int64_t begin, int64_t end) {
  for (int64_t id = begin; id < end; ++id) {
    const int64_t first = id / p.k * kCombineTile;
    const int64_t row = id % p.k;
    const int64_t count = std::min(kCombineTile, p.n - first);
    const T* const a = static_cast<const T*>(p.a) + row * p.a_stride + first;
    const T* const f = static_cast<const T*>(p.f) + first;
    T* const out = static_cast<T*>(p.out) + row * p.out_stride + first;
    // Element i of out depends on element i of a and b alone, so out may be either of them.
    if (p.b == nullptr) {
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(widen(a[i]) * widen(f[i]));
    } else {
      const T* const b = static_cast<const T*>(p.b) + row * p.b_stride + first;
      const T* const g = static_cast<const T*>(p.g) + first;
#pragma GCC ivdep
      for (int64_t i = 0; i < count; ++i) out[i] = narrow<T>(widen(a[i]) * widen(f[i]) + widen(b[i]) * widen(g[i]));
    }
  }
}

void combine(const CombineParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, combine_range<scalar_t>(p, begin, end));
}

constexpr ElementwiseKernels kElementwiseKernels = {combine};

}  // namespace lsfast::curvature::LSFAST_ISA
