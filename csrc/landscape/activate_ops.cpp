// Operator of activations: schema, checks, device and threads. Kernels: activate_cpu.inl, activate.cu.
#include "landscape/activate.h"

#include <algorithm>

#include "platform/torch_ops.h"

namespace lsfast::landscape {
namespace {

constexpr int64_t kFlatRow = 4096;  // of what has no bias, and so no rows of its own

void activate(const Tensor& y, const std::optional<Tensor>& x, int64_t activation) {
  constexpr const char* op = "activate_";
  STD_TORCH_CHECK(has_scalar_kind(y), op, ": y must be a floating-point tensor, got torch.",
                  torch::headeronly::toString(y.scalar_type()));
  STD_TORCH_CHECK(y.is_contiguous(), op, ": y must be contiguous, got strides that are not");
  STD_TORCH_CHECK(activation >= 0 && activation <= static_cast<int64_t>(Activate::kSilu), op,
                  ": activation must lie in 0..4, got ", activation);
  ActivateParams params{};
  params.n = y.numel();
  params.columns = kFlatRow;
  params.rows_of_bias = 1;
  params.added = Added::kNothing;
  params.activation = static_cast<Activate>(activation);
  params.kind = scalar_kind(y);
  if (x) {
    check_same(op, "x", *x, "y", y);
    STD_TORCH_CHECK(x->is_contiguous(), op, ": x must be contiguous, got strides that are not");
    bool same = x->dim() == y.dim();
    for (int64_t axis = 0; same && axis < y.dim(); ++axis) same = x->size(axis) == y.size(axis);
    params.added = Added::kTensor;
    if (!same) {
      STD_TORCH_CHECK(
          y.dim() == 3 && x->dim() == 2 && x->size(1) == y.size(2) && (x->size(0) == 1 || x->size(0) == y.size(0)), op,
          ": x must have the shape of y, or be [g or 1, C] for y [g, R, C], got ", shape_text(*x), " and ",
          shape_text(y));
      params.added = Added::kBias;
      params.columns = y.size(2);
      params.rows_of_bias = std::max<int64_t>(1, y.size(1) * (x->size(0) == 1 ? y.size(0) : 1));
    }
    params.x = x->const_data_ptr();
  }
  if (params.n == 0) return;
  params.y = y.mutable_data_ptr();
  if (runs_cuda_kernels(y)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(y);
      check_launch(op, launch_activate(params, scope.stream()));
    }
    return;
  }
  const int64_t grain = std::max<int64_t>(1, 8 * kFlatRow / params.columns);
  torch::stable::parallel_for(0, params.rows(), grain,
                              [&](int64_t begin, int64_t end) { kernels().activate.activate(params, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) { m.def("activate_(Tensor(a!) y, Tensor? x, int activation) -> ()"); }

LSFAST_IMPLEMENT(m) { m.impl("activate_", TORCH_BOX(&activate)); }

}  // namespace
}  // namespace lsfast::landscape
