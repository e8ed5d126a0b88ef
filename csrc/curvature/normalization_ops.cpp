// Operators of normalization: schema, checks, allocation, device and threads. Kernels: {row,channel}_norm_cpu.inl,
// row_norm.cu, channel_norm.cu.
#include "curvature/normalization.h"

#include <algorithm>
#include <optional>
#include <tuple>

#include "platform/torch_ops.h"

namespace lsfast::curvature {
namespace {

using torch::headeronly::ScalarType;
using Maybe = std::optional<Tensor>;

// float64 for float64, else float32: what the statistics and parameters of a tensor are given in.
ScalarType arithmetic_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_kind(const char* op, const Tensor& x) {
  STD_TORCH_CHECK(has_scalar_kind(x), op, ": x must be a floating-point tensor, got torch.",
                  torch::headeronly::toString(x.scalar_type()));
}

void check_shape(const char* op, const char* name, const Tensor& tensor, std::initializer_list<int64_t> shape) {
  bool same = tensor.dim() == static_cast<int64_t>(shape.size());
  std::string text = "[";
  int64_t axis = 0;
  for (const int64_t size : shape) {
    same = same && tensor.size(axis) == size;
    text += (axis++ > 0 ? ", " : "") + std::to_string(size);
  }
  STD_TORCH_CHECK(same, op, ": ", name, " must have shape ", text, "], got ", shape_text(tensor));
}

// A dense tensor of statistics or parameters; its data live as long as it does.
const void* small(const char* op, const char* name, const Tensor& tensor, const Tensor& x,
                  std::initializer_list<int64_t> shape) {
  check_shape(op, name, tensor, shape);
  STD_TORCH_CHECK(tensor.scalar_type() == arithmetic_type(x) && tensor.is_contiguous(), op, ": ", name,
                  " must be contiguous and torch.", torch::headeronly::toString(arithmetic_type(x)), ", got torch.",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.is_cuda() == x.is_cuda() && tensor.get_device_index() == x.get_device_index(), op, ": ", name,
                  " must be on the device of x");
  return tensor.const_data_ptr();
}

// A tensor whose rows (axis 0) are dense, a stride apart: itself, or a copy.
Tensor with_dense_rows(const Tensor& tensor) {
  int64_t expected = 1;
  for (int64_t axis = tensor.dim() - 1; axis > 0; --axis) {
    if (tensor.size(axis) != 1 && tensor.stride(axis) != expected) return torch::stable::contiguous(tensor);
    expected *= tensor.size(axis);
  }
  return tensor;
}

// Runs a CUDA launcher, or a CPU kernel over `units`.
template <auto kLaunch, auto kKernel, class Params>
void run(const char* op, const Tensor& x, const Params& params, int64_t units, int64_t grain) {
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      check_launch(op, kLaunch(params, scope.stream()));
    }
  } else {
    torch::stable::parallel_for(0, units, std::max<int64_t>(1, grain), [&](int64_t begin, int64_t end) {
      (kernels().curvature.normalization.*kKernel)(params, begin, end);
    });
  }
}

// [outer..., inner] float64: the sums of partial [outer..., parts, inner] over its parts.
Tensor part_sums(const char* op, const Tensor& x, const Tensor& partial, Tensor sums, int64_t parts) {
  if (sums.numel() == 0) return sums;
  PartSumParams params{};
  params.partial = partial.const_data_ptr();
  params.sums = sums.mutable_data_ptr<double>();
  params.inner = sums.size(sums.dim() - 1);
  params.outer = sums.numel() / params.inner;
  params.parts = parts;
  params.kind = scalar_kind(partial);
  run<launch_part_sums, &NormalizationKernels::part_sums>(op, x, params, params.outer,
                                                          16384 / (params.inner * std::max<int64_t>(1, parts)));
  return sums;
}

// ---- rows ----------------------------------------------------------------------------------------------------------

