// Operators of the Lanczos recurrence: schema, checks, allocation, device and threads. Kernels: recurrence_cpu.inl,
// recurrence.cu.
#include "spectrum/recurrence.h"

#include <optional>

#include "platform/torch_ops.h"
#include "spectrum/step.h"

namespace lsfast::spectrum {
namespace {

using torch::headeronly::ScalarType;

constexpr int64_t kMaxVectors = 65535;  // gridDim.y
constexpr int64_t kMaxBlocks = 1024;    // of a CUDA reduction, for each probe

// Pieces whose sums are made apart: units on the CPU, blocks on CUDA.
int64_t parts_of(const Tensor& x, int64_t n) {
  const int64_t unit = kUnitBytes / (x.scalar_type() == ScalarType::Double ? 8 : 4);
  const int64_t units = (n + unit - 1) / unit;
  if (!runs_cuda_kernels(x)) return units;
  return std::min(kMaxBlocks, std::max<int64_t>(1, units * 4));
}

void add_parts(const double* partial, double* sums, int64_t count, int64_t parts) {
  for (int64_t i = 0; i < count; ++i) {
    sums[i] = 0.0;
    for (int64_t part = 0; part < parts; ++part) sums[i] += partial[i * parts + part];
  }
}

// Vectors [k, n] whose rows may lie further apart, such as a slice of columns.
void check_vectors(const char* op, const char* name, const Tensor& x, const Tensor& like) {
  check_real(op, name, x);
  check_same(op, name, x, "current", like);
  STD_TORCH_CHECK(x.dim() == 2 && x.size(0) == like.size(0) && x.size(1) == like.size(1), op, ": ", name,
                  " must have shape ", shape_text(like), ", got ", shape_text(x));
  STD_TORCH_CHECK((x.size(1) <= 1 || x.stride(1) == 1) && (x.size(0) <= 1 || x.stride(0) == like.stride(0)), op, ": ",
                  name, " must have contiguous rows, as far apart as those of current");
}

// Row-wise inner products of x and y [k, n] in float64: [k].
Tensor row_dots(const Tensor& x, const Tensor& y) {
  constexpr const char* kOp = "row_dots";
  check_real(kOp, "x", x);
  check_dense(kOp, "x", x, 2);
  check_dense(kOp, "y", y, 2);
  check_same(kOp, "y", y, "x", x);
  STD_TORCH_CHECK(x.size(0) == y.size(0) && x.size(1) == y.size(1), kOp, ": y must have the shape of x, got ",
                  shape_text(y), " and ", shape_text(x));
  STD_TORCH_CHECK(x.size(0) <= kMaxVectors, kOp, ": x must have at most ", kMaxVectors, " rows, got ", x.size(0));
  const Tensor result = torch::stable::new_zeros(x, {x.size(0)}, ScalarType::Double);
  if (x.numel() == 0) return result;
  DotsParams params{};
  params.k = x.size(0);
  params.n = x.size(1);
  params.parts = parts_of(x, params.n);
  const Tensor partial = torch::stable::new_empty(x, {params.k, params.parts}, ScalarType::Double);
  params.x = x.const_data_ptr();
  params.y = y.const_data_ptr();
  params.partial = partial.mutable_data_ptr<double>();
  params.dots = result.mutable_data_ptr<double>();
  params.kind = scalar_kind(x);
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      check_launch(kOp, launch_dots(params, scope.stream()));
    }
    return result;
  }
  torch::stable::parallel_for(0, params.k * params.parts, 1, [&](int64_t begin, int64_t end) {
    kernels().spectrum.recurrence.dots(params, begin, end);
  });
  add_parts(params.partial, params.dots, params.k, params.parts);
  return result;
}

void begin_on_cpu(const BeginParams& p) {
  for (int64_t probe = 0; probe < p.k; ++probe) {
    const double* const c = p.defect + probe * p.capacity;
    double c_squared = 0.0;
    double c_T_c = 0.0;
    for (int64_t i = 0; i < p.count; ++i) {
      c_squared += c[i] * c[i];
      c_T_c += c[i] * projected(p, probe, i);
    }
    const Factors factors = begin_step(p, probe, c_squared, c_T_c);
    double* const values = p.of(probe);
    std::memcpy(values, &factors, sizeof(factors));
    for (int64_t i = 0; i < p.count; ++i) {
      values[Factors::kCount + i] = c[i] * factors.scale;
      values[Factors::kCount + p.count + i] = projected(p, probe, i) * factors.scale;
    }
  }
}

