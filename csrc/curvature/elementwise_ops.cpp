// Operators of elementwise operations: schema, checks, device and threads. Kernels: elementwise_cpu.inl,
// elementwise.cu.
#include "curvature/elementwise.h"

#include <algorithm>

#include "platform/torch_ops.h"

namespace lsfast::curvature {
namespace {

// `tensor` has the shape of out (without its first axis where it is a factor) and each row the strides of out's rows.
void check_like_out(const char* op, const char* name, const Tensor& tensor, const Tensor& out, int64_t lead) {
  check_same(op, name, tensor, "out", out);
  STD_TORCH_CHECK(tensor.dim() + 1 - lead == out.dim() && (lead == 0 || tensor.size(0) == out.size(0)), op, ": ", name,
                  " must have the shape of ", lead == 0 ? "a row of out" : "out", ", got ", shape_text(tensor), " and ",
                  shape_text(out));
  for (int64_t axis = 1; axis < out.dim(); ++axis) {
    const int64_t own = axis - 1 + lead;
    STD_TORCH_CHECK(tensor.size(own) == out.size(axis), op, ": ", name, " must have the shape of ",
                    lead == 0 ? "a row of out" : "out", ", got ", shape_text(tensor), " and ", shape_text(out));
    STD_TORCH_CHECK(out.size(axis) == 1 || out.numel() == 0 || tensor.stride(own) == out.stride(axis), op, ": ", name,
                    " must have rows in the memory order of out's");
  }
}

// The rows of out are dense: their elements fill `numel` places, in whatever order.
void check_dense_rows(const char* op, const Tensor& out) {
  int64_t filled = 1;
  for (bool found = true; found;) {
    found = false;
    for (int64_t axis = 1; axis < out.dim() && !found; ++axis) {
      if (out.size(axis) > 1 && out.stride(axis) == filled) {
        filled *= out.size(axis);
        found = true;
      }
    }
  }
  STD_TORCH_CHECK(filled * out.size(0) == out.numel(), op, ": out must have dense rows, got strides that are not");
}

// Of a single row any stride would do: n keeps accesses of 16 bytes possible.
int64_t row_stride(const Tensor& tensor, int64_t n) { return tensor.size(0) == 1 ? n : tensor.stride(0); }

CombineParams checked(const char* op, const Tensor& a, const Tensor& f, const Tensor& out) {
  STD_TORCH_CHECK(has_scalar_kind(out), op, ": out must be a floating-point tensor, got torch.",
                  torch::headeronly::toString(out.scalar_type()));
  STD_TORCH_CHECK(out.dim() >= 1, op, ": out must have shape [k, ...], got ", shape_text(out));
  check_like_out(op, "a", a, out, 1);
  check_like_out(op, "f", f, out, 0);
  CombineParams params{};
  if (out.numel() == 0) return params;
  check_dense_rows(op, out);
  params.a = a.const_data_ptr();
  params.f = f.const_data_ptr();
  params.out = out.mutable_data_ptr();
  params.k = out.size(0);
  params.n = out.numel() / params.k;
  params.a_stride = row_stride(a, params.n);
  params.out_stride = row_stride(out, params.n);
  params.kind = scalar_kind(out);
  STD_TORCH_CHECK(params.k == 1 || params.out_stride >= params.n, op, ": out must have rows that do not overlap");
  return params;
}

void run(const char* op, const CombineParams& params, const Tensor& out) {
  if (params.k == 0) return;
  if (runs_cuda_kernels(out)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(out);
      check_launch(op, launch_combine(params, scope.stream()));
    }
    return;
  }
  const int64_t grain = std::max<int64_t>(1, 16 * kCombineTile / std::min(kCombineTile, params.n));
  torch::stable::parallel_for(0, params.tiles() * params.k, grain, [&](int64_t begin, int64_t end) {
    kernels().curvature.elementwise.combine(params, begin, end);
  });
}

void scale_rows(const Tensor& rows, const Tensor& factor, const Tensor& out) {
  run("scale_rows", checked("scale_rows", rows, factor, out), out);
}

void combine_rows(const Tensor& a, const Tensor& f, const Tensor& b, const Tensor& g, const Tensor& out) {
  constexpr const char* kOp = "combine_rows";
  CombineParams params = checked(kOp, a, f, out);
  check_like_out(kOp, "b", b, out, 1);
  check_like_out(kOp, "g", g, out, 0);
  params.b = b.const_data_ptr();
  params.g = g.const_data_ptr();
  params.b_stride = row_stride(b, params.n);
  run(kOp, params, out);
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("scale_rows(Tensor rows, Tensor factor, Tensor(a!) out) -> ()");
  m.def("combine_rows(Tensor a, Tensor f, Tensor b, Tensor g, Tensor(a!) out) -> ()");
}

LSFAST_IMPLEMENT(m) {
  m.impl("scale_rows", TORCH_BOX(&scale_rows));
  m.impl("combine_rows", TORCH_BOX(&combine_rows));
}

}  // namespace
}  // namespace lsfast::curvature