RowNormParams row_params(const char* op, const Tensor& x, const Maybe& mean, const Tensor& rstd, const Tensor& weight) {
  check_kind(op, x);
  STD_TORCH_CHECK(x.dim() == 2 && x.is_contiguous(), op, ": x must be contiguous of shape [rows, columns], got ",
                  shape_text(x));
  RowNormParams p{};
  p.rows = x.size(0);
  p.columns = x.size(1);
  p.x = x.const_data_ptr();
  p.mean = mean ? small(op, "mean", *mean, x, {p.rows}) : nullptr;
  p.rstd = small(op, "rstd", rstd, x, {p.rows});
  p.weight = small(op, "weight", weight, x, {p.columns});
  p.kind = scalar_kind(x);
  return p;
}

// y' [k, rows, columns] of layer normalization (RMS without mean). Tangents of weight and bias come together.
Tensor row_norm_jvp(const Tensor& x, const Maybe& mean, const Tensor& rstd, const Tensor& weight,
                    const Maybe& x_tangents, const Maybe& weight_tangents, const Maybe& bias_tangents) {
  constexpr const char* kOp = "row_norm_jvp";
  RowNormParams p = row_params(kOp, x, mean, rstd, weight);
  STD_TORCH_CHECK(x_tangents.has_value() || weight_tangents.has_value(), kOp,
                  ": x_tangents or weight_tangents must be given, got neither");
  STD_TORCH_CHECK(weight_tangents.has_value() == bias_tangents.has_value(), kOp,
                  ": weight_tangents and bias_tangents must be given together, got one");
  p.k = x_tangents ? x_tangents->size(0) : weight_tangents->size(0);
  Maybe tangents;
  if (x_tangents) {
    check_same(kOp, "x_tangents", *x_tangents, "x", x);
    check_shape(kOp, "x_tangents", *x_tangents, {p.k, p.rows, p.columns});
    tangents = with_dense_rows(*x_tangents);
    p.x_tangents = tangents->const_data_ptr();
    p.tangents_stride = tangents->stride(0);
  }
  if (weight_tangents) {
    p.weight_tangents = small(kOp, "weight_tangents", *weight_tangents, x, {p.k, p.columns});
    p.bias_tangents = small(kOp, "bias_tangents", *bias_tangents, x, {p.k, p.columns});
  }
  Tensor out = torch::stable::new_empty(x, {p.k, p.rows, p.columns});
  if (out.numel() == 0) return out;
  p.out = out.mutable_data_ptr();
  run<launch_row_norm_jvp, &NormalizationKernels::row_norm_jvp>(kOp, x, p, p.rows, 16384 / (p.columns * p.k));
  return out;
}

