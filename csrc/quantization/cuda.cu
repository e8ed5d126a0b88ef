// CUDA kernels of the quantization room. All are bound by memory: every element is read once (twice where the scheme
// needs the largest magnitude of the tensor) and written once, 16 bytes an access where alignment allows.
#include "numerics/philox.h"
#include "numerics/scaling.h"
#include "platform/launch.h"
#include "quantization/quantization.h"

namespace lsfast::quantization {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxTensorsPerLaunch = 65535;  // gridDim.y

// The largest magnitude of each tensor, as bits. Grid: (any, tensors). Integer maxima are exact in any order.
// Bytes: reads x once.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) amax_kernel(AmaxParams p, int64_t first_tensor) {
  __shared__ uint32_t warp_largest[kThreads / kWarpSize];
  const int64_t tensor = first_tensor + blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + tensor * p.per_tensor;
  const uint32_t limit = p.finite_only ? 0x7f800000u : 0xffffffffu;
  uint32_t largest = 0u;
  const auto include = [&](T value) {
    const uint32_t bits = bit_cast<uint32_t>(to_float(value)) & 0x7fffffffu;
    const uint32_t kept = bits < limit ? bits : 0u;
    largest = largest > kept ? largest : kept;
  };
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  constexpr int kCount = Pack<T>::kCount;
  const int64_t packs = reinterpret_cast<uintptr_t>(x) % 16 == 0 ? p.per_tensor / kCount : 0;
  for (int64_t i = thread; i < packs; i += threads) {
    const Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) include(pack.element[k]);
  }
  for (int64_t i = packs * kCount + thread; i < p.per_tensor; i += threads) include(x[i]);

  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
    const uint32_t other = __shfl_down_sync(kFullWarp, largest, offset);
    largest = largest > other ? largest : other;
  }
  if (threadIdx.x % kWarpSize == 0) warp_largest[threadIdx.x / kWarpSize] = largest;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kThreads / kWarpSize; ++warp) {
      largest = largest > warp_largest[warp] ? largest : warp_largest[warp];
    }
    atomicMax(p.amax_bits + tensor, largest);
  }
}

// ---- unscaled and per tensor: a thread rounds one pack of 16 bytes, or one element
// -----------------------------------

template <class T, class F>
struct ElementRounder {
  const FakeQuantizeParams& p;
  float scale;
  float inverse;

  __device__ __forceinline__ T operator()(T value, int64_t index) const {
    F x;
    if constexpr (sizeof(F) == sizeof(double)) {
      x = value;
    } else {
      x = to_float(value) * scale;
    }
    F result;
    if (p.derivative) {
      result = fabs(x) > static_cast<F>(p.element.largest) ? F(0) : F(1);
    } else {
      const uint32_t word =
          p.rounding == Rounding::kStochastic ? philox_word(p.seed, p.stream, static_cast<uint64_t>(index)) : 0u;
      result = round_to_element<F>(x, p.element, p.rounding, p.overflow, word, p.random_bits) * static_cast<F>(inverse);
    }
    if constexpr (sizeof(F) == sizeof(double)) {
      return result;
    } else {
      return from_float<T>(result);
    }
  }
};

// Grid: (any, tensors). Bytes: reads x once, writes y once.
template <class T, class F>
__global__ void __launch_bounds__(kThreads, sizeof(T) == 8 ? 2 : 4)
    elements_kernel(FakeQuantizeParams p, int64_t first_tensor) {
  const int64_t tensor = first_tensor + blockIdx.y;
  const int64_t total = p.per_tensor();
  const T* const x = static_cast<const T*>(p.x) + tensor * total;
  T* const y = static_cast<T*>(p.y) + tensor * total;
  const bool scaled = p.scaling == Scaling::kTensor;
  const float scale = scaled ? tensor_scale(p.element.largest, bit_cast<float>(p.amax_bits[tensor])) : 1.0f;
  const ElementRounder<T, F> round{p, scale, 1.0f / scale};
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  constexpr int kCount = Pack<T>::kCount;
  const bool packed = (reinterpret_cast<uintptr_t>(x) | reinterpret_cast<uintptr_t>(y)) % 16 == 0;
  const int64_t packs = packed ? total / kCount : 0;
  for (int64_t i = thread; i < packs; i += threads) {
    Pack<T> pack = reinterpret_cast<const Pack<T>*>(x)[i];
#pragma unroll
    for (int k = 0; k < kCount; ++k) pack.element[k] = round(pack.element[k], i * kCount + k);
    reinterpret_cast<Pack<T>*>(y)[i] = pack;
  }
  for (int64_t i = packs * kCount + thread; i < total; i += threads) y[i] = round(x[i], i);
}

