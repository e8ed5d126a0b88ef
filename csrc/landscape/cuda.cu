// CUDA kernels of the landscape room. The points kernel is bound by memory, 16 bytes an access where alignment allows;
// sums and scaling over segments take a chunk of a segment at a time, in the order landscape.h fixes.
#include "landscape/landscape.h"
#include "platform/launch.h"

namespace lsfast::landscape {
namespace {

constexpr int kThreads = 256;

// ---- points --------------------------------------------------------------------------------------------------------

// D directions held in registers; 0: any number, read again for each point, from the cache after the first.
// Bytes: reads theta and the directions once, writes each point once.
template <class T, int kCount, int D>
__global__ void __launch_bounds__(kThreads) points_kernel(PointsParams p) {
  using A = Arithmetic<T>;
  using P = Pack<T, kCount>;
  const P* const theta = static_cast<const P*>(p.set.theta);
  const P* const directions = static_cast<const P*>(p.set.directions);
  const T* const coordinates = static_cast<const T*>(p.set.coordinates);
  P* const points = static_cast<P*>(p.points);
  const int64_t packs = p.set.n / kCount;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += threads) {
    const P t = theta[i];
    P d[D > 0 ? D : 1];
#pragma unroll
    for (int k = 0; k < D; ++k) d[k] = directions[k * packs + i];
    for (int64_t point = 0; point < p.g; ++point) {
      const T* const c = coordinates + point * p.set.d;
      A value[kCount];
#pragma unroll
      for (int e = 0; e < kCount; ++e) value[e] = widen(t.element[e]);
      if constexpr (D > 0) {
#pragma unroll
        for (int k = 0; k < D; ++k) {
          const A step = widen(c[k]);
#pragma unroll
          for (int e = 0; e < kCount; ++e) value[e] = value[e] + step * widen(d[k].element[e]);
        }
      } else {
#pragma unroll 1
        for (int64_t k = 0; k < p.set.d; ++k) {
          const A step = widen(c[k]);
          const P direction = directions[k * packs + i];
#pragma unroll
          for (int e = 0; e < kCount; ++e) value[e] = value[e] + step * widen(direction.element[e]);
        }
      }
      P result;
#pragma unroll
      for (int e = 0; e < kCount; ++e) result.element[e] = narrow<T>(value[e]);
      points[point * packs + i] = result;
    }
  }
}

template <class T, int kCount>
const char* points_packed(const PointsParams& p, Stream stream) {
  const dim3 blocks(grid_size(p.set.n / kCount, kThreads));
  switch (p.set.d) {
    case 1:
      return LSFAST_LAUNCH((points_kernel<T, kCount, 1>), blocks, dim3(kThreads), 0, stream, p);
    case 2:
      return LSFAST_LAUNCH((points_kernel<T, kCount, 2>), blocks, dim3(kThreads), 0, stream, p);
    case 3:
      return LSFAST_LAUNCH((points_kernel<T, kCount, 3>), blocks, dim3(kThreads), 0, stream, p);
    default:
      return LSFAST_LAUNCH((points_kernel<T, kCount, 0>), blocks, dim3(kThreads), 0, stream, p);
  }
}

template <class T>
const char* points_typed(const PointsParams& p, Stream stream) {
  constexpr int kCount = 16 / sizeof(T);
  const bool packed =
      aligned_to_16(p.set.theta) && aligned_to_16(p.set.directions) && aligned_to_16(p.points) && p.set.n % kCount == 0;
  return packed ? points_packed<T, kCount>(p, stream) : points_packed<T, 1>(p, stream);
}

// ---- segments ------------------------------------------------------------------------------------------------------

// kSegmentLanes neighbouring lanes have a chunk, two chunks a warp. Bytes: reads x once (and y, where it is another).
template <class T>
__global__ void __launch_bounds__(kThreads) dots_kernel(DotsParams p) {
  constexpr int kUnits = kThreads / kSegmentLanes;
  const int lane = static_cast<int>(threadIdx.x) % kSegmentLanes;
  const int64_t units = p.segments.units();
  const int64_t total = p.segments.rows * units;
  // Every lane of a warp runs the same number of rounds, so that all take part in the shuffles.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kUnits; base < total;
       base += static_cast<int64_t>(gridDim.x) * kUnits) {
    const int64_t id = base + threadIdx.x / kSegmentLanes;
    double sum = 0.0;
    if (id < total) {
      const SegmentChunk chunk = chunk_of_unit(p.segments, id % units);
      const int64_t start = id / units * p.segments.n + chunk.first;
      for (int64_t i = lane; i < chunk.count; i += kSegmentLanes) {
        sum += static_cast<double>(static_cast<const T*>(p.x)[start + i]) *
               static_cast<double>(static_cast<const T*>(p.y)[start + i]);
      }
    }
#pragma unroll
    for (int width = kSegmentLanes / 2; width > 0; width /= 2) sum += __shfl_xor_sync(kFullWarp, sum, width);
    if (lane == 0 && id < total) p.partial[id] = sum;
  }
}

// A thread has a segment. Bytes: reads the partial sums once, 8 for each 1024 elements.
__global__ void __launch_bounds__(kThreads) combine_kernel(DotsParams p) {
  const int64_t total = p.segments.rows * p.segments.s;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t id = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; id < total; id += threads) {
    const double sum = sum_of_chunks(p.segments, p.partial, id / p.segments.s, id % p.segments.s);
    p.result[id] = p.root ? sqrt(sum) : sum;
  }
}

// A block has a chunk. Bytes: reads and writes x once.
template <class T>
__global__ void __launch_bounds__(kThreads) scale_kernel(ScaleParams p) {
  const int64_t units = p.segments.units();
  const int64_t total = p.segments.rows * units;
  for (int64_t id = blockIdx.x; id < total; id += gridDim.x) {
    const SegmentChunk chunk = chunk_of_unit(p.segments, id % units);
    const int64_t row = id / units;
    const T factor = static_cast<T>(p.factors[row * p.segments.s + chunk.segment]);
    T* const x = static_cast<T*>(p.x) + row * p.segments.n + chunk.first;
    for (int64_t i = threadIdx.x; i < chunk.count; i += kThreads) x[i] *= factor;
  }
}

template <class T>
const char* dots_typed(const DotsParams& p, Stream stream) {
  const int64_t rows = p.segments.rows;
  const dim3 blocks(grid_size(rows * p.segments.units(), kThreads / kSegmentLanes));
  if (const char* error = LSFAST_LAUNCH(dots_kernel<T>, blocks, dim3(kThreads), 0, stream, p)) return error;
  const dim3 combining(grid_size(rows * p.segments.s, kThreads));
  return LSFAST_LAUNCH(combine_kernel, combining, dim3(kThreads), 0, stream, p);
}

template <class T>
const char* scale_typed(const ScaleParams& p, Stream stream) {
  const dim3 blocks(grid_size(p.segments.rows * p.segments.units(), 1));
  return LSFAST_LAUNCH(scale_kernel<T>, blocks, dim3(kThreads), 0, stream, p);
}

}  // namespace

const char* launch_points(const PointsParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return points_typed<scalar_t>(p, stream));
  return "parameter_points: unknown element type";
}

const char* launch_dots(const DotsParams& p, Stream stream) {
  LSFAST_DISPATCH_REAL(p.kind, return dots_typed<scalar_t>(p, stream));
}

const char* launch_scale(const ScaleParams& p, Stream stream) {
  LSFAST_DISPATCH_REAL(p.kind, return scale_typed<scalar_t>(p, stream));
}

}  // namespace lsfast::landscape
