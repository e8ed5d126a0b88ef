// CUDA kernels of batch, group and instance normalization: sums over planes or columns, and the pass that is linear in
// the tensors. Formulas: normalization.h.
#include "curvature/normalization.h"
#include "platform/launch.h"

namespace lsfast::curvature {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kBlocks =
    3;  // of a multiprocessor at least: without it some kernels are held to fewer registers, and spill

__device__ __forceinline__ int64_t first_unit() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
}

// ---- planes of `size` neighbours: a warp has a plane of one of k rows; the k warps of a plane are neighbours
// ------------

// Bytes: reads a once, x and y once (k - 1 times from cache).
template <class T, int kSums>
__global__ void __launch_bounds__(kThreads, kBlocks) plane_sums_kernel(ChannelNormParams p) {
  using F = Arithmetic<T>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t planes = p.samples * p.channels;
  for (int64_t id = first_unit(); id < planes * p.k; id += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t plane = id / p.k;
    const int64_t j = id % p.k;
    const T* const x = element<T>(p.x, plane * p.size);
    const T* const y = element<T>(p.y, plane * p.size);
    const T* const a = element<T>(p.a, j * p.a_stride + plane * p.size);
    const F mean = static_cast<const F*>(p.mean)[p.groups == 1 ? plane % p.channels : plane];
    F sums[3] = {};
    for (int64_t i = lane; i < p.size; i += kWarpSize) {
      const F value = widen(a[i]);
      sums[0] += value;
      sums[1] += value * (widen(x[i]) - mean);
      if constexpr (kSums == 3) sums[2] += value * widen(y[i]);
    }
#pragma unroll
    for (int s = 0; s < kSums; ++s) {
      const F sum = warp_sum(sums[s]);
      if (lane == 0) static_cast<F*>(p.partial)[(s * p.k + j) * planes + plane] = sum;
    }
  }
}

// Bytes: reads a and b once, x and y once (k - 1 times from cache), writes out once.
template <class T, bool kA, bool kBoth>
__global__ void __launch_bounds__(kThreads, kBlocks) plane_linear_kernel(ChannelNormParams p) {
  using F = Arithmetic<T>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t planes = p.samples * p.channels;
  const int64_t places = p.groups * p.channels;
  for (int64_t id = first_unit(); id < planes * p.k; id += static_cast<int64_t>(gridDim.x) * kWarps) {
    const int64_t plane = id / p.k;
    const int64_t j = id % p.k;
    const int64_t place = p.groups == 1 ? plane % p.channels : plane;
    const T* const x = element<T>(p.x, plane * p.size);
    const T* const y = element<T>(p.y, plane * p.size);
    const T* const a = element<T>(p.a, j * p.a_stride + plane * p.size);
    const T* const b = element<T>(p.b, j * p.b_stride + plane * p.size);
    T* const out = static_cast<T*>(p.out) + (j * planes + plane) * p.size;
    const F mean = static_cast<const F*>(p.mean)[place];
    F c[5];
#pragma unroll
    for (int t = 0; t < 5; ++t) c[t] = static_cast<const F*>(p.coefficients)[(t * p.k + j) * places + place];
    for (int64_t i = lane; i < p.size; i += kWarpSize) {
      F value = c[0] * (widen(x[i]) - mean) + c[1];
      if constexpr (kA) value += c[2] * widen(a[i]);
      if constexpr (kBoth) value += c[3] * widen(b[i]) + c[4] * widen(y[i]);
      out[i] = narrow<T>(value);
    }
  }
}

// ---- columns of [rows, channels]: a block has 32 columns of a chunk of rows, of one of k rows
// ---------------------------

struct ColumnUnit {
  int64_t j;
  int64_t column;
  int64_t chunk;
  int64_t first;  // row of this warp
  int64_t last;
};

__host__ __device__ inline int64_t column_units(const ChannelNormParams& p) {
  return p.parts() * ((p.channels + kWarpSize - 1) / kWarpSize) * p.k;
}

// The k blocks of a chunk are neighbours, so that what they share (x, y) comes from cache but once.
__device__ __forceinline__ ColumnUnit column_unit(const ChannelNormParams& p, int64_t id) {
  const int64_t blocks = (p.channels + kWarpSize - 1) / kWarpSize;
  ColumnUnit unit;
  unit.j = id % p.k;
  unit.column = id / p.k % blocks * kWarpSize + threadIdx.x % kWarpSize;
  unit.chunk = id / p.k / blocks;
  unit.first = unit.chunk * kNormRowChunk + threadIdx.x / kWarpSize;
  unit.last = (unit.chunk + 1) * kNormRowChunk < p.samples ? (unit.chunk + 1) * kNormRowChunk : p.samples;
  return unit;
}

