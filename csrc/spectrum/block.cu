// CUDA kernels for a block of vectors against a basis. Bound by memory; sums are made in stages of fixed order (lanes,
// warps and blocks; then units), so a result is the same from run to run and on every device.
#include "spectrum/block.h"

#include "platform/launch.h"

namespace lsfast::spectrum {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kVectors = 4;      // of the block W, that a thread block takes
constexpr int kRowsAtOnce = 16;  // of the basis, whose sums wait in shared memory for one barrier
constexpr int kOutputs = 4;      // combinations that a thread makes in one reading of its columns
constexpr int kGridLimit = 264;  // thread blocks of a combination: two for each of 132 processors

// What a thread holds of one unit of a vector: kPacks packs of kWidth elements, kThreads packs apart.
template <class T, int kWidth>
struct ThreadUnit {
  static constexpr int kPacks = static_cast<int>(kBlockUnitBytes / sizeof(T)) / (kThreads * kWidth);
  using OnePack = Pack<T, kWidth>;

  int64_t first;  // of this thread's elements
  int64_t n;      // a multiple of kWidth

  __device__ __forceinline__ int64_t at(int pack) const {
    return first + static_cast<int64_t>(pack) * kThreads * kWidth;
  }
  __device__ __forceinline__ OnePack load(const T* vector, int pack) const {
    return at(pack) < n ? *reinterpret_cast<const OnePack*>(vector + at(pack)) : OnePack{};
  }
  __device__ __forceinline__ void store(OnePack value, T* vector, int pack) const {
    if (at(pack) < n) *reinterpret_cast<OnePack*>(vector + at(pack)) = value;
  }
};

// The sums over a warp of each of four values, by halving what a lane holds: 6 exchanges in place of 20. Lane l returns
// the sum of value l / 8.
__device__ __forceinline__ double four_warp_sums(const double (&value)[kVectors], int lane) {
  const bool upper = (lane & 16) != 0;
  const double even = (upper ? value[2] : value[0]) + __shfl_xor_sync(kFullWarp, upper ? value[0] : value[2], 16);
  const double odd = (upper ? value[3] : value[1]) + __shfl_xor_sync(kFullWarp, upper ? value[1] : value[3], 16);
  const bool second = (lane & 8) != 0;
  double sum = (second ? odd : even) + __shfl_xor_sync(kFullWarp, second ? even : odd, 8);
  for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
  return sum;
}

// Grid: units * groups of kVectors vectors, the groups of one unit side by side so that they find its rows in L2.
// Bytes: Q once for each of subtracting and projecting (the second time from L2, where the block has just had it), W
// once, the new W once when subtracting. A thread sums at most 16 products in T, everything above that in float64: the
// error of a sum is at most 17 eps sum |x_i y_i|.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) block_project_kernel(BlockProjectParams p) {
  using Unit = ThreadUnit<T, kWidth>;
  __shared__ double warp_sums[kRowsAtOnce][kVectors][kWarps];
  const int64_t groups = (p.b + kVectors - 1) / kVectors;
  const int64_t index = static_cast<int64_t>(blockIdx.x) / groups;
  const int64_t first_vector = static_cast<int64_t>(blockIdx.x) % groups * kVectors;
  const int vectors = static_cast<int>(p.b - first_vector < kVectors ? p.b - first_vector : kVectors);
  const Unit unit{index * p.unit() + static_cast<int64_t>(threadIdx.x) * kWidth, p.n};
  const T* const rows = static_cast<const T*>(p.rows);
  T* const block = static_cast<T*>(p.block) + first_vector * p.block_stride;
  const int lane = threadIdx.x % kWarpSize;
  const int warp = threadIdx.x / kWarpSize;
  typename Unit::OnePack w[kVectors][Unit::kPacks] = {};

  if (p.coefficients != nullptr) {
    const double* const c = p.coefficients + first_vector * p.s;
    for (int64_t j = 0; j < p.s; ++j) {
      typename Unit::OnePack row[Unit::kPacks];
#pragma unroll
      for (int i = 0; i < Unit::kPacks; ++i) row[i] = unit.load(rows + j * p.rows_stride, i);
#pragma unroll
      for (int v = 0; v < kVectors; ++v) {
        if (v >= vectors) break;
        const T factor = static_cast<T>(c[v * p.s + j]);
#pragma unroll
        for (int i = 0; i < Unit::kPacks; ++i) {
#pragma unroll
          for (int e = 0; e < kWidth; ++e) w[v][i].element[e] += factor * row[i].element[e];
        }
      }
    }
  }
#pragma unroll
  for (int v = 0; v < kVectors; ++v) {
    if (v >= vectors) break;
#pragma unroll
    for (int i = 0; i < Unit::kPacks; ++i) {
      typename Unit::OnePack value = unit.load(block + v * p.block_stride, i);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) value.element[e] -= w[v][i].element[e];
      w[v][i] = value;
      if (p.coefficients != nullptr) unit.store(value, block + v * p.block_stride, i);
    }
  }
  if (p.partial == nullptr) return;

  const int64_t units = p.units();
  for (int64_t first = 0; first < p.s; first += kRowsAtOnce) {
    const int count = static_cast<int>(p.s - first < kRowsAtOnce ? p.s - first : kRowsAtOnce);
    for (int r = 0; r < count; ++r) {
      T dot[kVectors] = {};
#pragma unroll
      for (int i = 0; i < Unit::kPacks; ++i) {
        const typename Unit::OnePack row = unit.load(rows + (first + r) * p.rows_stride, i);
#pragma unroll
        for (int v = 0; v < kVectors; ++v) {
#pragma unroll
          for (int e = 0; e < kWidth; ++e) dot[v] += row.element[e] * w[v][i].element[e];
        }
      }
      double wide[kVectors];
#pragma unroll
      for (int v = 0; v < kVectors; ++v) wide[v] = static_cast<double>(dot[v]);
      const double sum = four_warp_sums(wide, lane);
      if (lane % 8 == 0) warp_sums[r][lane / 8][warp] = sum;
    }
    __syncthreads();
    if (static_cast<int>(threadIdx.x) < count * vectors) {
      const int r = static_cast<int>(threadIdx.x) % count;
      const int v = static_cast<int>(threadIdx.x) / count;
      double sum = 0.0;
      for (int i = 0; i < kWarps; ++i) sum += warp_sums[r][v][i];
      p.partial[((first_vector + v) * p.s + first + r) * units + index] = sum;
    }
    __syncthreads();
  }
}

