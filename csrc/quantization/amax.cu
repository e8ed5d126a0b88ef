// CUDA kernels that find the largest magnitude of each tensor, as it is or after the Hadamard transform. Integer maxima
// of bits are exact in any order.
#include "quantization/tile_cuda.inl"

namespace lsfast::quantization {
namespace {

// The largest of a CUDA block into the tensor's. warps: shared, [kWarps].
__device__ __forceinline__ void include_block(uint32_t largest, uint32_t* warps, uint32_t* amax_bits) {
  largest = largest_of_lanes(largest, kWarpSize);
  if (threadIdx.x % kWarpSize == 0) warps[threadIdx.x / kWarpSize] = largest;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) largest = larger(largest, warps[warp]);
    atomicMax(amax_bits, largest);
  }
}

// Grid: (any, tensors). Bytes: reads x once.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) amax_kernel(AmaxParams p, int64_t first_tensor) {
  __shared__ uint32_t warps[kWarps];
  const int64_t tensor = first_tensor + blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + tensor * p.per_tensor;
  const uint32_t limit = p.finite_only ? kFloat32Infinity : 0xffffffffu;
  uint32_t largest = 0u;
  const auto include = [&](T value) {
    const uint32_t bits = magnitude_bits(to_float(value));
    largest = larger(largest, bits < limit ? bits : 0u);
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
  include_block(largest, warps, p.amax_bits + tensor);
}

// Lines along memory: a thread has 8 neighbours. Grid: (any, tensors). Bytes: reads x once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    transformed_lines_kernel(QuantizeParams p, bool aligned, uint32_t* amax_bits, int64_t first_tensor) {
  constexpr int kUnit = 8;
  __shared__ uint32_t warps[kWarps];
  const int64_t tensor = first_tensor + blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + tensor * p.per_tensor();
  const int64_t units = p.per_tensor() / kUnit;
  uint32_t largest = 0u;
  // Every lane of a warp runs the same number of rounds, so that all take part in the shuffles.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads; base < units;
       base += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t i = base + threadIdx.x;
    float values[kUnit];
    load_line(x + i * kUnit, i < units ? kUnit : 0, aligned, values);
    transform_line(values, p.scheme.hadamard, false);
#pragma unroll
    for (int k = 0; k < kUnit; ++k) largest = larger(largest, finite_or_zero(magnitude_bits(values[k])));
  }
  include_block(largest, warps, amax_bits + tensor);
}

// Lines across memory: a CUDA block has a tile of 128 positions of 32 columns. Grid: (any, tensors). Bytes: reads x
// once.
template <class T>
__global__ void __launch_bounds__(kThreads)
    transformed_columns_kernel(QuantizeParams p, uint32_t* amax_bits, int64_t first_tensor) {
  __shared__ float tile[kTileLength * kWarpSize];
  __shared__ uint32_t warps[kWarps];
  const int64_t tensor = first_tensor + blockIdx.y;
  const T* const x = static_cast<const T*>(p.x) + tensor * p.per_tensor();
  const int64_t of_line = (p.length + kTileLength - 1) / kTileLength;
  const int64_t chunks = (p.inner + kWarpSize - 1) / kWarpSize;
  uint32_t largest = 0u;
  for (int64_t id = blockIdx.x; id < p.lines() * of_line * chunks; id += gridDim.x) {
    const int64_t column = id % chunks * kWarpSize + threadIdx.x % kWarpSize;
    const int64_t position = id / chunks % of_line * kTileLength + threadIdx.x / kWarpSize * kColumnRows;
    const int64_t first = (id / chunks / of_line * p.length + position) * p.inner + column;
    float values[kColumnRows];
    load_column(x + first, p.inner, column_count(position, p.length, column < p.inner), values);
    transform_columns(values, p.scheme.hadamard, false, tile);
#pragma unroll
    for (int k = 0; k < kColumnRows; ++k) largest = larger(largest, finite_or_zero(magnitude_bits(values[k])));
  }
  include_block(largest, warps, amax_bits + tensor);
}

template <class T>
const char* amax_typed(const AmaxParams& p, Stream stream) {
  const unsigned blocks = grid_size(p.per_tensor, kThreads * 64, 4096);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    return LSFAST_LAUNCH(amax_kernel<T>, dim3(blocks, count), dim3(kThreads), 0, stream, p, first);
  });
}

template <class T>
const char* transformed_typed(const QuantizeParams& p, uint32_t* amax_bits, Stream stream) {
  const int64_t tiles = p.lines() * ((p.length + kTileLength - 1) / kTileLength) * ((p.inner + 31) / kWarpSize);
  const unsigned blocks = p.inner == 1 ? grid_size(p.per_tensor(), kThreads * 32, 4096) : grid_size(tiles, 1, 4096);
  const bool aligned = aligned_to_16(p.x) && (p.tensors == 1 || p.per_tensor() % 8 == 0);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    const dim3 grid(blocks, count);
    if (p.inner > 1) {
      return LSFAST_LAUNCH(transformed_columns_kernel<T>, grid, dim3(kThreads), 0, stream, p, amax_bits, first);
    }
    return LSFAST_LAUNCH(transformed_lines_kernel<T>, grid, dim3(kThreads), 0, stream, p, aligned, amax_bits, first);
  });
}

}  // namespace

const char* launch_amax(const AmaxParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return amax_typed<scalar_t>(p, stream));
  return "amax: unknown element type";
}

const char* launch_transformed_amax(const QuantizeParams& p, uint32_t* amax_bits, Stream stream) {
  LSFAST_DISPATCH(p.kind, return transformed_typed<scalar_t>(p, amax_bits, stream));
  return "amax: unknown element type";
}

}  // namespace lsfast::quantization
