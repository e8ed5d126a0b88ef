// Operator of the tridiagonal eigensolver: schema, checks, allocation, device and threads.
#include "spectrum/tridiagonal.h"

#include <tuple>

#include "platform/torch_ops.h"

namespace lsfast::spectrum {
namespace {

using torch::headeronly::ScalarType;

// (nodes [k, m], weights [k, m], failed [k]) of the tridiagonal matrices alpha, beta [k, m] of sizes steps [k].
std::tuple<Tensor, Tensor, Tensor> tridiagonal_eigen(const Tensor& alpha, const Tensor& beta, const Tensor& steps) {
  constexpr const char* kOp = "tridiagonal_eigen";
  check_dense(kOp, "alpha", alpha, 2);
  TridiagonalParams params{};
  params.k = alpha.size(0);
  params.m = alpha.size(1);
  check_table(kOp, "alpha", alpha, ScalarType::Double, params.k, params.m, alpha);
  check_table(kOp, "beta", beta, ScalarType::Double, params.k, params.m, alpha);
  STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && steps.dim() == 1 && steps.size(0) == params.k &&
                      steps.is_contiguous() && steps.is_cuda() == alpha.is_cuda(),
                  kOp, ": steps must be int64 of shape [", params.k, "] on the device of alpha, got shape ",
                  shape_text(steps));
  const Tensor nodes = torch::stable::new_empty(alpha, {params.k, params.m});
  const Tensor weights = torch::stable::new_empty(alpha, {params.k, params.m});
  const Tensor failed = torch::stable::new_zeros(alpha, {params.k}, ScalarType::Long);
  if (alpha.numel() == 0) return {nodes, weights, failed};
  const Tensor scratch = torch::stable::new_empty(alpha, {3, params.k, params.m});
  params.alpha = alpha.const_data_ptr<double>();
  params.beta = beta.const_data_ptr<double>();
  params.steps = steps.const_data_ptr<int64_t>();
  params.nodes = nodes.mutable_data_ptr<double>();
  params.weights = weights.mutable_data_ptr<double>();
  params.scratch = scratch.mutable_data_ptr<double>();
  params.failed = failed.mutable_data_ptr<int64_t>();
  if (runs_cuda_kernels(alpha)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(alpha);
      check_launch(kOp, launch_tridiagonal(params, scope.stream()));
    }
    return {nodes, weights, failed};
  }
  torch::stable::parallel_for(
      0, params.k, 1, [&](int64_t begin, int64_t end) { kernels().spectrum.tridiagonal.solve(params, begin, end); });
  return {nodes, weights, failed};
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("tridiagonal_eigen(Tensor alpha, Tensor beta, Tensor steps) -> (Tensor, Tensor, Tensor)");
}

LSFAST_IMPLEMENT(m) { m.impl("tridiagonal_eigen", TORCH_BOX(&tridiagonal_eigen)); }

}  // namespace
}  // namespace lsfast::spectrum
