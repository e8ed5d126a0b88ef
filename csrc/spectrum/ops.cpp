// Operators of the spectrum room: schema, checks, allocation, device and threads. Kernels: cpu.inl, cuda.cu.
#include "spectrum/spectrum.h"

#include <optional>
#include <tuple>

#include "platform/torch_ops.h"

namespace lsfast::spectrum {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kMaxVectors = 65535;  // gridDim.y

void check_dense(const char* op, const char* name, const Tensor& tensor, int64_t dimensions) {
  STD_TORCH_CHECK(tensor.dim() == dimensions && tensor.is_contiguous(), op, ": ", name, " must be contiguous with ",
                  dimensions, " dimensions, got shape ", shape_text(tensor));
}

// A contiguous [rows, columns] tensor of `type` on the device of w.
void check_table(const char* op, const char* name, const Tensor& tensor, ScalarType type, int64_t rows, int64_t columns,
                 const Tensor& w) {
  check_dense(op, name, tensor, 2);
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be torch.", torch::headeronly::toString(type),
                  ", got torch.", torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.size(0) == rows && tensor.size(1) == columns, op, ": ", name, " must have shape [", rows, ", ",
                  columns, "], got ", shape_text(tensor));
  STD_TORCH_CHECK(tensor.is_cuda() == w.is_cuda() && tensor.get_device_index() == w.get_device_index(), op, ": ", name,
                  " must be on the device of w");
}

void check_vectors(const char* op, const Tensor& basis, const Tensor& w, int64_t count) {
  check_real(op, "w", w);
  check_same(op, "basis", basis, "w", w);
  check_dense(op, "w", w, 2);
  check_dense(op, "basis", basis, 3);
  STD_TORCH_CHECK(basis.size(0) == w.size(0) && basis.size(2) == w.size(1), op, ": basis must have shape [", w.size(0),
                  ", rows, ", w.size(1), "], got ", shape_text(basis));
  STD_TORCH_CHECK(0 <= count && count <= basis.size(1), op, ": count must lie in 0..", basis.size(1), ", got ", count);
  STD_TORCH_CHECK(w.size(0) <= kMaxVectors, op, ": w must have at most ", kMaxVectors, " rows, got ", w.size(0));
}

// Subtracts (when coefficients are given, into out), then projects or takes squared norms: [k, outputs].
Tensor orthogonalize(const char* op, const Tensor& basis, const Tensor& w, const Tensor* coefficients, void* out,
                     int64_t count, bool project) {
  check_vectors(op, basis, w, count);
  OrthogonalizeParams params{};
  params.basis = basis.const_data_ptr();
  params.w = w.const_data_ptr();
  params.out = out;
  if (coefficients != nullptr) {
    check_table(op, "coefficients", *coefficients, ScalarType::Double, w.size(0), count, w);
    if (count > 0) params.coefficients = coefficients->const_data_ptr<double>();
  }
  params.k = w.size(0);
  params.rows = basis.size(1);
  params.n = w.size(1);
  params.count = count;
  params.project = project;
  params.kind = scalar_kind(w);
  const int64_t outputs = params.outputs();
  Tensor sums = torch::stable::new_zeros(w, {params.k, outputs}, ScalarType::Double);
  if (params.k == 0 || params.n == 0 || outputs == 0) return sums;
  const int64_t units = params.units();
  const Tensor partial = torch::stable::new_empty(w, {params.k, outputs, units}, ScalarType::Double);
  params.partial = partial.mutable_data_ptr<double>();
  params.sums = sums.mutable_data_ptr<double>();
  if (runs_cuda_kernels(w)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(w);
      check_launch(op, launch_orthogonalize(params, scope.stream()));
    }
    return sums;
  }
  torch::stable::parallel_for(0, params.k * units, 1, [&](int64_t begin, int64_t end) {
    kernels().spectrum.orthogonalize(params, begin, end);
  });
  for (int64_t i = 0; i < params.k * outputs; ++i) {
    for (int64_t unit = 0; unit < units; ++unit) params.sums[i] += params.partial[i * units + unit];
  }
  return sums;
}

// [k, count]: projections of w on the first `count` rows of the basis.
Tensor basis_project(const Tensor& basis, const Tensor& w, int64_t count) {
  return orthogonalize("basis_project", basis, w, nullptr, nullptr, count, true);
}

// out = w - sum_j coefficients_j basis_j; returns the projections of out on the same rows [k, count].
Tensor basis_subtract_project(const Tensor& basis, const Tensor& w, const Tensor& coefficients, const Tensor& out) {
  constexpr const char* kOp = "basis_subtract_project";
  check_same(kOp, "out", out, "w", w);
  check_dense(kOp, "coefficients", coefficients, 2);
  check_dense(kOp, "out", out, 2);
  STD_TORCH_CHECK(coefficients.size(1) > 0, kOp, ": coefficients must have at least 1 column, got shape ",
                  shape_text(coefficients));
  STD_TORCH_CHECK(w.dim() == 2 && out.size(0) == w.size(0) && out.size(1) == w.size(1), kOp,
                  ": out must have the shape of w, got ", shape_text(out), " and ", shape_text(w));
  return orthogonalize(kOp, basis, w, &coefficients, out.mutable_data_ptr(), coefficients.size(1), true);
}

