// Layer, RMS, group, instance and batch normalization: parameters, CPU kernels, CUDA launchers.
//
// With xhat = r (x - mu), r = (variance + eps)^(-1/2), <.> the mean over the elements that share mu and r, g = w ybar:
//   forward  y = w xhat + b
//   jvp      xhat' = r (x' - m1 - m2 xhat),  m1 = <x'>, m2 = <xhat x'>            (r' = -r^2 m2)
//            y' = w xhat' + w' xhat + b'
//   vjp      xbar = r (g - c1 - c2 xhat),  c1 = <g>, c2 = <xhat g>;  wbar = sum ybar xhat;  bbar = sum ybar
//   vjp_jvp  with g' = w ybar' + w' ybar, e1 = <g'>, e2 = <xhat g'>, e3 = <x' g>:
//            xbar' = r (g' - e1 - e2 xhat) - r^2 m2 g - r^2 c2 x' + A + B xhat,
//                    A = r^2 (m2 c1 + c2 m1),  B = -r^2 (e3 - m1 c1 - 3 m2 c2)
//            wbar' = sum ybar' xhat + ybar xhat';  bbar' = sum ybar'
// the last by the product rule on xbar, with <xhat' g> = r (e3 - m1 c1 - m2 c2). RMS norm: mu, m1, c1, e1 are 0.
//
// Two families. Row normalization (layer, RMS): a row shares mu and r, w runs along it; each part is one kernel that
// takes its sums and its results from a row while that is in cache. Channel normalization (batch, group, instance): w
// is the same for a whole plane, so every part is sums over planes, then formulas on those few sums (in
// lsfast/program/rules/normalization.py), then one pass that is linear in the tensors.
#pragma once

#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::curvature {

// F is float64 for kFloat64, else float32.
struct RowNormParams {
  const void* x;         // [rows, columns] of `kind`
  const void* mean;      // [rows] of F; null: RMS normalization
  const void* rstd;      // [rows] of F
  const void* weight;    // [columns] of F
  const void* held;      // [rows, columns] of `kind`, ybar of a vjp_jvp, together with x_tangents; null in jvp and vjp
  const void* adjoints;  // [k, rows, columns] of `kind`, adjoints_stride apart; null in jvp
  const void* x_tangents;       // [k, rows, columns] of `kind`, tangents_stride apart, or null
  const void* weight_tangents;  // [k, columns] of F, or null; in a vjp together with x_tangents
  const void* bias_tangents;    // [k, columns] of F in jvp, together with weight_tangents
  void* out;                    // [k, rows, columns] of `kind`: y' or xbar; null: not wanted
  void* partial;                // [2, k, parts, columns] of F: wbar and bbar of each part of the rows; null: not wanted
  void* means;              // [k, rows, 2] of F, scratch for CUDA: m1 and m2, where partial and x_tangents are given
  int64_t adjoints_stride;  // elements
  int64_t tangents_stride;  // elements
  int64_t k;
  int64_t rows;
  int64_t columns;
  int64_t parts;
  ScalarKind kind;

  LSFAST_HD int64_t rows_per_part() const { return (rows + parts - 1) / parts; }
};

// At most 64 parts of at least 16 rows, whatever runs them.
inline int64_t row_norm_parts(int64_t rows) { return rows < 1024 ? (rows + 15) / 16 : 64; }

// The tensors of channel normalization are [samples, channels, size], dense, mean and coefficients [groups, channels]:
// groups is 1 or samples. Tensors with channels last come as [rows, channels, 1].
struct ChannelNormParams {
  const void* x;             // [samples, channels, size] of `kind`
  const void* mean;          // [groups, channels] of F
  const void* y;             // [samples, channels, size] of `kind`, or null
  const void* a;             // [k, samples, channels, size] of `kind`, a_stride apart; null only in the linear pass
  const void* b;             // [k, samples, channels, size] of `kind`, b_stride apart, or null; linear pass only
  const void* coefficients;  // [5, k, groups, channels] of F: of x - mean, 1, a, b, y; linear pass only
  void* out;                 // [k, samples, channels, size] of `kind`: their linear combination; linear pass only
  void* partial;             // [2 or 3, k, groups, parts, channels] of F: sums of a, a (x - mean), a y; sums only
  int64_t a_stride;          // elements
  int64_t b_stride;          // elements
  int64_t k;
  int64_t samples;
  int64_t channels;
  int64_t size;
  int64_t groups;
  ScalarKind kind;

  LSFAST_HD bool by_columns() const { return size == 1 && groups == 1; }
  LSFAST_HD int64_t parts() const;
};

constexpr int64_t kNormRowChunk = 128;  // rows of [rows, channels] in one part

LSFAST_HD int64_t ChannelNormParams::parts() const {
  return by_columns() ? (samples + kNormRowChunk - 1) / kNormRowChunk : samples / groups;
}

// sums = partial summed over its parts in order, in float64.
struct PartSumParams {
  const void* partial;  // [outer, parts, inner] of F
  double* sums;         // [outer, inner]
  int64_t outer;
  int64_t parts;
  int64_t inner;
  ScalarKind kind;  // kFloat64 where F is float64
};

// Each works on a range, any range on any thread.
struct NormalizationKernels {
  void (*row_norm_jvp)(const RowNormParams&, int64_t begin, int64_t end);             // over rows
  void (*row_norm_vjp)(const RowNormParams&, int64_t begin, int64_t end);             // over parts
  void (*channel_norm_sums)(const ChannelNormParams&, int64_t begin, int64_t end);    // over units
  void (*channel_norm_linear)(const ChannelNormParams&, int64_t begin, int64_t end);  // over units
  void (*part_sums)(const PartSumParams&, int64_t begin, int64_t end);                // over outer
};

// A unit of channel normalization on the CPU is a plane, or a chunk of rows, of all k rows.
inline int64_t channel_norm_units(const ChannelNormParams& p) {
  return p.by_columns() ? p.parts() : p.samples * p.channels;
}

const char* launch_row_norm_jvp(const RowNormParams& params, Stream stream);
const char* launch_row_norm_vjp(const RowNormParams& params, Stream stream);
const char* launch_channel_norm_sums(const ChannelNormParams& params, Stream stream);
const char* launch_channel_norm_linear(const ChannelNormParams& params, Stream stream);
const char* launch_part_sums(const PartSumParams& params, Stream stream);

// The address of an element of a tensor, null where there is no tensor.
template <class T>
LSFAST_HD const T* element(const void* tensor, int64_t index) {
  return tensor == nullptr ? nullptr : static_cast<const T*>(tensor) + index;
}

}  // namespace lsfast::curvature
