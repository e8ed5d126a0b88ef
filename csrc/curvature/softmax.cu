// CUDA kernels of softmax: a warp has a row of logits and goes through its k tangents.
#include "curvature/softmax.h"
#include "platform/launch.h"

namespace lsfast::curvature {
namespace {

constexpr int kWarpsPerBlock = 8;

template <class F>
__device__ __forceinline__ F warp_largest(F value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const F other = __shfl_xor_sync(kFullWarp, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

// Bytes: reads the logits of a row k + 3 times, all but the first from cache; reads the tangents twice, the second time
// from cache; writes the products once.
template <class F>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize) softmax_hessian_kernel(SoftmaxHessianParams p) {
  const int lane = threadIdx.x % kWarpSize;
  const int64_t warps = static_cast<int64_t>(gridDim.x) * kWarpsPerBlock;
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize; row < p.rows;
       row += warps) {
    const F* const logits = static_cast<const F*>(p.logits) + row * p.classes;
    const F scale = static_cast<const F*>(p.row_scale)[row];
    F largest = logits[0];
    for (int64_t c = lane; c < p.classes; c += kWarpSize) largest = logits[c] > largest ? logits[c] : largest;
    largest = warp_largest(largest);
    F total = F(0);
    for (int64_t c = lane; c < p.classes; c += kWarpSize) total += exp(logits[c] - largest);
    total = warp_sum(total);
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t offset = (j * p.rows + row) * p.classes;
      const F* const tangent = static_cast<const F*>(p.tangents) + offset;
      F* const out = static_cast<F*>(p.out) + offset;
      F mean = F(0);
      for (int64_t c = lane; c < p.classes; c += kWarpSize) mean += exp(logits[c] - largest) / total * tangent[c];
      mean = warp_sum(mean);
      for (int64_t c = lane; c < p.classes; c += kWarpSize) {
        out[c] = scale * (exp(logits[c] - largest) / total * (tangent[c] - mean));
      }
    }
  }
}

template <class F>
const char* softmax_hessian_typed(const SoftmaxHessianParams& p, Stream stream) {
  const unsigned blocks = grid_size(p.rows, kWarpsPerBlock);
  return LSFAST_LAUNCH(softmax_hessian_kernel<F>, dim3(blocks), dim3(kWarpsPerBlock * kWarpSize), 0, stream, p);
}

}  // namespace

const char* launch_softmax_hessian(const SoftmaxHessianParams& p, Stream stream) {
  LSFAST_DISPATCH_REAL(p.kind, return softmax_hessian_typed<scalar_t>(p, stream));
  return "softmax_hessian: unknown element type";
}

}  // namespace lsfast::curvature
