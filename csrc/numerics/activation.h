// Activations with their first and second derivatives: what tangents and adjoint tangents of elementwise operations
// need.
//
// Each returns {f, f', f''} at x. At a kink (ReLU at 0) the derivatives are those of the left branch, as in torch.
#pragma once

#include <cmath>

#include "numerics/macros.h"

namespace lsfast {

enum class Activation : int32_t {
  kRelu = 0,
  kTanh = 1,
  kSigmoid = 2,
  kSoftplus = 3,
  kSilu = 4,
  kGelu = 5,      // x Phi(x)
  kGeluTanh = 6,  // the tanh approximation, Hendrycks and Gimpel 2016
};

template <class F>
struct Derivatives {
  F value;
  F first;
  F second;
};

template <class F>
LSFAST_HD F stable_sigmoid(F x) {
  // exp of a number that is not positive: no overflow on either side.
  const F e = std::exp(x < F(0) ? x : -x);
  return x < F(0) ? e / (F(1) + e) : F(1) / (F(1) + e);
}

// 1 - tanh(x)^2 without the cancellation.
template <class F>
LSFAST_HD F sech_squared(F x) {
  const F e = std::exp(F(-2) * (x < F(0) ? -x : x));
  return F(4) * e / ((F(1) + e) * (F(1) + e));
}

template <class F>
LSFAST_HD Derivatives<F> activation_derivatives(F x, Activation kind) {
  Derivatives<F> d{x, F(1), F(0)};
  switch (kind) {
    case Activation::kRelu: {
      d.value = x > F(0) ? x : (x == x ? F(0) : x);
      d.first = x > F(0) ? F(1) : F(0);
      d.second = F(0);
      break;
    }
    case Activation::kTanh: {
      const F t = std::tanh(x);
      d.value = t;
      d.first = sech_squared(x);
      d.second = F(-2) * t * d.first;
      break;
    }
    case Activation::kSigmoid: {
      const F s = stable_sigmoid(x);
      d.value = s;
      d.first = s * (F(1) - s);
      d.second = d.first * (F(1) - F(2) * s);
      break;
    }
    case Activation::kSoftplus: {
      const F s = stable_sigmoid(x);
      d.value = (x > F(0) ? x : F(0)) + std::log1p(std::exp(x > F(0) ? -x : x));
      d.first = s;
      d.second = s * (F(1) - s);
      break;
    }
    case Activation::kSilu: {
      const F s = stable_sigmoid(x);
      const F ds = s * (F(1) - s);
      d.value = x * s;
      d.first = s + x * ds;
      d.second = F(2) * ds + x * ds * (F(1) - F(2) * s);
      break;
    }
    case Activation::kGelu: {
      const F normal_cdf = F(0.5) * std::erfc(-x * F(0.70710678118654752440));
      const F normal_pdf = F(0.39894228040143267794) * std::exp(F(-0.5) * x * x);
      d.value = x * normal_cdf;
      d.first = normal_cdf + x * normal_pdf;
      d.second = normal_pdf * (F(2) - x * x);
      break;
    }
    case Activation::kGeluTanh: {
      const F root = F(0.79788456080286535588);  // sqrt(2/pi)
      const F cubic = F(0.044715);
      const F inner = root * (x + cubic * x * x * x);
      const F inner1 = root * (F(1) + F(3) * cubic * x * x);
      const F inner2 = root * F(6) * cubic * x;
      const F t = std::tanh(inner);
      const F dt = sech_squared(inner);
      d.value = F(0.5) * x * (F(1) + t);
      d.first = F(0.5) * (F(1) + t) + F(0.5) * x * dt * inner1;
      d.second = dt * inner1 + F(0.5) * x * (dt * inner2 - F(2) * t * dt * inner1 * inner1);
      break;
    }
  }
  return d;
}

}  // namespace lsfast
