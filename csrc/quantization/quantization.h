// The quantization room: fake-quantization, packed codes and statistics of a tensor under a scheme, and the Hadamard
// transform in front. Parameters, CPU kernel table and CUDA launchers, in plain C++.
//
// A tensor is seen as [outer, height, length, inner], row-major: blocks run along `length`; a two-dimensional block
// also along `height`. One kernel family serves every scheme, since all are value = round(x multiplier) factor:
// a scheme is a row of numbers (numerics/scheme.h), and a kernel's steps (load, transform, largest magnitude, scale,
// multiply, round, multiply, store) each look at the one number that concerns them.
#pragma once

#include "numerics/points.h"
#include "numerics/scheme.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::quantization {

// The five sums of a statistics row, float64.
enum Statistic : int32_t {
  kSaturated = 0,     // elements beyond the largest of their scale
  kFlushed = 1,       // elements that are not zero and became zero
  kSquaredError = 2,  // of what is returned against x (after the transform, where there is one)
  kSquaredSum = 3,    // of x
  kLargest = 4,       // largest finite |x|
};
constexpr int kStatistics = 5;

// What a statistics row covers.
enum class Granularity : int32_t { kNone = 0, kTensor = 1, kRow = 2, kBlock = 3 };

struct QuantizeParams {
  const void* x;              // [tensors, outer, height, length, inner] of `kind`; null where numbers are formed
  PointSet points;            // tensor i is point i, formed as it is read; inner == 1, values are wanted
  void* y;                    // the shape of x; may be x; null where codes are wanted
  uint8_t* codes;             // [outer * height, line_bytes], each line packed from its lowest bit; null for values
  void* scales;               // [outer, height blocks, length blocks] uint8 (E8M0, E4M3) or float32; null for values
  double* statistics;         // [rows, kStatistics]; null for none
  double* partial;            // CUDA: scratch of partial_sums(params) numbers; null where that is 0
  const uint32_t* amax_bits;  // [tensors] float32 bits of the largest magnitude; null where the scheme needs none
  int64_t tensors;            // independent ones, each with its own largest magnitude: the vmap axis, else 1
  int64_t outer;
  int64_t height;
  int64_t length;
  int64_t inner;
  int64_t word_inner;  // stochastic rounding counts an element (line, i, c) of a tensor that was moved to end with its
                       // block axis as if it still lay at [line / word_inner, i, line % word_inner]; 1 if it was not
  int64_t block_height;  // 1, but for two-dimensional blocks
  int64_t block_length;  // `length` for a whole row
  int64_t line_bytes;
  QuantScheme scheme;
  Granularity granularity;
  bool derivative;  // write 0 where the value saturated and 1 elsewhere, in place of the value
  uint64_t seed;
  uint64_t stream;
  ScalarKind kind;

  // Does the largest magnitude of a tensor leave out Inf and NaN? Else they sort above every number.
  LSFAST_HD bool finite_amax() const { return scheme.tensor_scale || scheme.hadamard.size > 0; }
  LSFAST_HD int64_t per_tensor() const { return outer * height * length * inner; }
  LSFAST_HD int64_t lines() const { return outer * height; }
  LSFAST_HD int64_t length_blocks() const { return (length + block_length - 1) / block_length; }
  LSFAST_HD int64_t height_blocks() const { return (height + block_height - 1) / block_height; }
  LSFAST_HD bool whole_rows() const { return block_length == length; }
  LSFAST_HD bool formed() const { return x == nullptr; }
};

// How many numbers of scratch the CUDA kernels need for statistics: a row of sums for each CUDA block, or for each
// piece of a line.
constexpr int64_t kPartialBlocks = 1024;
constexpr int64_t kLinePiece = 256;    // elements along `length`, where inner == 1
constexpr int64_t kColumnPiece = 128;  // elsewhere
LSFAST_HD int64_t pieces_of_line(const QuantizeParams& p) {
  const int64_t piece = p.inner == 1 ? kLinePiece : kColumnPiece;
  return (p.length + piece - 1) / piece;
}
LSFAST_HD int64_t partial_sums(const QuantizeParams& p) {
  if (p.granularity == Granularity::kTensor) return kPartialBlocks * kStatistics;
  return p.granularity == Granularity::kRow ? p.lines() * pieces_of_line(p) * p.inner * kStatistics : 0;
}