// xbar [k, rows, columns] (empty where not wanted) and the sums [2, k, columns] float64 that are wbar and bbar. With
// `held` and tangents, their tangents.
std::tuple<Tensor, Tensor> row_norm_vjp(const Tensor& adjoints, const Tensor& x, const Maybe& mean, const Tensor& rstd,
                                        const Tensor& weight, const Maybe& held, const Maybe& x_tangents,
                                        const Maybe& weight_tangents, bool wants_x, bool wants_parameters) {
  constexpr const char* kOp = "row_norm_vjp";
  RowNormParams p = row_params(kOp, x, mean, rstd, weight);
  check_same(kOp, "adjoints", adjoints, "x", x);
  p.k = adjoints.size(0);
  check_shape(kOp, "adjoints", adjoints, {p.k, p.rows, p.columns});
  const Tensor dense_adjoints = with_dense_rows(adjoints);
  p.adjoints = dense_adjoints.const_data_ptr();
  p.adjoints_stride = dense_adjoints.stride(0);
  STD_TORCH_CHECK(held.has_value() == x_tangents.has_value(), kOp,
                  ": held and x_tangents must be given together, got one");
  STD_TORCH_CHECK(x_tangents.has_value() || !weight_tangents.has_value(), kOp,
                  ": weight_tangents must be given with x_tangents, got them alone");
  Maybe tangents;
  Maybe dense_held;
  if (x_tangents) {
    check_same(kOp, "x_tangents", *x_tangents, "x", x);
    check_shape(kOp, "x_tangents", *x_tangents, {p.k, p.rows, p.columns});
    check_same(kOp, "held", *held, "x", x);
    check_shape(kOp, "held", *held, {p.rows, p.columns});
    tangents = with_dense_rows(*x_tangents);
    p.x_tangents = tangents->const_data_ptr();
    p.tangents_stride = tangents->stride(0);
    dense_held = torch::stable::contiguous(*held);
    p.held = dense_held->const_data_ptr();
  }
  if (weight_tangents) p.weight_tangents = small(kOp, "weight_tangents", *weight_tangents, x, {p.k, p.columns});
  p.parts = row_norm_parts(p.rows);
  Tensor out = torch::stable::new_empty(x, {wants_x ? p.k : 0, p.rows, p.columns});
  Tensor sums = torch::stable::new_zeros(x, {2, wants_parameters ? p.k : 0, p.columns}, ScalarType::Double);
  if (adjoints.numel() == 0 || (!wants_x && !wants_parameters)) return {out, sums};
  p.out = wants_x ? out.mutable_data_ptr() : nullptr;
  Maybe partial;
  Maybe means;
  if (wants_parameters) {
    partial = torch::stable::new_empty(x, {2, p.k, p.parts, p.columns}, arithmetic_type(x));
    p.partial = partial->mutable_data_ptr();
    if (x_tangents && runs_cuda_kernels(x)) {
      means = torch::stable::new_empty(x, {p.k, p.rows, 2}, arithmetic_type(x));
      p.means = means->mutable_data_ptr();
    }
  }
  run<launch_row_norm_vjp, &NormalizationKernels::row_norm_vjp>(kOp, x, p, p.parts, 1);
  if (wants_parameters) part_sums(kOp, x, *partial, sums, p.parts);
  return {out, sums};
}

// ---- channels ------------------------------------------------------------------------------------------------------

ChannelNormParams channel_params(const char* op, const Tensor& x, const Tensor& mean) {
  check_kind(op, x);
  STD_TORCH_CHECK(x.dim() == 3 && x.is_contiguous(), op, ": x must be contiguous of shape [samples, channels, size], ",
                  "got ", shape_text(x));
  ChannelNormParams p{};
  p.samples = x.size(0);
  p.channels = x.size(1);
  p.size = x.size(2);
  p.groups = mean.dim() == 2 ? mean.size(0) : 0;
  STD_TORCH_CHECK(p.groups == 1 || p.groups == p.samples, op, ": mean must have shape [1 or ", p.samples, ", ",
                  p.channels, "], got ", shape_text(mean));
  p.x = x.const_data_ptr();
  p.mean = small(op, "mean", mean, x, {p.groups, p.channels});
  p.kind = scalar_kind(x);
  return p;
}

// Checks rows [k, samples, channels, size]; the tensor itself or a copy with dense rows.
Tensor channel_rows(const char* op, const char* name, const Tensor& rows, const Tensor& x, int64_t k) {
  check_same(op, name, rows, "x", x);
  check_shape(op, name, rows, {k, x.size(0), x.size(1), x.size(2)});
  return with_dense_rows(rows);
}

// [2 or 3, k, groups, channels] float64: sums of a, of a (x - mean) and, where y is given, of a y.
Tensor channel_norm_sums(const Tensor& a, const Tensor& x, const Tensor& mean, const Maybe& y) {
  constexpr const char* kOp = "channel_norm_sums";
  ChannelNormParams p = channel_params(kOp, x, mean);
  p.k = a.size(0);
  const Tensor rows = channel_rows(kOp, "a", a, x, p.k);
  p.a = rows.const_data_ptr();
  p.a_stride = rows.stride(0);
  Maybe dense_y;
  if (y) {
    check_same(kOp, "y", *y, "x", x);
    check_shape(kOp, "y", *y, {p.samples, p.channels, p.size});
    dense_y = torch::stable::contiguous(*y);
    p.y = dense_y->const_data_ptr();
  }
  const int64_t count = y ? 3 : 2;
  Tensor sums = torch::stable::new_zeros(x, {count, p.k, p.groups, p.channels}, ScalarType::Double);
  if (a.numel() == 0) return sums;
  const int64_t parts = p.parts();
  Tensor partial = torch::stable::new_empty(x, {count, p.k, p.groups, parts, p.channels}, arithmetic_type(x));
  p.partial = partial.mutable_data_ptr();
  const int64_t units = channel_norm_units(p);
  run<launch_channel_norm_sums, &NormalizationKernels::channel_norm_sums>(kOp, x, p, units, 16384 * units / a.numel());
  return part_sums(kOp, x, partial, sums, parts);
}

