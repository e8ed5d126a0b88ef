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
  if constexpr (sizeof(T) >= sizeof(float)) {
    stream_store(y + head, values + head, body);
  } else {
    std::memcpy(y + head, values + head, static_cast<size_t>(body) * sizeof(T));
  }
  for (int64_t i = head + body; i < count; ++i) y[i] = values[i];
}

// The tile of theta and of the directions is read from memory by the first point and from the cache by the others.
template <class T>
void points_range(const PointsParams& p, int64_t begin, int64_t end) {
  const int64_t n = p.set.n;
  T* const points = static_cast<T*>(p.points);
  const bool streaming = p.g * n * static_cast<int64_t>(sizeof(T)) >= kStreamingBytes;
  alignas(64) T values[kPointsTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kPointsTile;
    const int64_t count = std::min(kPointsTile, n - first);
    for (int64_t point = 0; point < p.g; ++point) {
      form_numbers(p.set.template point<T>(point), first, count, values);
      T* const y = points + point * n + first;
      if (streaming) {
        stream_row(y, values, count);
      } else {
        std::memcpy(y, values, static_cast<size_t>(count) * sizeof(T));
      }
    }
  }
  if (streaming) stream_fence();
}

void points(const PointsParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, points_range<scalar_t>(p, begin, end));
}

// ---- segments ------------------------------------------------------------------------------------------------------

// Calls function(id, row, chunk) for a range of rows * units. The segment of the first unit of a row is found by
// bisection, those of the units after it by going on from there.
template <class Function>
LSFAST_HD void for_chunks(const Segments& segments, int64_t begin, int64_t end, const Function& function) {
  const int64_t units = segments.units();
  for (int64_t id = begin; id < end;) {
    const int64_t row = id / units;
    const int64_t stop = std::min(end, (row + 1) * units);
    int64_t segment = segment_of_unit(segments, id - row * units);
    for (; id < stop; ++id) {
      const int64_t unit = id - row * units;
      while (segment + 1 < segments.s && segments.first_unit(segment + 1) <= unit) ++segment;
      function(id, row, chunk_of_segment(segments, segment, unit));
    }
  }
}

template <class T>
void dots_range(const DotsParams& p, int64_t begin, int64_t end) {
  for_chunks(p.segments, begin, end, [&](int64_t id, int64_t row, const SegmentChunk& chunk) {
    const int64_t start = row * p.segments.n + (chunk.count > 0 ? chunk.first : 0);
    const T* const x = static_cast<const T*>(p.x) + start;
    const T* const y = static_cast<const T*>(p.y) + start;
    p.partial[id] = ordered_sum<double>(
        chunk.count, [&](int64_t i) { return static_cast<double>(x[i]) * static_cast<double>(y[i]); });
  });
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
  for_chunks(p.segments, begin, end, [&](int64_t, int64_t row, const SegmentChunk& chunk) {
    if (chunk.count == 0) return;
    const T factor = static_cast<T>(p.factors[row * p.segments.s + chunk.segment]);
    T* const x = static_cast<T*>(p.x) + row * p.segments.n + chunk.first;
    for (int64_t i = 0; i < chunk.count; ++i) x[i] *= factor;
  });
}

void scale(const ScaleParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, scale_range<scalar_t>(p, begin, end));
}

constexpr CpuKernels kKernels = {points, dots, combine, scale};

}  // namespace lsfast::landscape::LSFAST_ISA