// ---- NVFP4
// -----------------------------------------------------------------------------------------------------------

__device__ __forceinline__ float nvfp4_value(float x, const Nvfp4BlockScale& block, const FakeQuantizeParams& p,
                                             int64_t index) {
  const float scaled = x * block.multiplier;
  if (p.derivative) return fabsf(scaled) > 6.0f ? 0.0f : 1.0f;
  const uint32_t word =
      p.rounding == Rounding::kStochastic ? philox_word(p.seed, p.stream, static_cast<uint64_t>(index)) : 0u;
  return round_to_element<float>(scaled, e2m1_format(), p.rounding, Overflow::kSaturate, word, p.random_bits) *
         block.factor;
}

// Blocks contiguous and full: 16 / kCount neighbouring lanes share a block and find its largest by shuffles.
// Grid: (any, tensors). Bytes: reads x once (after the amax pass), writes y once.
template <class T>
__global__ void __launch_bounds__(kThreads) nvfp4_flat_kernel(FakeQuantizeParams p, int64_t first_tensor) {
  constexpr int kCount = Pack<T>::kCount;
  constexpr int kLanes = kNvfp4Block / kCount;
  const int64_t tensor = first_tensor + blockIdx.y;
  const int64_t packs = p.per_tensor() / kCount;
  const Pack<T>* const x = reinterpret_cast<const Pack<T>*>(static_cast<const T*>(p.x) + tensor * p.per_tensor());
  Pack<T>* const y = reinterpret_cast<Pack<T>*>(static_cast<T*>(p.y) + tensor * p.per_tensor());
  const Nvfp4TensorScale scale = nvfp4_tensor_scale(bit_cast<float>(p.amax_bits[tensor]));
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  // Every lane of a warp runs the same number of rounds, so that all take part in the shuffles.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads; base < packs; base += threads) {
    const int64_t i = base + threadIdx.x;
    const bool inside = i < packs;
    Pack<T> pack{};
    if (inside) pack = x[i];
    uint32_t largest = 0u;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const uint32_t bits = bit_cast<uint32_t>(to_float(pack.element[k])) & 0x7fffffffu;
      largest = largest > bits ? largest : bits;
    }
#pragma unroll
    for (int lane = 1; lane < kLanes; lane *= 2) {
      const uint32_t other = __shfl_xor_sync(kFullWarp, largest, lane);
      largest = largest > other ? largest : other;
    }
    const Nvfp4BlockScale block = nvfp4_block_scale(bit_cast<float>(largest), scale);
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      pack.element[k] = from_float<T>(nvfp4_value(to_float(pack.element[k]), block, p, i * kCount + k));
    }
    if (inside) y[i] = pack;
  }
}

