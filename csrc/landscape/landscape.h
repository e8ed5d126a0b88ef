// The landscape room: points around the parameters, and the segments (filters, layers) directions are scaled by.
// Parameters, CPU kernel table and CUDA launchers, in plain C++.
#pragma once

#include "numerics/points.h"
#include "platform/reduction.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::landscape {

// points[i] = ((theta + c[i, 0] D[0]) + c[i, 1] D[1]) + ...
struct PointsParams {
  PointSet set;
  void* points;  // [g, n] of `kind`
  int64_t g;
  ScalarKind kind;
};

constexpr int64_t kPointsTile = 1024;  // parameters the CPU kernel forms together, for all points

// Sums over segments in a fixed order, the same on every device: a segment is cut into chunks of kSegmentChunk from its
// start, a chunk's element i goes to partial sum i % kSegmentLanes, those are added by halves, the chunks one by one.
constexpr int64_t kSegmentChunk = 1024;
constexpr int kSegmentLanes = kSumLanes;

// Segment i of each row is x[:, offsets[i] : offsets[i + 1]]. Its chunks are the units offsets[i] / kSegmentChunk + i
// and up, which no other segment's reach: a unit finds its segment by bisection and no table of chunks is needed. Units
// between two segments' have no elements.
struct Segments {
  const int64_t* offsets;  // [s + 1], ascending, in 0 .. n
  int64_t rows;
  int64_t n;
  int64_t s;

  LSFAST_HD int64_t units() const { return n / kSegmentChunk + s; }
  LSFAST_HD int64_t first_unit(int64_t segment) const { return offsets[segment] / kSegmentChunk + segment; }
  LSFAST_HD int64_t chunks(int64_t segment) const {
    return (offsets[segment + 1] - offsets[segment] + kSegmentChunk - 1) / kSegmentChunk;
  }
};

struct DotsParams {
  Segments segments;
  const void* x;    // [rows, n] of `kind`
  const void* y;    // [rows, n] of `kind`; x itself for norms
  double* partial;  // [rows, units], the sum of each chunk
  double* result;   // [rows, s]
  bool root;        // norms: the square root of each sum
  ScalarKind kind;
};

struct ScaleParams {
  Segments segments;
  void* x;                // [rows, n] of `kind`, scaled in place
  const double* factors;  // [rows, s], each rounded to `kind` before it multiplies
  ScalarKind kind;
};

struct SegmentChunk {
  int64_t segment;
  int64_t first;  // within a row
  int64_t count;  // 0 where the unit has no elements
};

// The last segment whose units start at `unit` or before it; the first where none does.
LSFAST_HD int64_t segment_of_unit(const Segments& segments, int64_t unit) {
  int64_t low = 0;
  int64_t high = segments.s;  // the segment lies in [low, high)
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    if (segments.first_unit(middle) <= unit) {
      low = middle;
    } else {
      high = middle;
    }
  }
  return low;
}

// Stays inside the row whatever the offsets hold: on a GPU nobody has looked at them.
LSFAST_HD SegmentChunk chunk_of_segment(const Segments& segments, int64_t segment, int64_t unit) {
  const int64_t before = segments.first_unit(segment);
  const int64_t first = segments.offsets[segment] + (unit - before) * kSegmentChunk;
  const int64_t end = segments.offsets[segment + 1] < segments.n ? segments.offsets[segment + 1] : segments.n;
  const bool inside = unit >= before && first >= 0 && first < end;
  const int64_t left = inside ? end - first : 0;
  return {segment, first, left < kSegmentChunk ? left : kSegmentChunk};
}

LSFAST_HD SegmentChunk chunk_of_unit(const Segments& segments, int64_t unit) {
  return chunk_of_segment(segments, segment_of_unit(segments, unit), unit);
}

// Adds up the chunks of one segment of one row.
LSFAST_HD double sum_of_chunks(const Segments& segments, const double* partial, int64_t row, int64_t segment) {
  const int64_t units = segments.units();
  const int64_t first = segments.first_unit(segment);
  double sum = 0.0;
  for (int64_t unit = first; unit < first + segments.chunks(segment); ++unit) {
    if (unit >= 0 && unit < units) sum += partial[row * units + unit];
  }
  return sum;
}

// Each works on a range, which may run on any thread.
struct CpuKernels {
  void (*points)(const PointsParams&, int64_t begin, int64_t end);  // over tiles of n
  void (*dots)(const DotsParams&, int64_t begin, int64_t end);      // over rows * units: fills `partial`
  void (*combine)(const DotsParams&, int64_t begin, int64_t end);   // over rows * s: fills `result`
  void (*scale)(const ScaleParams&, int64_t begin, int64_t end);    // over rows * units
};

const char* launch_points(const PointsParams& params, Stream stream);
const char* launch_dots(const DotsParams& params, Stream stream);
const char* launch_scale(const ScaleParams& params, Stream stream);

}  // namespace lsfast::landscape
