// CPU kernels of sharpness: sums and steps of an ascent, a chunk of every point at a time, and Keskar's measure on
// logits, a row at a time. Compiled once per instruction set (platform/dispatch.h).
#include "landscape/sharpness.h"
#include "numerics/exponential.h"
#include "platform/reduction.h"

namespace lsfast::landscape::LSFAST_ISA {

// ---- ascent --------------------------------------------------------------------------------------------------------

template <class T>
LSFAST_HD double scaled_by_theta(T theta, double slope, double offset) {
  return slope * std::fabs(static_cast<double>(theta)) + offset;
}

template <class T>
void ascent_sums_range(const AscentSumsParams& p, int64_t begin, int64_t end) {
  const int64_t chunks = p.chunks();
  for (int64_t id = begin; id < end; ++id) {
    const int64_t row = id / chunks, chunk = id % chunks, first = chunk * kAscentChunk;
    const T* const theta = static_cast<const T*>(p.theta) + first;
    const T* const gradient = static_cast<const T*>(p.gradient) + row * p.n + first;
    const int64_t count = std::min(kAscentChunk, p.n - first);
    double sums[kAscentSums] = {};
    if (p.u == nullptr) {
      sums[0] = ordered_sum<double>(count, [&](int64_t i) {
        const double g = scaled_by_theta(theta[i], p.slope, p.offset) * static_cast<double>(gradient[i]);
        return g * g;
      });
    } else {
      const T* const u = static_cast<const T*>(p.u) + row * p.n + first;
      ordered_sums<double, kAscentSums>(count, sums, [&](int64_t i, double* terms) {
        const double g = scaled_by_theta(theta[i], p.slope, p.offset) * static_cast<double>(gradient[i]);
        const double at = static_cast<double>(u[i]);
        terms[0] = g * g;
        terms[1] = at * g;
        terms[2] = at * at;
      });
    }
    for (int s = 0; s < kAscentSums; ++s) p.partial[(row * kAscentSums + s) * chunks + chunk] = sums[s];
  }
}

void ascent_sums(const AscentSumsParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, ascent_sums_range<scalar_t>(p, begin, end));
}

void ascent_combine(const AscentSumsParams& p, int64_t begin, int64_t end) {
  const int64_t chunks = p.chunks();
  for (int64_t id = begin; id < end; ++id) {
    double lane[kAscentLanes] = {};
    for (int64_t i = 0; i < chunks; ++i) lane[i % kAscentLanes] += p.partial[id * chunks + i];
    for (int half = kAscentLanes / 2; half > 0; half /= 2) {
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    }
    p.result[id] = lane[0];
  }
}

// theta is read from memory by the first point and from the cache by the others.
template <class T, bool kBox>
void ascent_step_range(const AscentStepParams& p, int64_t begin, int64_t end) {
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kAscentChunk;
    const int64_t count = std::min(kAscentChunk, p.n - first);
    const T* const theta = static_cast<const T*>(p.theta) + first;
    for (int64_t row = 0; row < p.k; ++row) {
      const int64_t start = row * p.n + first;
      const T* const gradient = static_cast<const T*>(p.gradient) + start;
      const T* const u = p.u == nullptr ? nullptr : static_cast<const T*>(p.u) + start;
      T* const moved = static_cast<T*>(p.moved) + start;
      T* const points = static_cast<T*>(p.points) + start;
      const double one = p.coefficients[2 * row], other = p.coefficients[2 * row + 1];
      const auto step = [&](int64_t i, double at) {
        const double c = scaled_by_theta(theta[i], p.slope, p.offset);
        const T to = static_cast<T>(ascent_entry<kBox>(at, c * static_cast<double>(gradient[i]), one, other));
        moved[i] = to;
        points[i] = static_cast<T>(static_cast<double>(theta[i]) + c * static_cast<double>(to));
      };
      if (u == nullptr) {
        for (int64_t i = 0; i < count; ++i) step(i, 0.0);
      } else {
        for (int64_t i = 0; i < count; ++i) step(i, static_cast<double>(u[i]));
      }
    }
  }
}