// sums[i] = sum over units of partial[i, unit]. Grid: b * s blocks.
__global__ void __launch_bounds__(kThreads) block_total_kernel(const double* partial, double* sums, int64_t units) {
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

// A thread makes all combinations of its columns, kOutputs in one reading of them; in place, they wait in its own
// columns of the scratch until the last has been made. Bytes: Q and out once; what is read again, and the scratch, fit
// into L2 (264 blocks of 4 KiB times the rows: 25 MB for 24).
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) block_combine_kernel(BlockCombineParams p) {
  using OnePack = Pack<T, kWidth>;
  const T* const rows = static_cast<const T*>(p.rows);
  T* const out = static_cast<T*>(p.out);
  const int64_t own = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kWidth;
  T* const scratch = static_cast<T*>(p.scratch);
  for (int64_t at = own; at < p.n; at += p.scratch_columns) {
    T* const target = scratch != nullptr ? scratch + own : out + at;
    const int64_t stride = scratch != nullptr ? p.scratch_columns : p.out_stride;
    for (int64_t first = 0; first < p.p; first += kOutputs) {
      const int outputs = static_cast<int>(p.p - first < kOutputs ? p.p - first : kOutputs);
      const double* const c = p.coefficients + first * p.s;
      OnePack sum[kOutputs] = {};
#pragma unroll 1
      for (int64_t j = 0; j < p.s; ++j) {
        const OnePack row = *reinterpret_cast<const OnePack*>(rows + j * p.rows_stride + at);
#pragma unroll
        for (int i = 0; i < kOutputs; ++i) {
          const T factor = i < outputs ? static_cast<T>(c[i * p.s + j]) : T(0);
#pragma unroll
          for (int e = 0; e < kWidth; ++e) sum[i].element[e] += factor * row.element[e];
        }
      }
#pragma unroll
      for (int i = 0; i < kOutputs; ++i) {
        if (i < outputs) *reinterpret_cast<OnePack*>(target + (first + i) * stride) = sum[i];
      }
    }
    for (int64_t i = 0; scratch != nullptr && i < p.p; ++i) {
      *reinterpret_cast<OnePack*>(out + i * p.out_stride + at) = *reinterpret_cast<const OnePack*>(target + i * stride);
    }
  }
}

template <class T>
bool packed(const void* rows, int64_t rows_stride, const void* others, int64_t others_stride, int64_t n) {
  constexpr int64_t kWidth = 16 / sizeof(T);
  return aligned_to_16(rows) && aligned_to_16(others) && rows_stride % kWidth == 0 && others_stride % kWidth == 0 &&
         n % kWidth == 0;
}

template <class T>
const char* project_typed(const BlockProjectParams& p, Stream stream) {
  const dim3 grid(static_cast<unsigned>(p.units() * ((p.b + kVectors - 1) / kVectors)));
  constexpr int kWidth = 16 / sizeof(T);
  const char* const error = packed<T>(p.rows, p.rows_stride, p.block, p.block_stride, p.n)
                                ? LSFAST_LAUNCH((block_project_kernel<T, kWidth>), grid, dim3(kThreads), 0, stream, p)
                                : LSFAST_LAUNCH((block_project_kernel<T, 1>), grid, dim3(kThreads), 0, stream, p);
  if (error != nullptr || p.partial == nullptr) return error;
  return LSFAST_LAUNCH(block_total_kernel, dim3(static_cast<unsigned>(p.b * p.s)), dim3(kThreads), 0, stream,
                       static_cast<const double*>(p.partial), p.sums, p.units());
}

template <class T>
const char* combine_typed(const BlockCombineParams& p, Stream stream) {
  constexpr int kWidth = 16 / sizeof(T);
  if (packed<T>(p.rows, p.rows_stride, p.out, p.out_stride, p.n)) {
    const dim3 grid(static_cast<unsigned>(p.scratch_columns / (kThreads * kWidth)));
    return LSFAST_LAUNCH((block_combine_kernel<T, kWidth>), grid, dim3(kThreads), 0, stream, p);
  }
  const dim3 grid(static_cast<unsigned>(p.scratch_columns / kThreads));
  return LSFAST_LAUNCH((block_combine_kernel<T, 1>), grid, dim3(kThreads), 0, stream, p);
}

}  // namespace

int64_t block_combine_columns(const BlockCombineParams& p) {
  const int64_t width = 16 / (p.kind == ScalarKind::kFloat64 ? 8 : 4);
  return static_cast<int64_t>(grid_size(p.n, kThreads * width, kGridLimit)) * kThreads * width;
}

const char* launch_block_project(const BlockProjectParams& p, Stream stream) {
  LSFAST_DISPATCH_REAL(p.kind, return project_typed<scalar_t>(p, stream));
  return "block_project: unknown element type";
}

const char* launch_block_combine(const BlockCombineParams& p, Stream stream) {
  LSFAST_DISPATCH_REAL(p.kind, return combine_typed<scalar_t>(p, stream));
  return "block_combine: unknown element type";
}

}  // namespace lsfast::spectrum
