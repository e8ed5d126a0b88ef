// Operators of sharpness: schema, checks, allocation, device and threads. Kernels: sharpness_cpu.inl, sharpness.cu.
#include "landscape/sharpness.h"

#include <algorithm>
#include <tuple>

#include "platform/torch_ops.h"

namespace lsfast::landscape {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;

// ---- ascent --------------------------------------------------------------------------------------------------------

// What both operators are given, checked and dense; the tensors live as long as it does.
struct Ascent {
  Tensor gradient;
  Tensor theta;
  std::optional<Tensor> u;

  Ascent(const char* op, const std::optional<Tensor>& given, const Tensor& gradient_given, const Tensor& theta_given)
      : gradient(contiguous(gradient_given)), theta(contiguous(theta_given)) {
    check_real(op, "theta", theta);
    check_same(op, "gradient", gradient, "theta", theta);
    STD_TORCH_CHECK(theta.dim() == 1, op, ": theta must have shape [n], got ", shape_text(theta));
    STD_TORCH_CHECK(gradient.dim() == 2 && gradient.size(1) == theta.size(0), op, ": gradient must have shape [k, ",
                    theta.size(0), "], got ", shape_text(gradient));
    if (!given) return;
    u = contiguous(*given);
    check_same(op, "u", *u, "theta", theta);
    STD_TORCH_CHECK(u->dim() == 2 && u->size(0) == gradient.size(0) && u->size(1) == gradient.size(1), op,
                    ": u must have the shape of gradient, got ", shape_text(*u), " and ", shape_text(gradient));
  }

  const void* u_data() const { return u ? u->const_data_ptr() : nullptr; }
};

// [k, 3] float64: |c g|^2, u . c g and |u|^2 for each row.
Tensor ascent_sums(const std::optional<Tensor>& u, const Tensor& gradient, const Tensor& theta, double slope,
                   double offset) {
  constexpr const char* op = "ascent_sums";
  const Ascent ascent(op, u, gradient, theta);
  const int64_t k = gradient.size(0), n = theta.size(0);
  Tensor result = torch::stable::new_zeros(theta, {k, kAscentSums}, ScalarType::Double);
  if (gradient.numel() == 0) return result;
  AscentSumsParams params{ascent.u_data(),
                          ascent.gradient.const_data_ptr(),
                          ascent.theta.const_data_ptr(),
                          nullptr,
                          static_cast<double*>(result.mutable_data_ptr()),
                          slope,
                          offset,
                          n,
                          k,
                          scalar_kind(theta)};
  const Tensor partial = torch::stable::new_empty(theta, {k, kAscentSums, params.chunks()}, ScalarType::Double);
  params.partial = static_cast<double*>(partial.mutable_data_ptr());
  if (runs_cuda_kernels(theta)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(theta);
      check_launch(op, launch_ascent_sums(params, scope.stream()));
    }
    return result;
  }
  torch::stable::parallel_for(0, k * params.chunks(), 32,
                              [&](int64_t begin, int64_t end) { kernels().sharpness.ascent_sums(params, begin, end); });
  kernels().sharpness.ascent_combine(params, 0, kAscentSums * k);
  return result;
}

std::tuple<Tensor, Tensor> ascent_step(const std::optional<Tensor>& u, const Tensor& gradient, const Tensor& theta,
                                       const Tensor& coefficients, double slope, double offset, bool box) {
  constexpr const char* op = "ascent_step";
  const Ascent ascent(op, u, gradient, theta);
  const int64_t k = gradient.size(0), n = theta.size(0);
  const Tensor dense = contiguous(coefficients);
  check_table(op, "coefficients", dense, ScalarType::Double, k, 2, theta);
  Tensor moved = torch::stable::new_empty(theta, {k, n});
  Tensor points = torch::stable::new_empty(theta, {k, n});
  if (gradient.numel() == 0) return {moved, points};
  const AscentStepParams params{ascent.u_data(),
                                ascent.gradient.const_data_ptr(),
                                ascent.theta.const_data_ptr(),
                                static_cast<const double*>(dense.const_data_ptr()),
                                moved.mutable_data_ptr(),
                                points.mutable_data_ptr(),
                                slope,
                                offset,
                                n,
                                k,
                                box,
                                scalar_kind(theta)};
  if (runs_cuda_kernels(theta)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(theta);
      check_launch(op, launch_ascent_step(params, scope.stream()));
    }
    return {moved, points};
  }
  const int64_t chunks = (n + kAscentChunk - 1) / kAscentChunk;
  torch::stable::parallel_for(0, chunks, std::max<int64_t>(1, 32 / k),
                              [&](int64_t begin, int64_t end) { kernels().sharpness.ascent_step(params, begin, end); });
  return {moved, points};
}

// ---- logits --------------------------------------------------------------------------------------------------------

// [rows] float64.
Tensor logit_sharpness(const Tensor& logits, const Tensor& target, double epsilon, int64_t ignore_index) {
  constexpr const char* op = "logit_sharpness";
  check_floating(op, "logits", logits);
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, op, ": logits must have shape [rows, classes], got ",
                  shape_text(logits));
  STD_TORCH_CHECK(target.scalar_type() == ScalarType::Long && target.dim() == 1 && target.size(0) == logits.size(0), op,
                  ": target must be int64 of shape [", logits.size(0), "], got torch.",
                  torch::headeronly::toString(target.scalar_type()), " ", shape_text(target));
  STD_TORCH_CHECK(target.is_cuda() == logits.is_cuda() && target.get_device_index() == logits.get_device_index(), op,
                  ": target must be on the device of logits");
  STD_TORCH_CHECK(epsilon > 0.0 && epsilon < 1.0, op, ": epsilon must lie in (0, 1), got ", epsilon);
  const Tensor dense_logits = contiguous(logits), dense_target = contiguous(target);
  Tensor result = torch::stable::new_empty(logits, {logits.size(0)}, ScalarType::Double);
  if (result.numel() == 0) return result;
  const LogitSharpnessParams params{dense_logits.const_data_ptr(),
                                    static_cast<const int64_t*>(dense_target.const_data_ptr()),
                                    static_cast<double*>(result.mutable_data_ptr()),
                                    epsilon,
                                    logits.size(0),
                                    logits.size(1),
                                    ignore_index,
                                    scalar_kind(logits)};
  if (runs_cuda_kernels(logits)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(logits);
      check_launch(op, launch_logit_sharpness(params, scope.stream()));
    }
    return result;
  }
  const int64_t grain = std::max<int64_t>(1, 16384 / params.classes);
  torch::stable::parallel_for(0, params.rows, grain, [&](int64_t begin, int64_t end) {
    kernels().sharpness.logit_sharpness(params, begin, end);
  });
  return result;
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("ascent_sums(Tensor? u, Tensor gradient, Tensor theta, float slope, float offset) -> Tensor");
  m.def(
      "ascent_step(Tensor? u, Tensor gradient, Tensor theta, Tensor coefficients, float slope, float offset, bool box)"
      " -> (Tensor, Tensor)");
  m.def("logit_sharpness(Tensor logits, Tensor target, float epsilon, int ignore_index) -> Tensor");
}

LSFAST_IMPLEMENT(m) {
  m.impl("ascent_sums", TORCH_BOX(&ascent_sums));
  m.impl("ascent_step", TORCH_BOX(&ascent_step));
  m.impl("logit_sharpness", TORCH_BOX(&logit_sharpness));
}

}  // namespace
}  // namespace lsfast::landscape
