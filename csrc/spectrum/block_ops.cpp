// Operators on a block of vectors and a basis: schema, checks, allocation, device and threads. Kernels: block_cpu.inl,
// block.cu.
#include "spectrum/block.h"

#include <vector>

#include "platform/torch_ops.h"
#include "spectrum/stored.h"

namespace lsfast::spectrum {
namespace {

using torch::headeronly::ScalarType;

// [any, n] with the elements of a row side by side and rows that do not overlap.
void check_rows(const char* op, const char* name, const Tensor& rows) {
  check_real(op, name, rows);
  STD_TORCH_CHECK(rows.dim() == 2, op, ": ", name, " must have 2 dimensions, got shape ", shape_text(rows));
  STD_TORCH_CHECK((rows.stride(1) == 1 || rows.size(1) <= 1) && (rows.stride(0) >= rows.size(1) || rows.size(0) <= 1),
                  op, ": ", name, " must have contiguous rows, got strides [", rows.stride(0), ", ", rows.stride(1),
                  "]");
}

void check_pair(const char* op, const Tensor& Q, const char* name, const Tensor& rows) {
  check_rows(op, "Q", Q);
  check_rows(op, name, rows);
  check_same(op, name, rows, "Q", Q);
  STD_TORCH_CHECK(rows.size(1) == Q.size(1), op, ": ", name, " must have rows of length ", Q.size(1), ", got ",
                  rows.size(1));
}

void check_coefficients(const char* op, const char* name, const Tensor& coefficients, int64_t count, const Tensor& Q) {
  STD_TORCH_CHECK(coefficients.scalar_type() == ScalarType::Double && coefficients.is_contiguous(), op, ": ", name,
                  " must be contiguous float64, got torch.", torch::headeronly::toString(coefficients.scalar_type()));
  STD_TORCH_CHECK(coefficients.dim() == 2 && coefficients.size(0) == count && coefficients.size(1) == Q.size(0), op,
                  ": ", name, " must have shape [", count, ", ", Q.size(0), "], got ", shape_text(coefficients));
  STD_TORCH_CHECK(coefficients.is_cuda() == Q.is_cuda() && coefficients.get_device_index() == Q.get_device_index(), op,
                  ": ", name, " must be on the device of Q");
}

// The addresses that rows lie between.
struct Extent {
  const char* begin;
  const char* end;