// w -= sum_j coefficients_j basis_j; returns |w|^2 [k]. Without coefficients ([k, 0]) the norm alone.
Tensor basis_subtract_norm(const Tensor& basis, const Tensor& w, const Tensor& coefficients) {
  constexpr const char* kOp = "basis_subtract_norm";
  check_dense(kOp, "coefficients", coefficients, 2);
  const Tensor sums = orthogonalize(kOp, basis, w, &coefficients, w.mutable_data_ptr(), coefficients.size(1), false);
  return torch::stable::reshape(sums, {w.size(0)});
}

// Ends step `step`: writes its column of alpha, beta and scale, and steps; w and row `row` of the basis become the next
// basis vector. See AdvanceParams.
void lanczos_advance(const Tensor& w, const Tensor& basis, const Tensor& alpha, const Tensor& beta, const Tensor& scale,
                     const Tensor& steps, const Tensor& norm_squared, const Tensor& projections,
                     const std::optional<Tensor>& corrections, int64_t column, int64_t step, int64_t row,
                     double tolerance) {
  constexpr const char* kOp = "lanczos_advance";
  check_dense(kOp, "projections", projections, 2);
  check_dense(kOp, "alpha", alpha, 2);
  check_vectors(kOp, basis, w, 0);
  AdvanceParams params{};
  params.k = w.size(0);
  params.rows = basis.size(1);
  params.n = w.size(1);
  params.m = alpha.size(1);
  params.count = projections.size(1);
  check_table(kOp, "alpha", alpha, ScalarType::Double, params.k, params.m, w);
  check_table(kOp, "beta", beta, ScalarType::Double, params.k, params.m, w);
  check_table(kOp, "scale", scale, ScalarType::Double, params.k, params.m, w);
  check_table(kOp, "projections", projections, ScalarType::Double, params.k, params.count, w);
  if (corrections) check_table(kOp, "corrections", *corrections, ScalarType::Double, params.k, params.count, w);
  STD_TORCH_CHECK(norm_squared.scalar_type() == ScalarType::Double && norm_squared.numel() == params.k &&
                      norm_squared.is_contiguous() && norm_squared.is_cuda() == w.is_cuda(),
                  kOp, ": norm_squared must be float64 of shape [", params.k, "] on the device of w, got shape ",
                  shape_text(norm_squared));
  STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && steps.numel() == params.k && steps.is_contiguous() &&
                      steps.is_cuda() == w.is_cuda(),
                  kOp, ": steps must be int64 of shape [", params.k, "] on the device of w, got shape ",
                  shape_text(steps));
  STD_TORCH_CHECK(0 <= column && column < params.count, kOp, ": column must lie in 0..", params.count - 1, ", got ",
                  column);
  STD_TORCH_CHECK(0 <= step && step < params.m, kOp, ": step must lie in 0..", params.m - 1, ", got ", step);
  STD_TORCH_CHECK(row < params.rows, kOp, ": row must be below ", params.rows, ", got ", row);
  if (params.k == 0) return;
  params.w = w.mutable_data_ptr();
  params.basis = basis.mutable_data_ptr();
  params.norm_squared = norm_squared.const_data_ptr<double>();
  params.projections = projections.const_data_ptr<double>();
  params.corrections = corrections ? corrections->const_data_ptr<double>() : nullptr;
  params.alpha = alpha.mutable_data_ptr<double>();
  params.beta = beta.mutable_data_ptr<double>();
  params.scale = scale.mutable_data_ptr<double>();
  params.steps = steps.mutable_data_ptr<int64_t>();
  params.column = column;
  params.step = step;
  params.row = row;
  params.tolerance = tolerance;
  params.kind = scalar_kind(w);
  if (runs_cuda_kernels(w)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(w);
      check_launch(kOp, launch_advance(params, scope.stream()));
    }
    return;
  }
  const int64_t blocks = (params.n + kAdvanceBlock - 1) / kAdvanceBlock;
  torch::stable::parallel_for(0, params.k * blocks, 4,
                              [&](int64_t begin, int64_t end) { kernels().spectrum.advance(params, begin, end); });
}

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
  torch::stable::parallel_for(0, params.k, 1,
                              [&](int64_t begin, int64_t end) { kernels().spectrum.tridiagonal(params, begin, end); });
  return {nodes, weights, failed};
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("basis_project(Tensor basis, Tensor w, int count) -> Tensor");
  m.def("basis_subtract_project(Tensor basis, Tensor w, Tensor coefficients, Tensor(a!) out) -> Tensor");
  m.def("basis_subtract_norm(Tensor basis, Tensor(a!) w, Tensor coefficients) -> Tensor");
  m.def(
      "lanczos_advance(Tensor(a!) w, Tensor(b!) basis, Tensor(c!) alpha, Tensor(d!) beta, Tensor(e!) scale, "
      "Tensor(f!) steps, Tensor norm_squared, Tensor projections, Tensor? corrections, int column, int step, int row, "
      "float tolerance) -> ()");
  m.def("tridiagonal_eigen(Tensor alpha, Tensor beta, Tensor steps) -> (Tensor, Tensor, Tensor)");
}

LSFAST_IMPLEMENT(m) {
  m.impl("basis_project", TORCH_BOX(&basis_project));
  m.impl("basis_subtract_project", TORCH_BOX(&basis_subtract_project));
  m.impl("basis_subtract_norm", TORCH_BOX(&basis_subtract_norm));
  m.impl("lanczos_advance", TORCH_BOX(&lanczos_advance));
  m.impl("tridiagonal_eigen", TORCH_BOX(&tridiagonal_eigen));
}

}  // namespace
}  // namespace lsfast::spectrum
