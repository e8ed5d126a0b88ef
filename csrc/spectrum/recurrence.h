// What one Lanczos step decides for one probe, shared by the CPU and CUDA kernels.
#pragma once

#include <cmath>

#include "numerics/macros.h"
#include "spectrum/spectrum.h"

namespace lsfast::spectrum {

struct Step {
  double alpha;
  double beta;
  double scale;
  double factor;  // the next basis vector is factor * w; 0 when the probe has ended
  bool live;      // whether the probe took this step
};

LSFAST_HD bool is_finite(double x) { return x - x == 0.0; }

// The probe ends when beta is what rounding alone leaves: |w| <= tolerance * |T|, |T| estimated by the largest absolute
// row sum so far (Parlett, The Symmetric Eigenvalue Problem, ch. 13; Golub & Van Loan, Matrix Computations, 10.1: a
// zero beta means that the span is invariant). Its beta is then 0, and beta = 0 is what tells later steps so. A NaN or
// Inf ends the probe too, but stays in alpha and beta, where the caller looks for it after the last step.
LSFAST_HD Step decide_step(const AdvanceParams& p, int64_t probe) {
  const int64_t at = probe * p.m + p.step;
  const double beta_before = p.step > 0 ? p.beta[at - 1] : 0.0;
  const double scale_before = p.step > 0 ? p.scale[at - 1] : 0.0;
  if (p.step > 0 && !(beta_before > 0.0 && is_finite(beta_before))) return {0.0, 0.0, scale_before, 0.0, false};
  double alpha = p.projections[probe * p.count + p.column];
  if (p.corrections != nullptr) alpha += p.corrections[probe * p.count + p.column];
  const double norm = ::sqrt(p.norm_squared[probe]);
  const double row_sum = ::fabs(alpha) + beta_before + norm;
  const double scale = row_sum > scale_before ? row_sum : scale_before;
  const bool invariant = norm <= p.tolerance * scale;
  const bool goes_on = !invariant && is_finite(norm) && is_finite(alpha);
  return {alpha, invariant ? 0.0 : norm, scale, goes_on ? 1.0 / norm : 0.0, true};
}

LSFAST_HD void record_step(const AdvanceParams& p, int64_t probe, const Step& step) {
  const int64_t at = probe * p.m + p.step;
  p.alpha[at] = step.alpha;
  p.beta[at] = step.beta;
  p.scale[at] = step.scale;
  if (step.live) p.steps[probe] = p.step + 1;
}

}  // namespace lsfast::spectrum
