// Operators of softmax: schema, checks, allocation, device and threads. Kernels: softmax_cpu.inl, softmax.cu.
#include "curvature/softmax.h"

#include "platform/torch_ops.h"

namespace lsfast::curvature {
namespace {

using torch::headeronly::ScalarType;

// How many elements a thread should have at least: below, another thread costs more than it brings.
constexpr int64_t kGrain = 16384;

int64_t rows_per_thread(int64_t elements_per_row) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, elements_per_row));
}

ScalarType arithmetic_of(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

void check_on_device(const char* op, const char* name, const Tensor& tensor, const Tensor& reference) {
  STD_TORCH_CHECK(tensor.is_cuda() == reference.is_cuda() && tensor.get_device_index() == reference.get_device_index(),
                  op, ": ", name, " must be on the device of tangents");
}

// What all k rows share: of the type of the arithmetic, [rows, cols] or [rows].
void check_shared(const char* op, const char* name, const Tensor& tensor, const Tensor& tangents, bool whole_rows) {
  check_on_device(op, name, tensor, tangents);
  STD_TORCH_CHECK(tensor.scalar_type() == arithmetic_of(tangents), op, ": ", name, " must be torch.",
                  torch::headeronly::toString(arithmetic_of(tangents)), ", got torch.",
                  torch::headeronly::toString(tensor.scalar_type()));
  const bool fits = tensor.dim() == (whole_rows ? 2 : 1) && tensor.size(0) == tangents.size(1) &&
                    (!whole_rows || tensor.size(1) == tangents.size(2));
  STD_TORCH_CHECK(fits, op, ": ", name, " must have the shape of a row of tangents", whole_rows ? "" : ", without cols",
                  ", got ", shape_text(tensor), " and tangents ", shape_text(tangents));
}

void check_tangents(const char* op, const Tensor& tangents) {
  check_floating(op, "tangents", tangents);
  STD_TORCH_CHECK(tangents.dim() == 3, op, ": tangents must have shape [k, rows, cols], got ", shape_text(tangents));
}

void check_in_place(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(tensor.is_contiguous(), op, ": ", name, " must be contiguous: it is written in place");
}

SoftmaxOutput output_of(const char* op, int64_t number, SoftmaxOutput last) {
  STD_TORCH_CHECK(number >= 0 && number <= static_cast<int64_t>(last), op, ": output must lie in 0..",
                  static_cast<int64_t>(last), ", got ", number);
  return static_cast<SoftmaxOutput>(number);
}

void run_tangent(const char* op, const Tensor& probability, const Tensor& tangents, SoftmaxOutput output,
                 const Tensor& out) {
  if (out.numel() == 0) return;
  const SoftmaxTangentParams params{probability.const_data_ptr(),
                                    tangents.const_data_ptr(),
                                    out.mutable_data_ptr(),
                                    tangents.size(0),
                                    tangents.size(1),
                                    tangents.size(2),
                                    output,
                                    scalar_kind(tangents)};
  if (runs_cuda_kernels(tangents)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(tangents);
      check_launch(op, launch_softmax_tangent(params, scope.stream()));
    }
    return;
  }
  torch::stable::parallel_for(0, params.rows, rows_per_thread(params.k * params.cols), [&](int64_t begin, int64_t end) {
    kernels().curvature.softmax.tangent(params, begin, end);
  });
}

Tensor softmax_tangent(const Tensor& probability, const Tensor& tangents, int64_t output) {
  constexpr const char* kOp = "softmax_tangent";
  check_tangents(kOp, tangents);
  check_shared(kOp, "probability", probability, tangents, true);
  const SoftmaxOutput kind = output_of(kOp, output, SoftmaxOutput::kLogSoftmaxAdjoint);
  const Tensor dense = torch::stable::contiguous(tangents);
  Tensor out = kind == SoftmaxOutput::kLogSumExp ? torch::stable::new_empty(dense, {tangents.size(0), tangents.size(1)})
                                                 : torch::stable::new_empty(dense, tangents.sizes());
  run_tangent(kOp, torch::stable::contiguous(probability), dense, kind, out);
  return out;
}

// Softmax and the centering of log_softmax alone: what attention needs in place.
void softmax_tangent_(const Tensor& probability, const Tensor& tangents, int64_t output) {
  constexpr const char* kOp = "softmax_tangent_";
  check_tangents(kOp, tangents);
  check_in_place(kOp, "tangents", tangents);
  check_shared(kOp, "probability", probability, tangents, true);
  const SoftmaxOutput kind = output_of(kOp, output, SoftmaxOutput::kLogSoftmax);
  run_tangent(kOp, torch::stable::contiguous(probability), tangents, kind, tangents);
}

