// Operators of softmax: schema, checks, allocation, device and threads. Kernels: softmax_cpu.inl, softmax.cu.
#include "curvature/softmax.h"

#include "platform/torch_ops.h"

namespace lsfast::curvature {
namespace {

Tensor softmax_hessian_product(const Tensor& logits, const Tensor& row_scale, const Tensor& tangents) {
  constexpr const char* op = "softmax_hessian_product";
  check_real(op, "logits", logits);
  check_same(op, "row_scale", row_scale, "logits", logits);
  check_same(op, "tangents", tangents, "logits", logits);
  STD_TORCH_CHECK(logits.dim() == 2 && logits.size(1) > 0, op, ": logits must have shape [rows, classes], got ",
                  shape_text(logits));
  STD_TORCH_CHECK(row_scale.dim() == 1 && row_scale.size(0) == logits.size(0), op, ": row_scale must have shape [",
                  logits.size(0), "], got ", shape_text(row_scale));
  STD_TORCH_CHECK(tangents.dim() == 3 && tangents.size(1) == logits.size(0) && tangents.size(2) == logits.size(1), op,
                  ": tangents must have shape [k, ", logits.size(0), ", ", logits.size(1), "], got ",
                  shape_text(tangents));
  const Tensor dense_logits = torch::stable::contiguous(logits);
  const Tensor dense_scale = torch::stable::contiguous(row_scale);
  const Tensor dense_tangents = torch::stable::contiguous(tangents);
  Tensor out = torch::stable::new_empty(dense_tangents, tangents.sizes());
  if (out.numel() == 0) return out;
  const SoftmaxHessianParams params{dense_logits.const_data_ptr(),
                                    dense_scale.const_data_ptr(),
                                    dense_tangents.const_data_ptr(),
                                    out.mutable_data_ptr(),
                                    tangents.size(0),
                                    logits.size(0),
                                    logits.size(1),
                                    scalar_kind(logits)};
  if (runs_cuda_kernels(logits)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(logits);
      check_launch(op, launch_softmax_hessian(params, scope.stream()));
    }
  } else {
    const int64_t grain = std::max<int64_t>(1, 4096 / (params.classes * params.k));
    torch::stable::parallel_for(0, params.rows, grain, [&](int64_t begin, int64_t end) {
      kernels().curvature.softmax.softmax_hessian(params, begin, end);
    });
  }
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("softmax_hessian_product(Tensor logits, Tensor row_scale, Tensor tangents) -> Tensor");
}

LSFAST_IMPLEMENT(m) { m.impl("softmax_hessian_product", TORCH_BOX(&softmax_hessian_product)); }

}  // namespace
}  // namespace lsfast::curvature
