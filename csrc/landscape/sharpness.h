// Sharpness: steps uphill within a ball or a box around the parameters, and Keskar's measure on logits. Parameters, CPU
// kernels, CUDA launchers, in plain C++.
#pragma once

#include <cmath>
#include <limits>

#include "numerics/macros.h"
#include "platform/reduction.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::landscape {

// ---- ascent --------------------------------------------------------------------------------------------------------

// k points theta + c * u[j] around one theta, products elementwise, c = slope |theta| + offset. The gradient of the
// loss in u is c * g. All arithmetic is in float64, from and to `kind`, so that one step of float32 rounds once.
struct AscentSumsParams {
  const void* u;         // [k, n] of `kind`, or null: zeros
  const void* gradient;  // [k, n] of `kind`: g at each point
  const void* theta;     // [n] of `kind`
  double* partial;       // [k, 3, chunks]
  double* result;        // [k, 3]: |c g|^2, u . c g, |u|^2
  double slope;
  double offset;
  int64_t n;
  int64_t k;
  ScalarKind kind;

  LSFAST_HD int64_t chunks() const;
};

// Sums in a fixed order, the same on every device: of each chunk by 16 partial sums as platform/reduction.h has it, of
// the chunks by kAscentLanes partial sums, chunk i in sum i % kAscentLanes, then added by halves.
constexpr int64_t kAscentChunk = 1024;
constexpr int kAscentLanes = 256;
constexpr int kAscentSums = 3;

LSFAST_HD int64_t AscentSumsParams::chunks() const { return (n + kAscentChunk - 1) / kAscentChunk; }

// ball: moved = keep u + move (c g);  box: moved = u + move sign(c g), each entry held within +-bound.
// Then points = theta + c moved. The step within a ball is projected by `keep` and `move` themselves, from the sums.
struct AscentStepParams {
  const void* u;               // [k, n] of `kind`, or null: zeros
  const void* gradient;        // [k, n] of `kind`
  const void* theta;           // [n] of `kind`
  const double* coefficients;  // [k, 2]: (keep, move) in a ball, (move, bound) in a box
  void* moved;                 // [k, n] of `kind`
  void* points;                // [k, n] of `kind`
  double slope;
  double offset;
  int64_t n;
  int64_t k;
  bool box;
  ScalarKind kind;
};

// One entry of a step, before it is rounded.
template <bool kBox>
LSFAST_HD double ascent_entry(double u, double scaled_gradient, double first, double second) {
  if constexpr (kBox) {
    const double sign = scaled_gradient > 0.0 ? 1.0 : (scaled_gradient < 0.0 ? -1.0 : scaled_gradient);
    const double to = u + first * sign;
    return to > second ? second : (to < -second ? -second : to);
  } else {
    return first * u + second * scaled_gradient;
  }
}

// ---- logits --------------------------------------------------------------------------------------------------------

// result[i] = 100 (L(z') - L(z)) / (1 + L(z)) for the cross-entropy L of row i with target t: z'_t = z_t - e(z_t), the
// others z'_c = z_c + e(z_c), e(z) = epsilon (|z| + 1). Nothing is subtracted that cancels: with others c != t,
//   L(z') - L(z) = log(1 + sum_c exp(z_c + e(z_c) + e(z_t)) (1 - exp(-e(z_c) - e(z_t))) / sum_{all} exp(z)).
// Both sums are taken in one pass, each relative to its largest exponential so far. z + e(z) grows with z (epsilon <
// 1), so one logit is the largest in both. Terms are formed in float32 (float64 for float64), and added in float64.
//
// In units of half the last place of that type: the exponent of a term, d, errs by |d| in the sum of all, by 2 |d| in
// the other (epsilon up to 0.1), and the mean of |d| over softmax weights is at most log(classes); the exponentials,
// the 1 - exp, its argument and the product err by 3, 3, 6, 4 and 1. Together 3 log(classes) + 17, relative to the
// difference of the losses, however small it is.
struct LogitSharpnessParams {
  const void* logits;     // [rows, classes] of `kind`
  const int64_t* target;  // [rows]
  double* result;         // [rows]; 0 for a target of `ignore_index`, NaN for one that is no class
  double epsilon;         // in (0, 1)
  int64_t rows;
  int64_t classes;
  int64_t ignore_index;
  ScalarKind kind;  // any of them
};