// Any axis, partial last blocks: a thread has a block; threads of a warp have neighbouring columns.
// Grid: (any, tensors). Bytes: reads x twice (the second time from cache), writes y once.
template <class T>
__global__ void __launch_bounds__(kThreads) nvfp4_strided_kernel(FakeQuantizeParams p, int64_t first_tensor) {
  const int64_t tensor = first_tensor + blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + tensor * p.per_tensor();
  T* const y = static_cast<T*>(p.y) + tensor * p.per_tensor();
  const Nvfp4TensorScale scale = nvfp4_tensor_scale(bit_cast<float>(p.amax_bits[tensor]));
  const int64_t blocks = p.outer * p.blocks_per_line() * p.inner;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t id = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; id < blocks; id += threads) {
    const int64_t row = id / p.inner;
    const int64_t position = row % p.blocks_per_line() * kNvfp4Block;
    const int64_t first = (row / p.blocks_per_line() * p.length + position) * p.inner + id % p.inner;
    const int64_t left = p.length - position;
    const int count = left < kNvfp4Block ? static_cast<int>(left) : kNvfp4Block;
    uint32_t largest = 0u;
    for (int i = 0; i < count; ++i) {
      const uint32_t bits = bit_cast<uint32_t>(to_float(x[first + i * p.inner])) & 0x7fffffffu;
      largest = largest > bits ? largest : bits;
    }
    const Nvfp4BlockScale block = nvfp4_block_scale(bit_cast<float>(largest), scale);
    for (int i = 0; i < count; ++i) {
      const int64_t index = first + i * p.inner;
      y[index] = from_float<T>(nvfp4_value(to_float(x[index]), block, p, index));
    }
  }
}

// Runs launch(first_tensor, tensors) over all tensors, within the limit of a grid's second dimension.
template <class Launch>
const char* for_tensors(int64_t tensors, const Launch& launch) {
  for (int64_t first = 0; first < tensors; first += kMaxTensorsPerLaunch) {
    const int64_t left = tensors - first;
    const int64_t count = left < kMaxTensorsPerLaunch ? left : kMaxTensorsPerLaunch;
    if (const char* error = launch(first, static_cast<unsigned>(count))) return error;
  }
  return nullptr;
}

template <class T>
const char* amax_typed(const AmaxParams& p, Stream stream) {
  const unsigned blocks = grid_size(p.per_tensor, kThreads * 64, 4096);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    return LSFAST_LAUNCH(amax_kernel<T>, dim3(blocks, count), dim3(kThreads), 0, stream, p, first);
  });
}

template <class T, class F>
const char* elements_typed(const FakeQuantizeParams& p, Stream stream) {
  const unsigned blocks = grid_size(p.per_tensor(), kThreads * Pack<T>::kCount);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    return LSFAST_LAUNCH((elements_kernel<T, F>), dim3(blocks, count), dim3(kThreads), 0, stream, p, first);
  });
}

template <class T>
const char* nvfp4_typed(const FakeQuantizeParams& p, Stream stream) {
  const bool flat = p.inner == 1 && p.length % kNvfp4Block == 0 && aligned_to_16(p.x) && aligned_to_16(p.y);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    if (flat) {
      const unsigned blocks = grid_size(p.per_tensor(), kThreads * Pack<T>::kCount);
      return LSFAST_LAUNCH(nvfp4_flat_kernel<T>, dim3(blocks, count), dim3(kThreads), 0, stream, p, first);
    }
    const unsigned blocks = grid_size(p.outer * p.blocks_per_line() * p.inner, kThreads);
    return LSFAST_LAUNCH(nvfp4_strided_kernel<T>, dim3(blocks, count), dim3(kThreads), 0, stream, p, first);
  });
}

}  // namespace

const char* launch_amax(const AmaxParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return amax_typed<scalar_t>(p, stream));
  return "amax: unknown element type";
}

const char* launch_fake_quantize(const FakeQuantizeParams& p, Stream stream) {
  if (p.scaling == Scaling::kNvfp4) {
    LSFAST_DISPATCH(p.kind, return nvfp4_typed<scalar_t>(p, stream));
  }
  if (p.kind == ScalarKind::kFloat64 && p.scaling == Scaling::kNone) {
    return elements_typed<double, double>(p, stream);
  }
  LSFAST_DISPATCH(p.kind, return (elements_typed<scalar_t, float>(p, stream)));
  return "fake_quantize: unknown element type";
}

}  // namespace lsfast::quantization
