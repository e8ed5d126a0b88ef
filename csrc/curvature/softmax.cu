// CUDA kernels of softmax: a warp has a row of probabilities and goes through its k tangents.
//
// A row is read once for each sum and once for the result; all but the first reading come from cache. Where the length
// and the pointers allow, a lane moves kPack neighbouring elements in one access.
#include "curvature/softmax.h"
#include "numerics/exponential.h"
#include "platform/launch.h"

namespace lsfast::curvature {
namespace {

constexpr int kWarpsPerBlock = 8;
// Elements a lane moves at once: 16 bytes of the type of the arithmetic.
template <class T>
constexpr int kPack = 16 / sizeof(typename SoftmaxArithmetic<T>::Type);

template <class F>
__device__ __forceinline__ F warp_largest(F value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const F other = __shfl_xor_sync(kFullWarp, value, offset);
    value = other > value ? other : value;
  }
  return value;
}

__device__ __forceinline__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarpSize;
}
__device__ __forceinline__ int64_t row_step() { return static_cast<int64_t>(gridDim.x) * kWarpsPerBlock; }

// `width` neighbouring elements of a row in the type of the arithmetic.
template <class F, int width>
struct Values {
  F element[width];
};

template <class F, int width, class T>
__device__ __forceinline__ Values<F, width> load(const T* row, int64_t c) {
  const Pack<T, width> pack = *reinterpret_cast<const Pack<T, width>*>(row + c);
  Values<F, width> values;
  LSFAST_UNROLL
  for (int e = 0; e < width; ++e) values.element[e] = softmax_load<F>(pack.element[e]);
  return values;
}

template <class F, int width, class T>
__device__ __forceinline__ void store(T* row, int64_t c, const Values<F, width>& values) {
  Pack<T, width> pack;
  LSFAST_UNROLL
  for (int e = 0; e < width; ++e) pack.element[e] = softmax_store<T>(values.element[e]);
  *reinterpret_cast<Pack<T, width>*>(row + c) = pack;
}

// Bytes: reads and writes the scores once; the two readings after the first come from cache.
template <class F, int width>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize) probabilities_kernel(ProbabilitiesParams p) {
  const int lane = threadIdx.x % kWarpSize;
  const F lowest = -bit_cast<F>(FloatLayout<F>::kInfinity);
  for (int64_t index = first_row(); index < p.matrices * p.rows; index += row_step()) {
    F* const row = static_cast<F*>(p.scores) + index * p.cols;
    const int64_t last = p.causal < 0 ? p.cols : p.causal + index % p.rows + 1;
    F largest = lowest;
    for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
      const Values<F, width> x = load<F, width>(row, c);
      LSFAST_UNROLL
      for (int e = 0; e < width; ++e) largest = c + e < last && x.element[e] > largest ? x.element[e] : largest;
    }
    largest = warp_largest(largest);
    const F origin = largest == lowest ? F(0) : largest;
    F total = F(0);
    for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
      const Values<F, width> x = load<F, width>(row, c);
      LSFAST_UNROLL
      for (int e = 0; e < width; ++e) total += c + e < last ? exponential(x.element[e] - origin) : F(0);
    }
    total = warp_sum(total);
    const F inverse = total == F(0) ? F(0) : F(1) / total;
    for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
      Values<F, width> x = load<F, width>(row, c);
      LSFAST_UNROLL
      for (int e = 0; e < width; ++e) {
        x.element[e] = c + e < last ? exponential(x.element[e] - origin) * inverse : F(0);
      }
      store(row, c, x);
    }
  }
}

// Bytes: reads the probabilities of a row once (k - 1 times more from cache) and the tangents once; writes the results.
template <class T, int width>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize) softmax_tangent_kernel(SoftmaxTangentParams p) {
  using F = typename SoftmaxArithmetic<T>::Type;
  const int lane = threadIdx.x % kWarpSize;
  const bool adjoint = p.output == SoftmaxOutput::kLogSoftmaxAdjoint;
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const F* const probability = static_cast<const F*>(p.probability) + row * p.cols;
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t at = j * p.rows + row;
      const T* const tangent = static_cast<const T*>(p.tangents) + at * p.cols;
      F sum = F(0);
      for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
        const Values<F, width> t = load<F, width>(tangent, c);
        const Values<F, width> w = load<F, width>(probability, c);
        LSFAST_UNROLL
        for (int e = 0; e < width; ++e) sum += adjoint ? t.element[e] : w.element[e] * t.element[e];
      }
      sum = warp_sum(sum);
      if (p.output == SoftmaxOutput::kLogSumExp) {
        if (lane == 0) static_cast<T*>(p.out)[at] = softmax_store<T>(sum);
        continue;
      }
      T* const out = static_cast<T*>(p.out) + at * p.cols;
      for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
        Values<F, width> t = load<F, width>(tangent, c);
        const Values<F, width> w = load<F, width>(probability, c);
        LSFAST_UNROLL
        for (int e = 0; e < width; ++e) {
          const F less = t.element[e] - (adjoint ? w.element[e] * sum : sum);
          t.element[e] = p.output == SoftmaxOutput::kSoftmax ? w.element[e] * less : less;
        }
        store(out, c, t);
      }
    }
  }
}

