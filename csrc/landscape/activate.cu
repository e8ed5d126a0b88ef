// CUDA kernels of activations: bound by memory, 16 bytes an access where alignment allows.
#include "landscape/activate.h"
#include "platform/launch.h"

namespace lsfast::landscape {
namespace {

constexpr int kThreads = 256;

// Grid: (packs of a row, rows). Bytes: reads y and what is added once (a bias from cache after its first row), writes
// y.
template <Activate kActivation, class T, int kCount>
__global__ void __launch_bounds__(kThreads) activate_kernel(ActivateParams p) {
  using F = Arithmetic<T>;
  using P = Pack<T, kCount>;
  const int64_t rows = p.rows();
  for (int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    const int64_t first = row * p.columns;
    const int64_t count = p.columns < p.n - first ? p.columns : p.n - first;
    T* const y = static_cast<T*>(p.y) + first;
    const T* const x = p.added == Added::kNothing ? y : static_cast<const T*>(p.x) + p.first_of_x(row);
    for (int64_t i = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kCount; i < count;
         i += static_cast<int64_t>(gridDim.x) * kThreads * kCount) {
      P value = *reinterpret_cast<const P*>(y + i);
      const P other = *reinterpret_cast<const P*>(x + i);
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        F v = widen(value.element[e]);
        if (p.added != Added::kNothing) v = v + widen(other.element[e]);
        value.element[e] = narrow<T>(activated<kActivation, F>(v));
      }
      *reinterpret_cast<P*>(y + i) = value;
    }
  }
}

template <Activate kActivation, class T>
const char* activate_typed(const ActivateParams& p, Stream stream) {
  constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  const unsigned rows = grid_size(p.rows(), 1, 65535);
  if (p.columns % kCount == 0 && p.n % kCount == 0 && aligned_to_16(p.y) && aligned_to_16(p.x)) {
    const dim3 grid(grid_size(p.columns / kCount, kThreads, 1024), rows);
    return LSFAST_LAUNCH((activate_kernel<kActivation, T, kCount>), grid, dim3(kThreads), 0, stream, p);
  }
  const dim3 grid(grid_size(p.columns, kThreads, 1024), rows);
  return LSFAST_LAUNCH((activate_kernel<kActivation, T, 1>), grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

const char* launch_activate(const ActivateParams& p, Stream stream) {
  LSFAST_DISPATCH_ACTIVATION(p.activation,
                             LSFAST_DISPATCH(p.kind, return (activate_typed<kActivation, scalar_t>(p, stream))));
  return "activate_: unknown activation or element type";
}

}  // namespace lsfast::landscape