// The factors of step `step` [k, 4 + 2 count], from dots = u'Au [k] and the projections of u on the rows in `defect`.
Tensor lanczos_begin(const Tensor& dots, const Tensor& defect, const Tensor& alpha, const Tensor& beta,
                     const std::optional<Tensor>& ritz, int64_t step, int64_t count) {
  constexpr const char* kOp = "lanczos_begin";
  check_dense(kOp, "alpha", alpha, 2);
  check_dense(kOp, "defect", defect, 2);
  BeginParams params{};
  params.k = alpha.size(0);
  params.m = alpha.size(1);
  params.count = count;
  params.capacity = defect.size(1);
  params.step = step;
  STD_TORCH_CHECK(dots.dim() == 1 && dots.size(0) == params.k && dots.scalar_type() == ScalarType::Double, kOp,
                  ": dots must be float64 of shape [", params.k, "], got shape ", shape_text(dots));
  check_table(kOp, "alpha", alpha, ScalarType::Double, params.k, params.m, dots);
  check_table(kOp, "beta", beta, ScalarType::Double, params.k, params.m, dots);
  check_table(kOp, "defect", defect, ScalarType::Double, params.k, params.capacity, dots);
  if (ritz) check_table(kOp, "ritz", *ritz, ScalarType::Double, params.k, count, dots);
  STD_TORCH_CHECK(0 <= step && step < params.m, kOp, ": step must lie in 0..", params.m - 1, ", got ", step);
  STD_TORCH_CHECK(0 <= count && count <= params.capacity && (ritz || count <= step), kOp, ": count must lie in 0..",
                  ritz ? params.capacity : std::min(step, params.capacity), ", got ", count);
  const Tensor factors = torch::stable::new_empty(alpha, {params.k, Factors::kCount + 2 * count});
  if (params.k == 0) return factors;
  params.dots = dots.const_data_ptr<double>();
  params.defect = defect.const_data_ptr<double>();
  params.alpha = alpha.const_data_ptr<double>();
  params.beta = beta.const_data_ptr<double>();
  params.ritz = ritz ? ritz->const_data_ptr<double>() : nullptr;
  params.factors = factors.mutable_data_ptr<double>();
  if (runs_cuda_kernels(alpha)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(alpha);
      check_launch(kOp, launch_begin(params, scope.stream()));
    }
  } else {
    begin_on_cpu(params);
  }
  return factors;
}

// Number of rows that factors [k, 4 + 2 count] speak of.
int64_t count_of(const char* op, const Tensor& factors, const Tensor& like, int64_t k) {
  check_dense(op, "factors", factors, 2);
  const int64_t count = (factors.size(1) - Factors::kCount) / 2;
  STD_TORCH_CHECK(count >= 0, op, ": factors must have 4 or more columns, got shape ", shape_text(factors));
  check_table(op, "factors", factors, ScalarType::Double, k, Factors::kCount + 2 * count, like);
  return count;
}

