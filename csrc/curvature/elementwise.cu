// CUDA kernels of elementwise operations: bound by memory, 16 bytes an access where alignment allows.
#include "curvature/elementwise.h"

#include "platform/launch.h"

namespace lsfast::curvature {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kEnoughBlocks = 1024;  // with fewer, the rows are spread over blocks too

// A thread holds its factors in registers while the rows pass by. Bytes: reads the factors once, a and b once, writes
// out once.
template <class T, int kCount, bool kTwo>
__global__ void __launch_bounds__(kThreads) combine_kernel(CombineParams p) {
  using P = Pack<T, kCount>;
  const int64_t packs = p.n / kCount;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += threads) {
    const P f = static_cast<const P*>(p.f)[i];
    P g{};
    if constexpr (kTwo) g = static_cast<const P*>(p.g)[i];
    for (int64_t row = blockIdx.y; row < p.k; row += gridDim.y) {
      const P a = static_cast<const P*>(p.a)[row * (p.a_stride / kCount) + i];
      P b{};
      if constexpr (kTwo) b = static_cast<const P*>(p.b)[row * (p.b_stride / kCount) + i];
      P out;
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        Arithmetic<T> value = widen(a.element[e]) * widen(f.element[e]);
        if constexpr (kTwo) value = value + widen(b.element[e]) * widen(g.element[e]);
        out.element[e] = narrow<T>(value);
      }
      static_cast<P*>(p.out)[row * (p.out_stride / kCount) + i] = out;
    }
  }
}

template <class T, int kCount>
const char* combine_packed(const CombineParams& p, Stream stream) {
  const unsigned blocks = grid_size(p.n / kCount, kThreads);
  const dim3 grid(blocks, blocks < kEnoughBlocks ? grid_size(p.k, 1, 65535) : 1);
  if (p.b == nullptr) return LSFAST_LAUNCH((combine_kernel<T, kCount, false>), grid, dim3(kThreads), 0, stream, p);
  return LSFAST_LAUNCH((combine_kernel<T, kCount, true>), grid, dim3(kThreads), 0, stream, p);
}

template <class T>
const char* combine_typed(const CombineParams& p, Stream stream) {
  constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  const bool packed = aligned_to_16(p.a) && aligned_to_16(p.f) && aligned_to_16(p.b) && aligned_to_16(p.g) &&
                      aligned_to_16(p.out) &&
                      (p.n | p.a_stride | p.b_stride | p.out_stride) % kCount == 0;  // kCount is a power of two
  return packed ? combine_packed<T, kCount>(p, stream) : combine_packed<T, 1>(p, stream);
}

}  // namespace

const char* launch_combine(const CombineParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return combine_typed<scalar_t>(p, stream));
  return "combine: unknown element type";
}

}  // namespace lsfast::curvature