// Bytes: reads probabilities, centered adjoint, tangents and adjoints once (more from cache); writes one or two
// results.
template <class T, int width>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    softmax_adjoint_tangent_kernel(SoftmaxAdjointTangentParams p) {
  using F = typename SoftmaxArithmetic<T>::Type;
  const int lane = threadIdx.x % kWarpSize;
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const F* const probability = static_cast<const F*>(p.probability) + row * p.cols;
    const F* const centered = static_cast<const F*>(p.centered) + row * p.cols;
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t at = j * p.rows + row;
      const T* const tangent = static_cast<const T*>(p.tangents) + at * p.cols;
      const T* const adjoint = static_cast<const T*>(p.adjoints) + at * p.cols;
      F mean = F(0);
      for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
        const Values<F, width> t = load<F, width>(tangent, c);
        const Values<F, width> w = load<F, width>(probability, c);
        LSFAST_UNROLL
        for (int e = 0; e < width; ++e) mean += w.element[e] * t.element[e];
      }
      mean = warp_sum(mean);
      F mean_u = F(0);
      for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
        const Values<F, width> t = load<F, width>(tangent, c);
        const Values<F, width> w = load<F, width>(probability, c);
        const Values<F, width> b = load<F, width>(centered, c);
        const Values<F, width> a = load<F, width>(adjoint, c);
        LSFAST_UNROLL
        for (int e = 0; e < width; ++e) {
          mean_u += w.element[e] * (b.element[e] * (t.element[e] - mean) + a.element[e]);
        }
      }
      mean_u = warp_sum(mean_u);
      T* const out = static_cast<T*>(p.out) + at * p.cols;
      for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
        Values<F, width> t = load<F, width>(tangent, c);
        const Values<F, width> w = load<F, width>(probability, c);
        const Values<F, width> b = load<F, width>(centered, c);
        Values<F, width> a = load<F, width>(adjoint, c);
        LSFAST_UNROLL
        for (int e = 0; e < width; ++e) {
          const F less = t.element[e] - mean;
          a.element[e] = w.element[e] * ((b.element[e] * less + a.element[e]) - mean_u);
          t.element[e] = w.element[e] * less;
        }
        store(out, c, a);
        if (p.tangents_out != nullptr) store(static_cast<T*>(p.tangents_out) + at * p.cols, c, t);
      }
    }
  }
}

// The same of log_softmax and logsumexp. Bytes: reads probabilities, tangents and adjoints once; writes the results.
template <class T, int width>
__global__ void __launch_bounds__(kWarpsPerBlock* kWarpSize)
    logarithm_adjoint_tangent_kernel(SoftmaxAdjointTangentParams p) {
  using F = typename SoftmaxArithmetic<T>::Type;
  const int lane = threadIdx.x % kWarpSize;
  const bool whole_row = p.output == SoftmaxOutput::kLogSoftmax;
  for (int64_t row = first_row(); row < p.rows; row += row_step()) {
    const F* const probability = static_cast<const F*>(p.probability) + row * p.cols;
    const F factor = static_cast<const F*>(p.centered)[row];
    for (int64_t j = 0; j < p.k; ++j) {
      const int64_t at = j * p.rows + row;
      const T* const tangent = static_cast<const T*>(p.tangents) + at * p.cols;
      const T* const adjoint = static_cast<const T*>(p.adjoints) + (whole_row ? at * p.cols : at);
      F mean = F(0);
      F total = F(0);
      for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
        const Values<F, width> t = load<F, width>(tangent, c);
        const Values<F, width> w = load<F, width>(probability, c);
        Values<F, width> a{};
        if (whole_row) a = load<F, width>(adjoint, c);
        LSFAST_UNROLL
        for (int e = 0; e < width; ++e) {
          mean += w.element[e] * t.element[e];
          total += a.element[e];
        }
      }
      mean = warp_sum(mean);
      total = whole_row ? warp_sum(total) : softmax_load<F>(adjoint[0]);
      T* const out = static_cast<T*>(p.out) + at * p.cols;
      for (int64_t c = lane * width; c < p.cols; c += kWarpSize * width) {
        Values<F, width> t = load<F, width>(tangent, c);
        const Values<F, width> w = load<F, width>(probability, c);
        Values<F, width> a{};
        if (whole_row) a = load<F, width>(adjoint, c);
        LSFAST_UNROLL
        for (int e = 0; e < width; ++e) {
          const F change = w.element[e] * (total + factor * (t.element[e] - mean));
          t.element[e] = whole_row ? a.element[e] - change : change;
        }
        store(out, c, t);
      }
    }
  }
}