// Makes `current` orthogonal to the rows and `next` what the recurrence leaves of `product`; see recurrence.h. Returns
// the sums [k, count + 2]: projections of next on the rows and on current, its squared norm.
Tensor lanczos_pass(const Tensor& current, const Tensor& product, const std::optional<Tensor>& previous,
                    const Tensor& next, const std::optional<Tensor>& rows, const std::optional<Tensor>& stored,
                    const Tensor& factors) {
  constexpr const char* kOp = "lanczos_pass";
  check_vectors(kOp, "current", current, current);
  check_vectors(kOp, "product", product, current);
  check_vectors(kOp, "next", next, current);
  if (previous) check_vectors(kOp, "previous", *previous, current);
  PassParams params{};
  params.k = current.size(0);
  params.n = current.size(1);
  STD_TORCH_CHECK(params.k <= kMaxVectors, kOp, ": current must have at most ", kMaxVectors, " rows, got ", params.k);
  params.count = count_of(kOp, factors, current, params.k);
  params.kind = scalar_kind(current);
  params.rows_kind = params.kind;
  params.vector_stride = params.k > 1 ? current.stride(0) : params.n;
  params.probe_stride = params.n;
  STD_TORCH_CHECK(params.count == 0 || rows, kOp, ": factors of ", params.count, " rows need rows");
  if (rows) {
    STD_TORCH_CHECK(rows->dim() == 3 && rows->size(0) >= params.count && rows->size(1) == params.k &&
                        rows->size(2) == params.n && (params.n <= 1 || rows->stride(2) == 1),
                    kOp, ": rows must have shape [", params.count, " or more, ", params.k, ", ", params.n,
                    "] and be contiguous in the last axis, got ", shape_text(*rows));
    params.rows_kind = scalar_kind(*rows);
    params.row_stride = rows->stride(0);
    if (params.k > 1) params.probe_stride = rows->stride(1);
    params.rows = rows->const_data_ptr();
  }
  if (stored) {
    STD_TORCH_CHECK(stored->dim() == 2 && stored->size(0) == params.k && stored->size(1) == params.n &&
                        (params.n <= 1 || stored->stride(1) == 1),
                    kOp, ": stored must have shape ", shape_text(current), ", got ", shape_text(*stored));
    if (!rows && params.k > 1) params.probe_stride = stored->stride(0);
    STD_TORCH_CHECK(params.k <= 1 || stored->stride(0) == params.probe_stride, kOp,
                    ": stored must have its rows as far apart as rows");
    STD_TORCH_CHECK(!rows || scalar_kind(*stored) == params.rows_kind, kOp, ": stored must have the dtype of rows");
    params.rows_kind = scalar_kind(*stored);
    params.stored = stored->mutable_data_ptr();
  }
  for (const auto* basis : {&rows, &stored}) {
    if (!*basis) continue;
    const ScalarType type = (*basis)->scalar_type();
    STD_TORCH_CHECK(type == current.scalar_type() || type == ScalarType::BFloat16 ||
                        (type == ScalarType::Float && current.scalar_type() == ScalarType::Double),
                    kOp, ": rows must have the dtype of current or a narrower one (float32, bfloat16), got torch.",
                    torch::headeronly::toString(type));
    STD_TORCH_CHECK(
        (*basis)->is_cuda() == current.is_cuda() && (*basis)->get_device_index() == current.get_device_index(), kOp,
        ": rows must be on the device of current");
  }
  const Tensor sums = torch::stable::new_zeros(current, {params.k, params.outputs()}, ScalarType::Double);
  if (params.k == 0 || params.n == 0) return sums;
  params.parts = parts_of(current, params.n);
  const Tensor partial =
      torch::stable::new_empty(current, {params.k, params.outputs(), params.parts}, ScalarType::Double);
  params.current = current.mutable_data_ptr();
  params.product = product.const_data_ptr();
  params.previous = previous ? previous->const_data_ptr() : nullptr;
  params.next = next.mutable_data_ptr();
  params.factors = factors.const_data_ptr<double>();
  params.partial = partial.mutable_data_ptr<double>();
  params.sums = sums.mutable_data_ptr<double>();
  if (runs_cuda_kernels(current)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(current);
      check_launch(kOp, launch_pass(params, scope.stream()));
    }
    return sums;
  }
  torch::stable::parallel_for(0, params.k * params.parts, 1, [&](int64_t begin, int64_t end) {
    kernels().spectrum.recurrence.pass(params, begin, end);
  });
  add_parts(params.partial, params.sums, params.k * params.outputs(), params.parts);
  return sums;
}

void end_on_cpu(const EndParams& p) {
  for (int64_t probe = 0; probe < p.k; ++probe) {
    const double* const d = p.sums + probe * (p.count + 2);
    double d_squared = 0.0;
    for (int64_t i = 0; i < p.count; ++i) d_squared += d[i] * d[i];
    const StepEnd end = end_step(p, probe, d_squared);
    record_step(p, probe, end);
    double* const defect = p.defect + probe * p.capacity;
    for (int64_t i = 0; i < p.count + (p.append ? 1 : 0); ++i) {
      defect[i] = end.factor == 0.0 ? 0.0 : d[i] * end.factor;
    }
  }
  if (p.last) return;
  const int64_t blocks = (p.n + kScaleBlock - 1) / kScaleBlock;
  torch::stable::parallel_for(0, p.k * blocks, 1,
                              [&](int64_t begin, int64_t end) { kernels().spectrum.recurrence.scale(p, begin, end); });
}