struct DequantizeParams {
  const uint8_t* codes;       // [outer * height, line_bytes]
  const void* scales;         // [outer, height blocks, length blocks]; null without scales
  const uint32_t* amax_bits;  // [1]; null where the scheme has no tensor scale
  void* y;                    // [outer, height, length] of `kind`
  int64_t outer;
  int64_t height;
  int64_t length;
  int64_t block_height;
  int64_t block_length;
  int64_t line_bytes;
  QuantScheme scheme;
  ScalarKind kind;

  LSFAST_HD int64_t length_blocks() const { return (length + block_length - 1) / block_length; }
  LSFAST_HD int64_t height_blocks() const { return (height + block_height - 1) / block_height; }
};

struct AmaxParams {
  const void* x;        // [tensors, per_tensor] of `kind`
  uint32_t* amax_bits;  // [tensors] for CUDA, zeroed by the caller; [tensors, chunks] partial results for the CPU
  int64_t tensors;
  int64_t per_tensor;
  bool finite_only;  // leave out Inf and NaN (block-scaled schemes); else they sort above every number
  ScalarKind kind;

  static constexpr int64_t kChunk = 16384;
  LSFAST_HD int64_t chunks() const { return (per_tensor + kChunk - 1) / kChunk; }
};

// y = H (signs x) / sqrt(size) along `length`, or signs (H x) / sqrt(size) for the inverse.
struct HadamardParams {
  const void* x;  // [outer, length, inner] of `kind`
  void* y;        // the same; may be x
  int64_t outer;
  int64_t length;  // a multiple of size
  int64_t inner;
  Hadamard transform;
  bool inverse;
  ScalarKind kind;
};

// Each works on a range, which may run on any thread.
struct CpuKernels {
  void (*amax)(const AmaxParams&, int64_t begin, int64_t end);  // over tensors * chunks
  int64_t (*units)(const QuantizeParams&);                      // of one tensor
  // Over units of a tensor. `partial`: [units, kStatistics] for statistics of the tensor.
  void (*quantize)(const QuantizeParams&, int64_t tensor, double* partial, int64_t begin, int64_t end);
  // The largest finite magnitude after the transform, of each unit: amax[unit].
  void (*transformed_amax)(const QuantizeParams&, int64_t tensor, uint32_t* amax, int64_t begin, int64_t end);
  // Over units, each of all points: they are formed from one read of theta and the directions.
  void (*quantize_points)(const QuantizeParams&, int64_t begin, int64_t end);
  // The largest magnitude of each unit of each point: amax[unit, point].
  void (*points_amax)(const QuantizeParams&, uint32_t* amax, int64_t begin, int64_t end);
  void (*dequantize)(const DequantizeParams&, int64_t begin, int64_t end);  // over lines
  void (*hadamard)(const HadamardParams&, int64_t begin, int64_t end);      // over outer * length / size
};

const char* launch_amax(const AmaxParams& params, Stream stream);
// Fills params.amax_bits, zeroed by the caller, with the largest finite magnitude after the transform.
const char* launch_transformed_amax(const QuantizeParams& params, uint32_t* amax_bits, Stream stream);
// Fills params.amax_bits, zeroed by the caller, with the largest magnitude of each point.
const char* launch_points_amax(const QuantizeParams& params, uint32_t* amax_bits, Stream stream);
const char* launch_quantize_points(const QuantizeParams& params, Stream stream);
// Values and statistics, or codes and scales.
const char* launch_quantize(const QuantizeParams& params, Stream stream);
const char* launch_dequantize(const DequantizeParams& params, Stream stream);
const char* launch_hadamard(const HadamardParams& params, Stream stream);

}  // namespace lsfast::quantization
