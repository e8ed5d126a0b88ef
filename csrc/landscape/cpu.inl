// CPU kernels of the landscape room: a tile of every point from one read of theta and the directions, and sums and
// scaling over segments. Compiled once per instruction set (platform/dispatch.h).
#include "landscape/landscape.h"
#include "platform/reduction.h"
#include "platform/stream_store.h"

namespace lsfast::landscape::LSFAST_ISA {

// ---- points --------------------------------------------------------------------------------------------------------

// A row of a tile past the cache where it is 64-byte aligned, its ends through it: rows of any n start anywhere.
template <class T>
LSFAST_HD void stream_row(T* y, const T* values, int64_t count) {
  constexpr int64_t kLine = 64 / static_cast<int64_t>(sizeof(T));
  const int64_t misaligned = static_cast<int64_t>(reinterpret_cast<uintptr_t>(y) / sizeof(T)) % kLine;
  const int64_t head = std::min(count, (kLine - misaligned) % kLine);
  const int64_t body = (count - head) / 16 * 16;
  for (int64_t i = 0; i < head; ++i) y[i] = values[i];
  stream_store(y + head, values + head, body);
  for (int64_t i = head + body; i < count; ++i) y[i] = values[i];
}

// D directions, known to the compiler; 0: any number. The tile of theta and of the directions is read from memory by
// the first point and from the cache by the others.
template <class T, int D>
void points_range(const PointsParams& p, int64_t begin, int64_t end) {
  const T* const theta = static_cast<const T*>(p.theta);
  const T* const directions = static_cast<const T*>(p.directions);
  const T* const coordinates = static_cast<const T*>(p.coordinates);
  T* const points = static_cast<T*>(p.points);
  const bool streaming = p.g * p.n * static_cast<int64_t>(sizeof(T)) >= kStreamingBytes;
  alignas(64) T values[kPointsTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kPointsTile;
    const int64_t count = std::min(kPointsTile, p.n - first);
    const T* const t = theta + first;
    const T* const d0 = directions + first;
    for (int64_t point = 0; point < p.g; ++point) {
      const T* const c = coordinates + point * p.d;
      if constexpr (D == 1) {
        for (int64_t i = 0; i < count; ++i) values[i] = t[i] + c[0] * d0[i];
      } else if constexpr (D == 2) {
        const T* const d1 = d0 + p.n;
        for (int64_t i = 0; i < count; ++i) values[i] = (t[i] + c[0] * d0[i]) + c[1] * d1[i];
      } else if constexpr (D == 3) {
        const T* const d1 = d0 + p.n;
        const T* const d2 = d1 + p.n;
        for (int64_t i = 0; i < count; ++i) values[i] = ((t[i] + c[0] * d0[i]) + c[1] * d1[i]) + c[2] * d2[i];
      } else {
        for (int64_t i = 0; i < count; ++i) values[i] = t[i] + c[0] * d0[i];
        for (int64_t k = 1; k < p.d; ++k) {
          const T* const direction = d0 + k * p.n;
          for (int64_t i = 0; i < count; ++i) values[i] += c[k] * direction[i];
        }
      }
      T* const y = points + point * p.n + first;
      if (streaming) {
        stream_row(y, values, count);
      } else {
        std::memcpy(y, values, static_cast<size_t>(count) * sizeof(T));
      }
    }
  }
  if (streaming) stream_fence();
}

template <class T>
void points_of(const PointsParams& p, int64_t begin, int64_t end) {
  switch (p.d) {
    case 1:
      return points_range<T, 1>(p, begin, end);
    case 2:
      return points_range<T, 2>(p, begin, end);
    case 3:
      return points_range<T, 3>(p, begin, end);
    default:
      return points_range<T, 0>(p, begin, end);
  }
}

void points(const PointsParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, points_of<scalar_t>(p, begin, end));
}

// ---- segments ------------------------------------------------------------------------------------------------------

template <class T>
void dots_range(const DotsParams& p, int64_t begin, int64_t end) {
  const int64_t units = p.segments.units();
  for (int64_t id = begin; id < end; ++id) {
    const SegmentChunk chunk = chunk_of_unit(p.segments, id % units);
    const int64_t start = id / units * p.segments.n + (chunk.count > 0 ? chunk.first : 0);
    const T* const x = static_cast<const T*>(p.x) + start;
    const T* const y = static_cast<const T*>(p.y) + start;
    p.partial[id] = ordered_sum<double>(
        chunk.count, [&](int64_t i) { return static_cast<double>(x[i]) * static_cast<double>(y[i]); });
  }
}

void dots(const DotsParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, dots_range<scalar_t>(p, begin, end));
}

void combine(const DotsParams& p, int64_t begin, int64_t end) {
  for (int64_t id = begin; id < end; ++id) {
    const double sum = sum_of_chunks(p.segments, p.partial, id / p.segments.s, id % p.segments.s);
    p.result[id] = p.root ? std::sqrt(sum) : sum;
  }
}

template <class T>
void scale_range(const ScaleParams& p, int64_t begin, int64_t end) {
  const int64_t units = p.segments.units();
  for (int64_t id = begin; id < end; ++id) {
    const SegmentChunk chunk = chunk_of_unit(p.segments, id % units);
    if (chunk.count == 0) continue;
    const int64_t row = id / units;
    const T factor = static_cast<T>(p.factors[row * p.segments.s + chunk.segment]);
    T* const x = static_cast<T*>(p.x) + row * p.segments.n + chunk.first;
    for (int64_t i = 0; i < chunk.count; ++i) x[i] *= factor;
  }
}

void scale(const ScaleParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, scale_range<scalar_t>(p, begin, end));
}

constexpr CpuKernels kKernels = {points, dots, combine, scale};

}  // namespace lsfast::landscape::LSFAST_ISA