// Ends step `step`: writes its column of alpha, beta and scale, the steps taken and the defect of the next vector, and
// normalizes `next`, unless this step is the last. `append`: the current vector becomes a row.
void lanczos_end(const Tensor& factors, const Tensor& sums, const Tensor& next, const Tensor& alpha, const Tensor& beta,
                 const Tensor& scale, const Tensor& steps, const Tensor& defect, int64_t step, bool append, bool last,
                 double tolerance) {
  constexpr const char* kOp = "lanczos_end";
  check_real(kOp, "next", next);
  check_dense(kOp, "next", next, 2);
  check_dense(kOp, "alpha", alpha, 2);
  check_dense(kOp, "defect", defect, 2);
  EndParams params{};
  params.k = next.size(0);
  params.n = next.size(1);
  params.m = alpha.size(1);
  params.count = count_of(kOp, factors, next, params.k);
  params.capacity = defect.size(1);
  params.step = step;
  params.tolerance = tolerance;
  params.append = append;
  params.last = last;
  params.kind = scalar_kind(next);
  check_table(kOp, "sums", sums, ScalarType::Double, params.k, params.count + 2, next);
  check_table(kOp, "alpha", alpha, ScalarType::Double, params.k, params.m, next);
  check_table(kOp, "beta", beta, ScalarType::Double, params.k, params.m, next);
  check_table(kOp, "scale", scale, ScalarType::Double, params.k, params.m, next);
  check_table(kOp, "defect", defect, ScalarType::Double, params.k, params.capacity, next);
  STD_TORCH_CHECK(steps.scalar_type() == ScalarType::Long && steps.dim() == 1 && steps.size(0) == params.k &&
                      steps.is_contiguous() && steps.is_cuda() == next.is_cuda(),
                  kOp, ": steps must be int64 of shape [", params.k, "], got shape ", shape_text(steps));
  STD_TORCH_CHECK(0 <= step && step < params.m, kOp, ": step must lie in 0..", params.m - 1, ", got ", step);
  STD_TORCH_CHECK(params.count + (append ? 1 : 0) <= params.capacity, kOp, ": defect must have ",
                  params.count + (append ? 1 : 0), " or more columns, got ", params.capacity);
  if (params.k == 0) return;
  const Tensor norm_factor = torch::stable::new_empty(alpha, {params.k});
  params.factors = factors.const_data_ptr<double>();
  params.sums = sums.const_data_ptr<double>();
  params.next = next.mutable_data_ptr();
  params.alpha = alpha.mutable_data_ptr<double>();
  params.beta = beta.mutable_data_ptr<double>();
  params.scale = scale.mutable_data_ptr<double>();
  params.steps = steps.mutable_data_ptr<int64_t>();
  params.defect = defect.mutable_data_ptr<double>();
  params.norm_factor = norm_factor.mutable_data_ptr<double>();
  if (runs_cuda_kernels(next)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(next);
      check_launch(kOp, launch_end(params, scope.stream()));
    }
    return;
  }
  end_on_cpu(params);
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("row_dots(Tensor x, Tensor y) -> Tensor");
  m.def(
      "lanczos_begin(Tensor dots, Tensor defect, Tensor alpha, Tensor beta, Tensor? ritz, int step, int count) "
      "-> Tensor");
  m.def(
      "lanczos_pass(Tensor(a!) current, Tensor product, Tensor? previous, Tensor(b!) next, Tensor? rows, "
      "Tensor(c!)? stored, Tensor factors) -> Tensor");
  m.def(
      "lanczos_end(Tensor factors, Tensor sums, Tensor(a!) next, Tensor(b!) alpha, Tensor(c!) beta, Tensor(d!) scale, "
      "Tensor(e!) steps, Tensor(f!) defect, int step, bool append, bool last, float tolerance) -> ()");
}

LSFAST_IMPLEMENT(m) {
  m.impl("row_dots", TORCH_BOX(&row_dots));
  m.impl("lanczos_begin", TORCH_BOX(&lanczos_begin));
  m.impl("lanczos_pass", TORCH_BOX(&lanczos_pass));
  m.impl("lanczos_end", TORCH_BOX(&lanczos_end));
}

}  // namespace
}  // namespace lsfast::spectrum
