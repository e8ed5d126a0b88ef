// CUDA kernels of the spectrum room. The passes over the basis are bound by memory; sums are made in two stages of
// fixed order (lanes, warps and blocks; then units), so a result is the same from run to run and on every device.
#include "platform/launch.h"
#include "spectrum/recurrence.h"
#include "spectrum/spectrum.h"
#include "spectrum/tridiagonal.h"

namespace lsfast::spectrum {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kRowsAtOnce = 32;  // rows whose sums wait in shared memory for one barrier

// A block's unit of one probe: every thread holds kPacks packs of kWidth elements, kThreads packs apart.
template <class T, int kWidth>
struct UnitOfThread {
  static constexpr int kPacks = static_cast<int>(kUnitBytes / sizeof(T)) / (kThreads * kWidth);
  using Packs = Pack<T, kWidth>[kPacks];

  int64_t first;  // of this thread's elements
  int64_t n;

  // The packs of a vector [n]; 0 beyond its end. n is a multiple of kWidth.
  __device__ __forceinline__ void load(Packs& packs, const T* vector) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t at = first + static_cast<int64_t>(i) * kThreads * kWidth;
      packs[i] = at < n ? *reinterpret_cast<const Pack<T, kWidth>*>(vector + at) : Pack<T, kWidth>{};
    }
  }
  __device__ __forceinline__ void store(const Packs& packs, T* vector) const {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int64_t at = first + static_cast<int64_t>(i) * kThreads * kWidth;
      if (at < n) *reinterpret_cast<Pack<T, kWidth>*>(vector + at) = packs[i];
    }
  }
};

// Grid: (units, k). Bytes: w once, the basis once for each of subtracting and projecting (the second time mostly from
// L2, since a unit of all rows is read again by the block that has just read it), the new w once when subtracting.
// A thread sums at most 32 products in T, everything above that in float64: the error of a sum is at most
// 33 eps sum |x_i y_i|.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) orthogonalize_kernel(OrthogonalizeParams p) {
  using Unit = UnitOfThread<T, kWidth>;
  __shared__ double warp_sums[kRowsAtOnce][kWarps];
  const int64_t probe = blockIdx.y;
  const int64_t first_of_block = static_cast<int64_t>(blockIdx.x) * (kUnitBytes / static_cast<int64_t>(sizeof(T)));
  const Unit unit{first_of_block + static_cast<int64_t>(threadIdx.x) * kWidth, p.n};
  const T* const basis = static_cast<const T*>(p.basis) + probe * p.rows * p.n;
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  typename Unit::Packs w;
  unit.load(w, static_cast<const T*>(p.w) + probe * p.n);

  if (p.coefficients != nullptr) {
    typename Unit::Packs s{};
    for (int64_t j = 0; j < p.count; ++j) {
      const T c = static_cast<T>(p.coefficients[probe * p.count + j]);
      typename Unit::Packs row;
      unit.load(row, basis + j * p.n);
#pragma unroll
      for (int i = 0; i < Unit::kPacks; ++i) {
#pragma unroll
        for (int e = 0; e < kWidth; ++e) s[i].element[e] += c * row[i].element[e];
      }
    }
#pragma unroll
    for (int i = 0; i < Unit::kPacks; ++i) {
#pragma unroll
      for (int e = 0; e < kWidth; ++e) w[i].element[e] -= s[i].element[e];
    }
    unit.store(w, static_cast<T*>(p.out) + probe * p.n);
  }

  const int64_t outputs = p.outputs();
  const int64_t units = gridDim.x;
  double* const partial = p.partial + probe * outputs * units + blockIdx.x;
  for (int64_t first = 0; first < outputs; first += kRowsAtOnce) {
    const int rows = static_cast<int>(outputs - first < kRowsAtOnce ? outputs - first : kRowsAtOnce);
    for (int r = 0; r < rows; ++r) {
      double sum = 0.0;
      if (p.project) {
        typename Unit::Packs row;
        unit.load(row, basis + (first + r) * p.n);
        T dot = T(0);
#pragma unroll
        for (int i = 0; i < Unit::kPacks; ++i) {
#pragma unroll
          for (int e = 0; e < kWidth; ++e) dot += row[i].element[e] * w[i].element[e];
        }
        sum = static_cast<double>(dot);
      } else {
#pragma unroll
        for (int i = 0; i < Unit::kPacks; ++i) {
#pragma unroll
          for (int e = 0; e < kWidth; ++e) {
            const double value = static_cast<double>(w[i].element[e]);
            sum += value * value;
          }
        }
      }
      sum = warp_sum(sum);
      if (lane == 0) warp_sums[r][warp] = sum;
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < rows) {
      double sum = 0.0;
      for (int i = 0; i < kWarps; ++i) sum += warp_sums[threadIdx.x][i];
      partial[(first + threadIdx.x) * units] = sum;
    }
    __syncthreads();
  }
}