  explicit Extent(const Tensor& rows) : begin(static_cast<const char*>(rows.const_data_ptr())), end(begin) {
    if (rows.numel() == 0) return;
    const int64_t size = rows.scalar_type() == ScalarType::Double ? 8 : 4;
    end += ((rows.size(0) - 1) * rows.stride(0) + rows.size(1)) * size;
  }
  bool overlaps(const Extent& other) const { return begin < other.end && other.begin < end; }
};

void run_project(const char* op, const Tensor& Q, const Tensor& W, const Tensor* C, const Tensor* sums) {
  BlockProjectParams params{};
  params.rows = Q.const_data_ptr();
  params.block = const_cast<void*>(W.const_data_ptr());
  params.rows_stride = Q.stride(0);
  params.block_stride = W.stride(0);
  params.s = Q.size(0);
  params.b = W.size(0);
  params.n = Q.size(1);
  params.kind = scalar_kind(Q);
  if (C != nullptr) params.coefficients = C->const_data_ptr<double>();
  if (params.b == 0 || params.s == 0 || params.n == 0) return;
  const int64_t units = params.units();
  const Tensor partial =
      torch::stable::new_empty(Q, {sums == nullptr ? 0 : params.b * params.s * units}, ScalarType::Double);
  if (sums != nullptr) {
    params.partial = partial.mutable_data_ptr<double>();
    params.sums = sums->mutable_data_ptr<double>();
  }
  if (runs_cuda_kernels(Q)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(Q);
      check_launch(op, launch_block_project(params, scope.stream()));
    }
    return;
  }
  torch::stable::parallel_for(
      0, units, 1, [&](int64_t begin, int64_t end) { kernels().spectrum.block.project(params, begin, end); });
  for (int64_t i = 0; sums != nullptr && i < params.b * params.s; ++i) {
    for (int64_t unit = 0; unit < units; ++unit) params.sums[i] += params.partial[i * units + unit];
  }
}

// [b, s] float64: inner products of the rows of W with the rows of Q.
Tensor block_project(const Tensor& Q, const Tensor& W) {
  constexpr const char* kOp = "block_project";
  check_pair(kOp, Q, "W", W);
  const Tensor sums = torch::stable::new_zeros(Q, {W.size(0), Q.size(0)}, ScalarType::Double);
  run_project(kOp, Q, W, nullptr, &sums);
  return sums;
}

void check_subtraction(const char* op, const Tensor& Q, const Tensor& W, const Tensor& C) {
  check_pair(op, Q, "W", W);
  check_coefficients(op, "C", C, W.size(0), Q);
  STD_TORCH_CHECK(!Extent(Q).overlaps(Extent(W)), op, ": W must not overlap Q");
}

// W -= C Q.
void block_subtract(const Tensor& Q, const Tensor& W, const Tensor& C) {
  constexpr const char* kOp = "block_subtract";
  check_subtraction(kOp, Q, W, C);
  run_project(kOp, Q, W, &C, nullptr);
}

// W -= C Q; returns the inner products of the new W with the rows of Q [b, s].
Tensor block_subtract_project(const Tensor& Q, const Tensor& W, const Tensor& C) {
  constexpr const char* kOp = "block_subtract_project";
  check_subtraction(kOp, Q, W, C);
  const Tensor sums = torch::stable::new_zeros(Q, {W.size(0), Q.size(0)}, ScalarType::Double);
  run_project(kOp, Q, W, &C, &sums);
  return sums;
}

// out = S Q; out may be the first rows of Q.
void block_combine(const Tensor& Q, const Tensor& S, const Tensor& out) {
  constexpr const char* kOp = "block_combine";
  check_pair(kOp, Q, "out", out);
  check_coefficients(kOp, "S", S, out.size(0), Q);
  const bool in_place = Extent(Q).overlaps(Extent(out));
  STD_TORCH_CHECK(!in_place || (out.const_data_ptr() == Q.const_data_ptr() && out.size(0) <= Q.size(0) &&
                                (out.stride(0) == Q.stride(0) || out.size(0) == 1)),
                  kOp, ": out must be the first rows of Q or not overlap it");
  BlockCombineParams params{};
  params.rows = Q.const_data_ptr();
  params.coefficients = S.const_data_ptr<double>();
  params.out = out.mutable_data_ptr();
  params.rows_stride = Q.stride(0);
  params.out_stride = out.stride(0);
  params.s = Q.size(0);
  params.p = out.size(0);
  params.n = Q.size(1);
  params.kind = scalar_kind(Q);
  if (params.p == 0 || params.n == 0) return;
  if (runs_cuda_kernels(Q)) {
    if constexpr (kHasCudaKernels) {
      params.scratch_columns = block_combine_columns(params);
      const Tensor scratch = torch::stable::new_empty(Q, {in_place ? params.p : 0, params.scratch_columns});
      if (in_place) params.scratch = scratch.mutable_data_ptr();
      const CudaScope scope(Q);
      check_launch(kOp, launch_block_combine(params, scope.stream()));
    }
    return;
  }
  params.scratch_columns = kChunk;
  torch::stable::parallel_for(0, (params.n + kChunk - 1) / kChunk, 1, [&](int64_t begin, int64_t end) {
    std::vector<double> scratch(in_place ? static_cast<size_t>(params.p * kChunk) : 0);
    BlockCombineParams own = params;
    if (in_place) own.scratch = scratch.data();
    kernels().spectrum.block.combine(own, begin, end);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("block_project(Tensor Q, Tensor W) -> Tensor");
  m.def("block_subtract(Tensor Q, Tensor(a!) W, Tensor C) -> ()");
  m.def("block_subtract_project(Tensor Q, Tensor(a!) W, Tensor C) -> Tensor");
  m.def("block_combine(Tensor Q, Tensor S, Tensor(a!) out) -> ()");
}

LSFAST_IMPLEMENT(m) {
  m.impl("block_project", TORCH_BOX(&block_project));
  m.impl("block_subtract", TORCH_BOX(&block_subtract));
  m.impl("block_subtract_project", TORCH_BOX(&block_subtract_project));
  m.impl("block_combine", TORCH_BOX(&block_combine));
}

}  // namespace
}  // namespace lsfast::spectrum