// Whether rows of `cols` elements can be moved in packs: every row begins at a multiple of 16 bytes.
bool packs(int64_t cols, const void* a, const void* b, const void* c, const void* d = nullptr,
           const void* e = nullptr) {
  bool aligned = cols % 4 == 0;
  for (const void* pointer : {a, b, c, d, e}) aligned = aligned && aligned_to_16(pointer);
  return aligned;
}

dim3 blocks_of(int64_t rows) { return dim3(grid_size(rows, kWarpsPerBlock)); }
const dim3 kBlock(kWarpsPerBlock* kWarpSize);

template <class F, int width>
const char* probabilities_typed(const ProbabilitiesParams& p, Stream stream) {
  return LSFAST_LAUNCH((probabilities_kernel<F, width>), blocks_of(p.matrices * p.rows), kBlock, 0, stream, p);
}

template <class T, int width>
const char* softmax_tangent_typed(const SoftmaxTangentParams& p, Stream stream) {
  return LSFAST_LAUNCH((softmax_tangent_kernel<T, width>), blocks_of(p.rows), kBlock, 0, stream, p);
}

template <class T, int width>
const char* softmax_adjoint_tangent_typed(const SoftmaxAdjointTangentParams& p, Stream stream) {
  if (p.output == SoftmaxOutput::kSoftmax) {
    return LSFAST_LAUNCH((softmax_adjoint_tangent_kernel<T, width>), blocks_of(p.rows), kBlock, 0, stream, p);
  }
  constexpr int kWidth = sizeof(T) == 8 ? 1 : width;  // two doubles at once do not fit the registers
  return LSFAST_LAUNCH((logarithm_adjoint_tangent_kernel<T, kWidth>), blocks_of(p.rows), kBlock, 0, stream, p);
}

}  // namespace

const char* launch_probabilities(const ProbabilitiesParams& p, Stream stream) {
  const bool wide = packs(p.cols, p.scores, nullptr, nullptr);
  LSFAST_DISPATCH_REAL(p.kind, return wide ? probabilities_typed<scalar_t, kPack<scalar_t>>(p, stream)
                                           : probabilities_typed<scalar_t, 1>(p, stream));
  return "attention_probabilities: unknown element type";
}

const char* launch_softmax_tangent(const SoftmaxTangentParams& p, Stream stream) {
  const bool wide = packs(p.cols, p.probability, p.tangents, p.out);
  LSFAST_DISPATCH(p.kind, return wide ? softmax_tangent_typed<scalar_t, kPack<scalar_t>>(p, stream)
                                      : softmax_tangent_typed<scalar_t, 1>(p, stream));
  return "softmax_tangent: unknown element type";
}

const char* launch_softmax_adjoint_tangent(const SoftmaxAdjointTangentParams& p, Stream stream) {
  const bool dense = p.output == SoftmaxOutput::kSoftmax;
  const bool wide = packs(p.cols, p.probability, p.tangents, p.out, p.tangents_out, dense ? p.centered : nullptr) &&
                    (p.output == SoftmaxOutput::kLogSumExp || aligned_to_16(p.adjoints));
  LSFAST_DISPATCH(p.kind, return wide ? softmax_adjoint_tangent_typed<scalar_t, kPack<scalar_t>>(p, stream)
                                      : softmax_adjoint_tangent_typed<scalar_t, 1>(p, stream));
  return "softmax_adjoint_tangent: unknown element type";
}

}  // namespace lsfast::curvature