// Each warp sums every kWarps-th row; the warps' sums are added in order. Bytes: as plane_sums_kernel.
template <class T, int kSums>
__global__ void __launch_bounds__(kThreads, kBlocks) column_sums_kernel(ChannelNormParams p) {
  using F = Arithmetic<T>;
  __shared__ F shared[3][kWarps][kWarpSize];
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  for (int64_t id = blockIdx.x; id < column_units(p); id += gridDim.x) {
    const ColumnUnit unit = column_unit(p, id);
    F sums[3] = {};
    if (unit.column < p.channels) {
      const F mean = static_cast<const F*>(p.mean)[unit.column];
      for (int64_t row = unit.first; row < unit.last; row += kWarps) {
        const int64_t at = row * p.channels + unit.column;
        const F value = widen(static_cast<const T*>(p.a)[unit.j * p.a_stride + at]);
        sums[0] += value;
        sums[1] += value * (widen(static_cast<const T*>(p.x)[at]) - mean);
        if constexpr (kSums == 3) sums[2] += value * widen(static_cast<const T*>(p.y)[at]);
      }
    }
#pragma unroll
    for (int s = 0; s < kSums; ++s) shared[s][warp][lane] = sums[s];
    __syncthreads();
    if (warp < kSums && unit.column < p.channels) {
      F total = F(0);
      for (int i = 0; i < kWarps; ++i) total += shared[warp][i][lane];
      static_cast<F*>(p.partial)[((warp * p.k + unit.j) * p.parts() + unit.chunk) * p.channels + unit.column] = total;
    }
    __syncthreads();
  }
}

// Bytes: as plane_linear_kernel.
template <class T, bool kA, bool kBoth>
__global__ void __launch_bounds__(kThreads, kBlocks) column_linear_kernel(ChannelNormParams p) {
  using F = Arithmetic<T>;
  for (int64_t id = blockIdx.x; id < column_units(p); id += gridDim.x) {
    const ColumnUnit unit = column_unit(p, id);
    if (unit.column >= p.channels) continue;
    const F mean = static_cast<const F*>(p.mean)[unit.column];
    F c[5];
#pragma unroll
    for (int t = 0; t < 5; ++t) {
      c[t] = static_cast<const F*>(p.coefficients)[(t * p.k + unit.j) * p.channels + unit.column];
    }
    T* const out = static_cast<T*>(p.out) + unit.j * p.samples * p.channels;
#pragma unroll 2
    for (int64_t row = unit.first; row < unit.last; row += kWarps) {
      const int64_t at = row * p.channels + unit.column;
      F value = c[0] * (widen(static_cast<const T*>(p.x)[at]) - mean) + c[1];
      if constexpr (kA) value += c[2] * widen(static_cast<const T*>(p.a)[unit.j * p.a_stride + at]);
      if constexpr (kBoth) {
        value += c[3] * widen(static_cast<const T*>(p.b)[unit.j * p.b_stride + at]) +
                 c[4] * widen(static_cast<const T*>(p.y)[at]);
      }
      out[at] = narrow<T>(value);
    }
  }
}

// ---- sums over parts
// -------------------------------------------------------------------------------------------------

// A warp has one sum, lane l the parts l, l + 32, ...: neighbouring warps read neighbouring words.
template <class F>
__global__ void __launch_bounds__(kThreads, kBlocks) part_sums_kernel(PartSumParams p) {
  const int lane = threadIdx.x % kWarpSize;
  for (int64_t id = first_unit(); id < p.outer * p.inner; id += static_cast<int64_t>(gridDim.x) * kWarps) {
    const F* const partial = static_cast<const F*>(p.partial) + id / p.inner * p.parts * p.inner + id % p.inner;
    double sum = 0.0;
    for (int64_t part = lane; part < p.parts; part += kWarpSize) sum += static_cast<double>(partial[part * p.inner]);
    sum = warp_sum(sum);
    if (lane == 0) p.sums[id] = sum;
  }
}

// ---- launches
// ----------------------------------------------------------------------------------------------------------

template <class T, int kSums>
const char* sums_typed(const ChannelNormParams& p, Stream stream) {
  if (p.by_columns()) {
    const dim3 grid(grid_size(column_units(p), 1));
    return LSFAST_LAUNCH((column_sums_kernel<T, kSums>), grid, dim3(kThreads), 0, stream, p);
  }
  const dim3 grid(grid_size(p.samples * p.channels * p.k, kWarps));
  return LSFAST_LAUNCH((plane_sums_kernel<T, kSums>), grid, dim3(kThreads), 0, stream, p);
}

template <class T, bool kA, bool kBoth>
const char* linear_typed(const ChannelNormParams& p, Stream stream) {
  if (p.by_columns()) {
    const dim3 grid(grid_size(column_units(p), 1));
    return LSFAST_LAUNCH((column_linear_kernel<T, kA, kBoth>), grid, dim3(kThreads), 0, stream, p);
  }
  const dim3 grid(grid_size(p.samples * p.channels * p.k, kWarps));
  return LSFAST_LAUNCH((plane_linear_kernel<T, kA, kBoth>), grid, dim3(kThreads), 0, stream, p);
}

template <class T>
const char* linear_of(const ChannelNormParams& p, Stream stream) {
  if (p.a == nullptr) return linear_typed<T, false, false>(p, stream);
  return p.b == nullptr ? linear_typed<T, true, false>(p, stream) : linear_typed<T, true, true>(p, stream);
}

}  // namespace

const char* launch_channel_norm_sums(const ChannelNormParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind,
                  return p.y == nullptr ? sums_typed<scalar_t, 2>(p, stream) : sums_typed<scalar_t, 3>(p, stream));
  return "channel_norm_sums: unknown element type";
}

const char* launch_channel_norm_linear(const ChannelNormParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return linear_of<scalar_t>(p, stream));
  return "channel_norm_linear: unknown element type";
}

const char* launch_part_sums(const PartSumParams& p, Stream stream) {
  const dim3 grid(grid_size(p.outer * p.inner, kWarps));
  LSFAST_DISPATCH_REAL(p.kind, return LSFAST_LAUNCH(part_sums_kernel<scalar_t>, grid, dim3(kThreads), 0, stream, p));
}

}  // namespace lsfast::curvature