void ascent_step(const AscentStepParams& p, int64_t begin, int64_t end) {
  if (p.box) {
    LSFAST_DISPATCH_REAL(p.kind, (ascent_step_range<scalar_t, true>(p, begin, end)));
  } else {
    LSFAST_DISPATCH_REAL(p.kind, (ascent_step_range<scalar_t, false>(p, begin, end)));
  }
}

// ---- logits --------------------------------------------------------------------------------------------------------

// A tile is read from memory once, widened beside the stack, padded with -Inf to whole lanes; so is the target's logit.
template <class T>
double logit_row(const LogitSharpnessParams& p, const T* logits, int64_t target) {
  using F = Arithmetic<T>;
  const F epsilon = static_cast<F>(p.epsilon);
  const F target_logit = widen(logits[target]);
  const F target_magnitude = std::fabs(target_logit);
  LogitSums<F> sums{std::numeric_limits<F>::lowest(), 0.0, 0.0};
  alignas(64) F z[kLogitTile], totals[kLogitTile], rises[kLogitTile];
  for (int64_t first = 0; first < p.classes; first += kLogitTile) {
    const int64_t count = std::min(kLogitTile, p.classes - first);
    const int64_t padded = (count + kSumLanes - 1) / kSumLanes * kSumLanes;
    for (int64_t i = 0; i < count; ++i) z[i] = widen(logits[first + i]);
    for (int64_t i = count; i < padded; ++i) z[i] = -std::numeric_limits<F>::infinity();
    if (target >= first && target < first + count) z[target - first] = -std::numeric_limits<F>::infinity();

    F largest[kSumLanes];
    for (int l = 0; l < kSumLanes; ++l) largest[l] = sums.top;
    for (int64_t i = 0; i < padded; i += kSumLanes) {
      for (int l = 0; l < kSumLanes; ++l) largest[l] = z[i + l] > largest[l] ? z[i + l] : largest[l];
    }
    for (int l = 1; l < kSumLanes; ++l) largest[0] = largest[l] > largest[0] ? largest[l] : largest[0];
    if (largest[0] > sums.top) {
      const double total_factor = exponential(sums.below(largest[0]));
      sums.raise_top(largest[0], total_factor, exponential(sums.raised_below(largest[0], p.epsilon)));
    }
    const F top = sums.top;
    for (int64_t i = 0; i < padded; ++i) {
      const LogitExponents<F> of(z[i], top, target_magnitude, epsilon);
      const F total_term = exponential(of.below);
      const F rise_term = exponential(of.raised) * one_minus_exponential(of.lift);
      totals[i] = of.masked ? F(0) : total_term;
      rises[i] = of.masked ? F(0) : rise_term;
    }
    sums.total += ordered_sum<double>(padded, [&](int64_t i) { return static_cast<double>(totals[i]); });
    sums.rise += ordered_sum<double>(padded, [&](int64_t i) { return static_cast<double>(rises[i]); });
  }
  return logit_sharpness_of(sums, static_cast<double>(target_logit), p.epsilon);
}

template <class T>
void logit_sharpness_range(const LogitSharpnessParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t target = p.target[row];
    if (target == p.ignore_index) {
      p.result[row] = 0.0;
    } else if (target < 0 || target >= p.classes) {
      p.result[row] = std::numeric_limits<double>::quiet_NaN();
    } else {
      p.result[row] = logit_row(p, static_cast<const T*>(p.logits) + row * p.classes, target);
    }
  }
}

void logit_sharpness(const LogitSharpnessParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, logit_sharpness_range<scalar_t>(p, begin, end));
}

constexpr SharpnessKernels kSharpnessKernels = {ascent_sums, ascent_combine, ascent_step, logit_sharpness};

}  // namespace lsfast::landscape::LSFAST_ISA
