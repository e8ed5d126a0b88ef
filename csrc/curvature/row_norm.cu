// CUDA kernels of layer and RMS normalization. Formulas: normalization.h.
#include "curvature/normalization.h"
#include "platform/launch.h"

namespace lsfast::curvature {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarpSize;
constexpr int kBlocks =
    3;  // of a multiprocessor at least: without it some kernels are held to fewer registers, and spill

// A warp has one row of one of k vectors; the k warps of a row are neighbours, so that what they share (x, held) comes
// from cache but once. Its own row it reads twice, the second time from cache.
struct RowUnit {
  int64_t row;
  int64_t j;
};

__device__ __forceinline__ int64_t first_unit() {
  return static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kWarpSize;
}

__device__ __forceinline__ RowUnit row_unit(const RowNormParams& p, int64_t id) { return {id / p.k, id % p.k}; }

// Bytes: reads x and x_tangents once, writes out once.
template <class T, bool kTangents, bool kParameters>
__global__ void __launch_bounds__(kThreads, kBlocks) row_norm_jvp_kernel(RowNormParams p) {
  using F = Arithmetic<T>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t n = p.columns;
  const F* const weight = static_cast<const F*>(p.weight);
  for (int64_t id = first_unit(); id < p.rows * p.k; id += static_cast<int64_t>(gridDim.x) * kWarps) {
    const RowUnit unit = row_unit(p, id);
    const T* const x = element<T>(p.x, unit.row * n);
    const T* const dx = element<T>(p.x_tangents, unit.j * p.tangents_stride + unit.row * n);
    const F* const dw = element<F>(p.weight_tangents, unit.j * n);
    const F* const db = element<F>(p.bias_tangents, unit.j * n);
    T* const out = static_cast<T*>(p.out) + (unit.j * p.rows + unit.row) * n;
    const F mean = p.mean == nullptr ? F(0) : static_cast<const F*>(p.mean)[unit.row];
    const F rstd = static_cast<const F*>(p.rstd)[unit.row];
    F m1 = F(0);
    F m2 = F(0);
    if constexpr (kTangents) {
      for (int64_t i = lane; i < n; i += kWarpSize) {
        m1 += widen(dx[i]);
        m2 += (widen(x[i]) - mean) * rstd * widen(dx[i]);
      }
      m1 = warp_sum(m1);
      m1 = p.mean == nullptr ? F(0) : m1 / static_cast<F>(n);
      m2 = warp_sum(m2) / static_cast<F>(n);
    }
    for (int64_t i = lane; i < n; i += kWarpSize) {
      const F xhat = (widen(x[i]) - mean) * rstd;
      F value = F(0);
      if constexpr (kTangents) value = weight[i] * (rstd * (widen(dx[i]) - m1 - m2 * xhat));
      if constexpr (kParameters) value += dw[i] * xhat + db[i];
      out[i] = narrow<T>(value);
    }
  }
}

// xbar, and the means m1 and m2 that the sums over rows need. Bytes: reads x, held, adjoints and x_tangents once,
// writes out once.
template <class T, bool kTangents, bool kWeight>
__global__ void __launch_bounds__(kThreads, kBlocks) row_norm_vjp_kernel(RowNormParams p) {
  using F = Arithmetic<T>;
  const int lane = threadIdx.x % kWarpSize;
  const int64_t n = p.columns;
  const F count = static_cast<F>(n);
  const F centred = p.mean == nullptr ? F(0) : F(1);
  const F* const weight = static_cast<const F*>(p.weight);
  for (int64_t id = first_unit(); id < p.rows * p.k; id += static_cast<int64_t>(gridDim.x) * kWarps) {
    const RowUnit unit = row_unit(p, id);
    const T* const x = element<T>(p.x, unit.row * n);
    const T* const held = element<T>(p.held, unit.row * n);
    const T* const adjoint = element<T>(p.adjoints, unit.j * p.adjoints_stride + unit.row * n);
    const T* const dx = element<T>(p.x_tangents, unit.j * p.tangents_stride + unit.row * n);
    const F* const dw = element<F>(p.weight_tangents, unit.j * n);
    const F mean = p.mean == nullptr ? F(0) : static_cast<const F*>(p.mean)[unit.row];
    const F r = static_cast<const F*>(p.rstd)[unit.row];
    F s[7] = {};  // e1, e2, m1, m2, e3, c1, c2
    for (int64_t i = lane; i < n; i += kWarpSize) {
      const F xhat = (widen(x[i]) - mean) * r;
      F g = weight[i] * widen(adjoint[i]);
      if constexpr (kWeight) g += dw[i] * widen(held[i]);
      s[0] += g;
      s[1] += xhat * g;
      if constexpr (kTangents) {
        const F primal = weight[i] * widen(held[i]);
        s[2] += widen(dx[i]);
        s[3] += xhat * widen(dx[i]);
        s[4] += primal * widen(dx[i]);
        s[5] += primal;
        s[6] += xhat * primal;
      }
    }
#pragma unroll
    for (int i = 0; i < (kTangents ? 7 : 2); ++i) s[i] = warp_sum(s[i]) / count;
    const F e1 = centred * s[0];
    const F m1 = centred * s[2];
    const F m2 = s[3];
    const F c1 = centred * s[5];
    const F c2 = s[6];
    const F offset = r * (m2 * c1 + c2 * m1) - e1;
    const F slope = -r * (s[4] - m1 * c1 - F(3) * m2 * c2) - s[1];
    if (kTangents && p.means != nullptr && lane == 0) {
      F* const means = static_cast<F*>(p.means) + (unit.j * p.rows + unit.row) * 2;
      means[0] = m1;
      means[1] = m2;
    }
    if (p.out == nullptr) continue;
    T* const out = static_cast<T*>(p.out) + (unit.j * p.rows + unit.row) * n;
    for (int64_t i = lane; i < n; i += kWarpSize) {
      const F xhat = (widen(x[i]) - mean) * r;
      F value = weight[i] * widen(adjoint[i]) + offset + slope * xhat;
      if constexpr (kWeight) value += dw[i] * widen(held[i]);
      if constexpr (kTangents) value -= r * (m2 * (weight[i] * widen(held[i])) + c2 * widen(dx[i]));
      out[i] = narrow<T>(r * value);
    }
  }
}

// Sums over a part of the rows: a block has 32 columns of one of k vectors, each warp every kWarps-th row; the warps'
// sums are added in order. Bytes: reads adjoints and x_tangents once more, x and held k times, from cache but once.
template <class T, bool kTangents>
__global__ void __launch_bounds__(kThreads, kBlocks) row_norm_parameters_kernel(RowNormParams p) {
  using F = Arithmetic<T>;
  __shared__ F sums[2][kWarps][kWarpSize];
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  const int64_t n = p.columns;
  const int64_t blocks = (n + kWarpSize - 1) / kWarpSize;
  for (int64_t id = blockIdx.x; id < p.parts * blocks * p.k; id += gridDim.x) {
    const int64_t j = id % p.k;
    const int64_t column = id / p.k % blocks * kWarpSize + lane;
    const int64_t part = id / p.k / blocks;
    const int64_t first = part * p.rows_per_part();
    const int64_t last = first + p.rows_per_part() < p.rows ? first + p.rows_per_part() : p.rows;
    F weight_sum = F(0);
    F bias_sum = F(0);
    if (column < n) {
      for (int64_t row = first + warp; row < last; row += kWarps) {
        const F mean = p.mean == nullptr ? F(0) : static_cast<const F*>(p.mean)[row];
        const F r = static_cast<const F*>(p.rstd)[row];
        const F adjoint = widen(static_cast<const T*>(p.adjoints)[j * p.adjoints_stride + row * n + column]);
        const F xhat = (widen(static_cast<const T*>(p.x)[row * n + column]) - mean) * r;
        F term = adjoint * xhat;
        if constexpr (kTangents) {
          const F* const means = static_cast<const F*>(p.means) + (j * p.rows + row) * 2;
          const F dx = widen(static_cast<const T*>(p.x_tangents)[j * p.tangents_stride + row * n + column]);
          term += widen(static_cast<const T*>(p.held)[row * n + column]) * (r * (dx - means[0] - means[1] * xhat));
        }
        weight_sum += term;
        bias_sum += adjoint;
      }
    }
    sums[0][warp][lane] = weight_sum;
    sums[1][warp][lane] = bias_sum;
    __syncthreads();
    if (warp < 2 && column < n) {
      F total = F(0);
      for (int i = 0; i < kWarps; ++i) total += sums[warp][i][lane];
      static_cast<F*>(p.partial)[((warp * p.k + j) * p.parts + part) * n + column] = total;
    }
    __syncthreads();
  }
}

template <class T>
const char* row_norm_jvp_typed(const RowNormParams& p, Stream stream) {
  const dim3 grid(grid_size(p.rows * p.k, kWarps));
  if (p.x_tangents == nullptr) {
    return LSFAST_LAUNCH((row_norm_jvp_kernel<T, false, true>), grid, dim3(kThreads), 0, stream, p);
  }
  if (p.weight_tangents == nullptr) {
    return LSFAST_LAUNCH((row_norm_jvp_kernel<T, true, false>), grid, dim3(kThreads), 0, stream, p);
  }
  return LSFAST_LAUNCH((row_norm_jvp_kernel<T, true, true>), grid, dim3(kThreads), 0, stream, p);
}

template <class T>
const char* row_norm_rows_typed(const RowNormParams& p, Stream stream) {
  const dim3 grid(grid_size(p.rows * p.k, kWarps));
  if (p.x_tangents == nullptr) {
    return LSFAST_LAUNCH((row_norm_vjp_kernel<T, false, false>), grid, dim3(kThreads), 0, stream, p);
  }
  if (p.weight_tangents == nullptr) {
    return LSFAST_LAUNCH((row_norm_vjp_kernel<T, true, false>), grid, dim3(kThreads), 0, stream, p);
  }
  return LSFAST_LAUNCH((row_norm_vjp_kernel<T, true, true>), grid, dim3(kThreads), 0, stream, p);
}

template <class T>
const char* row_norm_vjp_typed(const RowNormParams& p, Stream stream) {
  if (p.out != nullptr || p.means != nullptr) {
    if (const char* error = row_norm_rows_typed<T>(p, stream)) return error;
  }
  if (p.partial == nullptr) return nullptr;
  const dim3 grid(grid_size(p.parts * ((p.columns + kWarpSize - 1) / kWarpSize) * p.k, 1));
  if (p.x_tangents == nullptr) {
    return LSFAST_LAUNCH((row_norm_parameters_kernel<T, false>), grid, dim3(kThreads), 0, stream, p);
  }
  return LSFAST_LAUNCH((row_norm_parameters_kernel<T, true>), grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

const char* launch_row_norm_jvp(const RowNormParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return row_norm_jvp_typed<scalar_t>(p, stream));
  return "row_norm_jvp: unknown element type";
}

const char* launch_row_norm_vjp(const RowNormParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return row_norm_vjp_typed<scalar_t>(p, stream));
  return "row_norm_vjp: unknown element type";
}

}  // namespace lsfast::curvature