void run_adjoint_tangent(const char* op, const Tensor& probability, const Tensor& centered, const Tensor& tangents,
                         const Tensor& adjoints, SoftmaxOutput output, void* tangents_out, const Tensor& out) {
  if (out.numel() == 0) return;
  const SoftmaxAdjointTangentParams params{probability.const_data_ptr(),
                                           centered.const_data_ptr(),
                                           tangents.const_data_ptr(),
                                           adjoints.const_data_ptr(),
                                           tangents_out,
                                           out.mutable_data_ptr(),
                                           tangents.size(0),
                                           tangents.size(1),
                                           tangents.size(2),
                                           output,
                                           scalar_kind(tangents)};
  if (runs_cuda_kernels(tangents)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(tangents);
      check_launch(op, launch_softmax_adjoint_tangent(params, scope.stream()));
    }
    return;
  }
  torch::stable::parallel_for(0, params.rows, rows_per_thread(params.k * params.cols), [&](int64_t begin, int64_t end) {
    kernels().curvature.softmax.adjoint_tangent(params, begin, end);
  });
}

void check_adjoints(const char* op, const Tensor& adjoints, const Tensor& tangents, bool whole_rows) {
  check_same(op, "adjoints", adjoints, "tangents", tangents);
  const bool fits = adjoints.dim() == (whole_rows ? 3 : 2) && adjoints.size(0) == tangents.size(0) &&
                    adjoints.size(1) == tangents.size(1) && (!whole_rows || adjoints.size(2) == tangents.size(2));
  STD_TORCH_CHECK(fits, op, ": adjoints must have the shape of tangents", whole_rows ? "" : ", without cols", ", got ",
                  shape_text(adjoints), " and ", shape_text(tangents));
}

Tensor softmax_adjoint_tangent(const Tensor& probability, const Tensor& centered, const Tensor& tangents,
                               const Tensor& adjoints, int64_t output) {
  constexpr const char* kOp = "softmax_adjoint_tangent";
  const SoftmaxOutput kind = output_of(kOp, output, SoftmaxOutput::kLogSumExp);
  check_tangents(kOp, tangents);
  check_shared(kOp, "probability", probability, tangents, true);
  check_shared(kOp, "centered", centered, tangents, kind == SoftmaxOutput::kSoftmax);
  check_adjoints(kOp, adjoints, tangents, kind != SoftmaxOutput::kLogSumExp);
  const Tensor dense = torch::stable::contiguous(tangents);
  Tensor out = torch::stable::new_empty(dense, tangents.sizes());
  run_adjoint_tangent(kOp, torch::stable::contiguous(probability), torch::stable::contiguous(centered), dense,
                      torch::stable::contiguous(adjoints), kind, nullptr, out);
  return out;
}

// Of softmax, in place: tangents become those of the probabilities, adjoints those of the scores.
void softmax_adjoint_tangent_(const Tensor& probability, const Tensor& centered, const Tensor& tangents,
                              const Tensor& adjoints) {
  constexpr const char* kOp = "softmax_adjoint_tangent_";
  check_tangents(kOp, tangents);
  check_in_place(kOp, "tangents", tangents);
  check_in_place(kOp, "adjoints", adjoints);
  check_shared(kOp, "probability", probability, tangents, true);
  check_shared(kOp, "centered", centered, tangents, true);
  check_adjoints(kOp, adjoints, tangents, true);
  run_adjoint_tangent(kOp, torch::stable::contiguous(probability), torch::stable::contiguous(centered), tangents,
                      adjoints, SoftmaxOutput::kSoftmax, tangents.mutable_data_ptr(), adjoints);
}

void attention_probabilities_(const Tensor& scores, int64_t causal) {
  constexpr const char* kOp = "attention_probabilities_";
  check_real(kOp, "scores", scores);
  check_in_place(kOp, "scores", scores);
  STD_TORCH_CHECK(scores.dim() == 3, kOp, ": scores must have shape [matrices, rows, cols], got ", shape_text(scores));
  if (scores.numel() == 0) return;
  const ProbabilitiesParams params{scores.mutable_data_ptr(), scores.size(0), scores.size(1), scores.size(2), causal,
                                   scalar_kind(scores)};
  if (runs_cuda_kernels(scores)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(scores);
      check_launch(kOp, launch_probabilities(params, scope.stream()));
    }
    return;
  }
  torch::stable::parallel_for(
      0, params.matrices * params.rows, rows_per_thread(params.cols),
      [&](int64_t begin, int64_t end) { kernels().curvature.softmax.probabilities(params, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("softmax_tangent(Tensor probability, Tensor tangents, int output) -> Tensor");
  m.def("softmax_tangent_(Tensor probability, Tensor(a!) tangents, int output) -> ()");
  m.def(
      "softmax_adjoint_tangent(Tensor probability, Tensor centered, Tensor tangents, Tensor adjoints, int output) -> "
      "Tensor");
  m.def(
      "softmax_adjoint_tangent_(Tensor probability, Tensor centered, Tensor(a!) tangents, Tensor(b!) adjoints) -> ()");
  m.def("attention_probabilities_(Tensor(a!) scores, int causal) -> ()");
}

LSFAST_IMPLEMENT(m) {
  m.impl("softmax_tangent", TORCH_BOX(&softmax_tangent));
  m.impl("softmax_tangent_", TORCH_BOX(&softmax_tangent_));
  m.impl("softmax_adjoint_tangent", TORCH_BOX(&softmax_adjoint_tangent));
  m.impl("softmax_adjoint_tangent_", TORCH_BOX(&softmax_adjoint_tangent_));
  m.impl("attention_probabilities_", TORCH_BOX(&attention_probabilities_));
}

}  // namespace
}  // namespace lsfast::curvature
