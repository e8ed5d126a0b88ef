// An activation of what a layer gives, its bias or a second summand added in the same pass: parameters, CPU kernels,
// CUDA launcher.
#pragma once

#include <cmath>

#include "numerics/exponential.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::landscape {

enum class Activate : int32_t {
  kIdentity = 0,
  kRelu = 1,
  kGelu = 2,      // x Phi(x)
  kGeluTanh = 3,  // the tanh approximation, as x / (1 + exp(-2 u)) with u the argument of the tanh
  kSilu = 4,
};
enum class Added : int32_t { kNothing = 0, kBias = 1, kTensor = 2 };

// y = f(y + x) in place, over `rows` rows of `columns` numbers; the last row may be shorter.
struct ActivateParams {
  void* y;        // [n] of `kind`
  const void* x;  // of `kind`: null; [biases, columns], row r has number r / rows_of_bias; or [n]
  int64_t n;
  int64_t columns;
  int64_t rows_of_bias;
  Added added;
  Activate activation;
  ScalarKind kind;  // any of them

  LSFAST_HD int64_t rows() const { return (n + columns - 1) / columns; }
  LSFAST_HD int64_t first_of_x(int64_t row) const {
    return added == Added::kBias ? row / rows_of_bias * columns : row * columns;
  }
};

struct ActivateKernels {
  void (*activate)(const ActivateParams&, int64_t begin, int64_t end);  // over rows
};

const char* launch_activate(const ActivateParams& params, Stream stream);

// -- the arithmetic both backends share -------------------------------------------------------------------------------

// The error function by a rational function of our own fit, |z| <= 4, beyond which it is 1 in float32: relative error
// 2.5e-8 before rounding (weighted least squares, weights raised where the error is largest). Vectorizes.
LSFAST_HD float error_function(float z) {
  z = z < -4.0f ? -4.0f : z;
  z = z > 4.0f ? 4.0f : z;
  const float t = z * z;
  float p = 1.98668613e-06f;
  p = p * t + 0.00028454166f;
  p = p * t + 0.00388286263f;
  p = p * t + 0.0531002358f;
  p = p * t + 0.193535805f;
  p = p * t + 1.12837911f;
  float q = 3.7417889e-05f;
  q = q * t + 0.0011854287f;
  q = q * t + 0.0152063053f;
  q = q * t + 0.115345918f;
  q = q * t + 0.504849195f;
  q = q * t + 1.0f;
  return z * p / q;
}

LSFAST_HD double error_function(double z) { return std::erf(z); }

// NaN stays NaN.
template <Activate kActivation, class F>
LSFAST_HD F activated(F v) {
  if constexpr (kActivation == Activate::kRelu) return v < F(0) ? F(0) : v;
  if constexpr (kActivation == Activate::kGelu) {
    return v * (F(0.5) + F(0.5) * error_function(v * F(0.70710678118654752440)));
  }
  if constexpr (kActivation == Activate::kGeluTanh) {
    const F u = F(0.79788456080286535588) * (v + F(0.044715) * (v * v * v));
    return v / (F(1) + exponential(F(-2) * u));
  }
  if constexpr (kActivation == Activate::kSilu) return v / (F(1) + exponential(-v));
  return v;
}

}  // namespace lsfast::landscape

#define LSFAST_ACTIVATION_CASE(name, ...)        \
  case ::lsfast::landscape::Activate::name: {    \
    constexpr auto kActivation = Activate::name; \
    __VA_ARGS__;                                 \
    break;                                       \
  }

#define LSFAST_DISPATCH_ACTIVATION(value, ...)     \
  switch (value) {                                 \
    LSFAST_ACTIVATION_CASE(kIdentity, __VA_ARGS__) \
    LSFAST_ACTIVATION_CASE(kRelu, __VA_ARGS__)     \
    LSFAST_ACTIVATION_CASE(kGelu, __VA_ARGS__)     \
    LSFAST_ACTIVATION_CASE(kGeluTanh, __VA_ARGS__) \
    LSFAST_ACTIVATION_CASE(kSilu, __VA_ARGS__)     \
  }
