// What a Lanczos step decides for one probe, shared by the CPU and CUDA kernels.
#pragma once

#include <cmath>

#include "numerics/macros.h"
#include "spectrum/recurrence.h"

namespace lsfast::spectrum {

LSFAST_HD bool is_finite(double x) { return x - x == 0.0; }

LSFAST_HD double beta_before(const double* beta, int64_t probe, int64_t m, int64_t step) {
  return step > 0 ? beta[probe * m + step - 1] : 0.0;
}

// An ended probe has beta = 0 (or one that is not finite, which the caller finds after the last step).
LSFAST_HD bool is_live(double before, int64_t step) { return step == 0 || (before > 0.0 && is_finite(before)); }

// (T c)_i, of the projection of A on the rows.
LSFAST_HD double projected(const BeginParams& p, int64_t probe, int64_t i) {
  const double* const c = p.defect + probe * p.capacity;
  if (p.ritz != nullptr) return p.ritz[probe * p.count + i] * c[i];
  const double* const alpha = p.alpha + probe * p.m;
  const double* const beta = p.beta + probe * p.m;
  double sum = alpha[i] * c[i];
  if (i > 0) sum += beta[i - 1] * c[i - 1];
  if (i + 1 < p.count) sum += beta[i] * c[i + 1];
  return sum;
}

// With u = rho q + R'c and A R' = R'T + beta q e', T = R A R':
//   rho^2 = 1 - |c|^2,   u'Au = rho^2 alpha + 2 rho beta c_last + c'Tc,
//   A q - alpha q - beta q_before = (Au - R'Tc) / rho - (alpha + beta c_last / rho) q - beta q_before.
// Ritz vectors couple to q by their residuals alone, which times c is beneath rounding.
LSFAST_HD Factors begin_step(const BeginParams& p, int64_t probe, double c_squared, double c_T_c) {
  const double before = beta_before(p.beta, probe, p.m, p.step);
  if (!is_live(before, p.step)) return {0.0, 0.0, 0.0, 0.0};
  const double left = 1.0 - c_squared;
  const double rho = left > 0.25 ? ::sqrt(left) : (is_finite(left) ? 0.5 : left);  // c of that size ends a probe
  const bool vectors = p.ritz == nullptr && p.count > 0;
  const double across = vectors ? before * p.defect[probe * p.capacity + p.count - 1] : 0.0;
  const double alpha = (p.dots[probe] - 2.0 * rho * across - c_T_c) / (rho * rho);
  return {1.0 / rho, alpha + across / rho, before, alpha};
}

struct StepEnd {
  double alpha;
  double beta;
  double scale;
  double factor;  // the next vector is factor times the new one; 0: the probe has ended
  bool live;      // whether the probe took this step
};

// The probe ends when beta is what rounding alone leaves: |w| <= tolerance * |T|, |T| estimated by the largest absolute
// row sum so far (Parlett, The Symmetric Eigenvalue Problem, ch. 13; Golub & Van Loan, Matrix Computations, 10.1: a
// zero beta means that the span is invariant). Its beta is then 0, and beta = 0 is what tells later steps so. A NaN or
// Inf ends the probe too, but stays in alpha and beta, where the caller looks for it after the last step.
LSFAST_HD StepEnd end_step(const EndParams& p, int64_t probe, double d_squared) {
  const double* const sums = p.sums + probe * (p.count + 2);
  const double before = beta_before(p.beta, probe, p.m, p.step);
  const double scale_before = p.step > 0 ? p.scale[probe * p.m + p.step - 1] : 0.0;
  if (!is_live(before, p.step)) return {0.0, 0.0, scale_before, 0.0, false};
  const Factors& factors = *reinterpret_cast<const Factors*>(p.factors + probe * (Factors::kCount + 2 * p.count));
  const double on_current = p.append ? sums[p.count] : 0.0;
  const double alpha = factors.alpha + on_current;
  const double squared = sums[p.count + 1];
  const double left = squared - d_squared - on_current * on_current;
  const double beta = left > 0.0 ? ::sqrt(left) : left - left;  // 0, or NaN where it is one
  const double row_sum = ::fabs(alpha) + before + beta;
  const double scale = row_sum > scale_before ? row_sum : scale_before;
  const bool invariant = beta <= p.tolerance * scale;
  const bool goes_on = !invariant && is_finite(beta) && is_finite(alpha);
  return {alpha, invariant ? 0.0 : beta, scale, goes_on ? 1.0 / ::sqrt(squared) : 0.0, true};
}

LSFAST_HD void record_step(const EndParams& p, int64_t probe, const StepEnd& end) {
  const int64_t at = probe * p.m + p.step;
  p.alpha[at] = end.alpha;
  p.beta[at] = end.beta;
  p.scale[at] = end.scale;
  p.norm_factor[probe] = end.factor;
  if (end.live) p.steps[probe] = p.step + 1;
}

}  // namespace lsfast::spectrum