constexpr int64_t kLogitTile = 1024;  // logits whose largest the CPU kernel looks for before it adds their exponentials

struct SharpnessKernels {
  void (*ascent_sums)(const AscentSumsParams&, int64_t begin, int64_t end);          // over k * chunks: fills `partial`
  void (*ascent_combine)(const AscentSumsParams&, int64_t begin, int64_t end);       // over 3 k: fills `result`
  void (*ascent_step)(const AscentStepParams&, int64_t begin, int64_t end);          // over chunks of n
  void (*logit_sharpness)(const LogitSharpnessParams&, int64_t begin, int64_t end);  // over rows
};

const char* launch_ascent_sums(const AscentSumsParams& params, Stream stream);
const char* launch_ascent_step(const AscentStepParams& params, Stream stream);
const char* launch_logit_sharpness(const LogitSharpnessParams& params, Stream stream);

// -- the arithmetic both backends share -------------------------------------------------------------------------------

// What is known of the logits c != t of a row so far: the largest, and the two sums of LogitSharpnessParams relative to
// exp(top) and exp(top + e(top)). Starts from a `top` below every logit.
template <class F>
struct LogitSums {
  F top;
  double total;
  double rise;

  // The logarithms of what the sums are multiplied by when the largest becomes `to`.
  LSFAST_HD double below(F to) const { return static_cast<double>(top) - static_cast<double>(to); }
  LSFAST_HD double raised_below(F to, double epsilon) const {
    const double higher = static_cast<double>(top < F(0) ? -top : top) - static_cast<double>(to < F(0) ? -to : to);
    return below(to) + epsilon * higher;
  }

  LSFAST_HD void raise_top(F to, double total_factor, double rise_factor) {
    total *= total_factor;
    rise *= rise_factor;
    top = to;
  }
};

// One logit's terms are exp(below) and exp(raised) (1 - exp(-lift)): each backend has exponentials of its own. A logit
// of -Inf has no terms (they would be Inf - Inf), as `masked` says; +Inf and NaN make both NaN.
template <class F>
struct LogitExponents {
  F below;
  F raised;
  F lift;
  bool masked;

  LSFAST_HD LogitExponents(F z, F top, F target_magnitude, F epsilon) {
    const F magnitude = z < F(0) ? -z : z;
    const F top_magnitude = top < F(0) ? -top : top;
    below = z - top;
    raised = below + epsilon * (magnitude - top_magnitude);
    lift = epsilon * ((magnitude + target_magnitude) + F(2));
    masked = z < std::numeric_limits<F>::lowest();
  }
};

// The measure from the sums over all logits but that of the target.
template <class F>
LSFAST_HD double logit_sharpness_of(const LogitSums<F>& sums, double target, double epsilon) {
  if (!(target - target == 0.0)) return std::numeric_limits<double>::quiet_NaN();
  const double top = static_cast<double>(sums.top);
  const double largest = target > top ? target : top;
  const double log_total = std::log(sums.total * std::exp(top - largest) + std::exp(target - largest));
  // log of the fraction in the sum of LogitSharpnessParams; its exponential may overflow, and is not needed then.
  const double scale = (top - largest) + epsilon * (std::fabs(top) + std::fabs(target) + 2.0);
  const double fraction = std::log(sums.rise) + scale - log_total;
  const double below = fraction > 0.0 ? -fraction : fraction;
  const double difference = (fraction > 0.0 ? fraction : 0.0) + std::log1p(std::exp(below));
  return 100.0 * difference / (1.0 + (log_total + (largest - target)));
}

}  // namespace lsfast::landscape