// sums[i] = sum over units of partial[i, unit]. Grid: k * outputs blocks.
__global__ void __launch_bounds__(kThreads) combine_kernel(const double* partial, double* sums, int64_t units) {
  __shared__ double warp_sums[kWarps];
  double sum = 0.0;
  for (int64_t unit = threadIdx.x; unit < units; unit += kThreads) sum += partial[blockIdx.x * units + unit];
  sum = warp_sum(sum);
  if (threadIdx.x % kWarpSize == 0) warp_sums[threadIdx.x / kWarpSize] = sum;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) sum += warp_sums[warp];
    sums[blockIdx.x] = sum;
  }
}

// Grid: (any, k). Every block decides for its probe from columns that no block writes; the first block records it.
// Bytes: reads w once, writes it and a basis row once.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) advance_kernel(AdvanceParams p) {
  const int64_t probe = blockIdx.y;
  const Step step = decide_step(p, probe);
  if (blockIdx.x == 0 && threadIdx.x == 0) record_step(p, probe, step);
  if (p.row < 0) return;
  T* const w = static_cast<T*>(p.w) + probe * p.n;
  T* const next = static_cast<T*>(p.basis) + (probe * p.rows + p.row) * p.n;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  const int64_t packs = p.n / kWidth;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += threads) {
    Pack<T, kWidth> pack{};
    if (step.factor != 0.0) {  // else not a product: what an ended probe holds may be NaN
      pack = reinterpret_cast<const Pack<T, kWidth>*>(w)[i];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        pack.element[e] = static_cast<T>(static_cast<double>(pack.element[e]) * step.factor);
      }
    }
    reinterpret_cast<Pack<T, kWidth>*>(w)[i] = pack;
    reinterpret_cast<Pack<T, kWidth>*>(next)[i] = pack;
  }
}

// A thread solves one matrix; its arrays are interleaved with its neighbours', so that a warp in step reads whole
// lines.
__global__ void __launch_bounds__(kWarpSize) tridiagonal_kernel(TridiagonalParams p) {
  const int64_t matrix = static_cast<int64_t>(blockIdx.x) * kWarpSize + threadIdx.x;
  if (matrix >= p.k) return;
  TridiagonalQl<StridedArray> ql;
  ql.matrix = matrix;
  ql.d = {p.scratch + matrix, p.k};
  ql.e = {p.scratch + p.m * p.k + matrix, p.k};
  ql.z = {p.scratch + 2 * p.m * p.k + matrix, p.k};
  ql.start(p);
  while (ql.next_rotation()) ql.rotate();
  ql.finish(p);
}

template <class T, int kWidth>
const char* orthogonalize_typed(const OrthogonalizeParams& p, Stream stream) {
  const dim3 grid(static_cast<unsigned>(p.units()), static_cast<unsigned>(p.k));
  const char* const error = LSFAST_LAUNCH((orthogonalize_kernel<T, kWidth>), grid, dim3(kThreads), 0, stream, p);
  if (error != nullptr) return error;
  return LSFAST_LAUNCH(combine_kernel, dim3(static_cast<unsigned>(p.k * p.outputs())), dim3(kThreads), 0, stream,
                       static_cast<const double*>(p.partial), p.sums, p.units());
}

template <class T, int kWidth>
const char* advance_typed(const AdvanceParams& p, Stream stream) {
  const dim3 grid(p.row < 0 ? 1u : grid_size(p.n, kThreads * kWidth * 4, 4096), static_cast<unsigned>(p.k));
  return LSFAST_LAUNCH((advance_kernel<T, kWidth>), grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

const char* launch_orthogonalize(const OrthogonalizeParams& p, Stream stream) {
  const bool packed = aligned_to_16(p.basis) && aligned_to_16(p.w) && aligned_to_16(p.out);
  LSFAST_DISPATCH_REAL(p.kind, constexpr int kWidth = 16 / sizeof(scalar_t);
                       return packed && p.n % kWidth == 0 ? (orthogonalize_typed<scalar_t, kWidth>(p, stream))
                                                          : (orthogonalize_typed<scalar_t, 1>(p, stream)));
  return "orthogonalize: unknown element type";
}

const char* launch_advance(const AdvanceParams& p, Stream stream) {
  const bool packed = aligned_to_16(p.basis) && aligned_to_16(p.w);
  LSFAST_DISPATCH_REAL(p.kind, constexpr int kWidth = 16 / sizeof(scalar_t);
                       return packed && p.n % kWidth == 0 ? (advance_typed<scalar_t, kWidth>(p, stream))
                                                          : (advance_typed<scalar_t, 1>(p, stream)));
  return "lanczos_advance: unknown element type";
}

const char* launch_tridiagonal(const TridiagonalParams& p, Stream stream) {
  return LSFAST_LAUNCH(tridiagonal_kernel, dim3(grid_size(p.k, kWarpSize, INT32_MAX)), dim3(kWarpSize), 0, stream, p);
}

}  // namespace lsfast::spectrum