// [k, samples, channels, size]: the combination of x - mean, 1, a, b and y (a, or b and y, may be absent) with the
// coefficients [5, k, groups, channels] in that order.
Tensor channel_norm_linear(const Tensor& coefficients, const Tensor& x, const Tensor& mean, const Maybe& a,
                           const Maybe& b, const Maybe& y) {
  constexpr const char* kOp = "channel_norm_linear";
  ChannelNormParams p = channel_params(kOp, x, mean);
  STD_TORCH_CHECK(coefficients.dim() == 4, kOp, ": coefficients must have shape [5, k, groups, channels], got ",
                  shape_text(coefficients));
  p.k = coefficients.size(1);
  p.coefficients = small(kOp, "coefficients", coefficients, x, {5, p.k, p.groups, p.channels});
  STD_TORCH_CHECK(b.has_value() == y.has_value() && (a.has_value() || !b.has_value()), kOp,
                  ": b and y must be given together and with a, got some of them");
  Maybe dense_a;
  Maybe dense_b;
  Maybe dense_y;
  if (a) {
    dense_a = channel_rows(kOp, "a", *a, x, p.k);
    p.a = dense_a->const_data_ptr();
    p.a_stride = dense_a->stride(0);
  }
  if (b) {
    dense_b = channel_rows(kOp, "b", *b, x, p.k);
    p.b = dense_b->const_data_ptr();
    p.b_stride = dense_b->stride(0);
    check_same(kOp, "y", *y, "x", x);
    check_shape(kOp, "y", *y, {p.samples, p.channels, p.size});
    dense_y = torch::stable::contiguous(*y);
    p.y = dense_y->const_data_ptr();
  }
  Tensor out = torch::stable::new_empty(x, {p.k, p.samples, p.channels, p.size});
  if (out.numel() == 0) return out;
  p.out = out.mutable_data_ptr();
  const int64_t units = channel_norm_units(p);
  run<launch_channel_norm_linear, &NormalizationKernels::channel_norm_linear>(kOp, x, p, units,
                                                                              16384 * units / out.numel());
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def(
      "row_norm_jvp(Tensor x, Tensor? mean, Tensor rstd, Tensor weight, Tensor? x_tangents, Tensor? weight_tangents, "
      "Tensor? bias_tangents) -> Tensor");
  m.def(
      "row_norm_vjp(Tensor adjoints, Tensor x, Tensor? mean, Tensor rstd, Tensor weight, Tensor? held, "
      "Tensor? x_tangents, Tensor? weight_tangents, bool wants_x, bool wants_parameters) -> (Tensor, Tensor)");
  m.def("channel_norm_sums(Tensor a, Tensor x, Tensor mean, Tensor? y) -> Tensor");
  m.def("channel_norm_linear(Tensor coefficients, Tensor x, Tensor mean, Tensor? a, Tensor? b, Tensor? y) -> Tensor");
}

LSFAST_IMPLEMENT(m) {
  m.impl("row_norm_jvp", TORCH_BOX(&row_norm_jvp));
  m.impl("row_norm_vjp", TORCH_BOX(&row_norm_vjp));
  m.impl("channel_norm_sums", TORCH_BOX(&channel_norm_sums));
  m.impl("channel_norm_linear", TORCH_BOX(&channel_norm_linear));
}

}  // namespace
}  // namespace lsfast::curvature
