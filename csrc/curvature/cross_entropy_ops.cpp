// Operators of cross-entropy: schema, checks, allocation, device and threads. Kernels: cross_entropy_cpu.inl,
// cross_entropy.cu.
#include "curvature/cross_entropy.h"

#include <tuple>
#include <vector>

#include "platform/torch_ops.h"

namespace lsfast::curvature {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::contiguous;

constexpr const char* kSchema =
    "Tensor logits, Tensor? target, Tensor? probabilities, Tensor? class_weight, Tensor factor, float smoothing";

void check_dtype(const char* op, const char* name, const Tensor& tensor, ScalarType expected, const Tensor& logits) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, op, ": ", name, " must be torch.",
                  torch::headeronly::toString(expected), ", got torch.",
                  torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.is_cuda() == logits.is_cuda() && tensor.get_device_index() == logits.get_device_index(), op,
                  ": ", name, " must be on the device of logits");
}

void check_shape(const char* op, const char* name, const Tensor& tensor, const std::vector<int64_t>& expected) {
  bool equal = tensor.dim() == static_cast<int64_t>(expected.size());
  std::string text;
  for (size_t i = 0; i < expected.size(); ++i) {
    equal = equal && tensor.size(static_cast<int64_t>(i)) == expected[i];
    text += (i > 0 ? ", " : "") + std::to_string(expected[i]);
  }
  STD_TORCH_CHECK(equal, op, ": ", name, " must have shape [", text, "], got ", shape_text(tensor));
}

// The rows an operator was given, checked and dense; the tensors live as long as it does.
class Rows {
 public:
  Rows(const char* op, const Tensor& logits, const std::optional<Tensor>& target,
       const std::optional<Tensor>& probabilities, const std::optional<Tensor>& class_weight, const Tensor& factor,
       double smoothing)
      : op_(op), logits_(contiguous(logits)), factor_(contiguous(factor)) {
    STD_TORCH_CHECK(has_scalar_kind(logits), op, ": logits must be a floating-point tensor, got torch.",
                    torch::headeronly::toString(logits.scalar_type()));
    STD_TORCH_CHECK(logits.dim() == 3 && logits.size(1) > 0, op,
                    ": logits must have shape [outer, classes, inner], got ", shape_text(logits));
    STD_TORCH_CHECK(!target || !probabilities, op, ": give target or probabilities, got both");
    real_ = logits.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
    check(factor_, "factor", real_, per_row());
    if (target) {
      target_ = contiguous(*target);
      check(*target_, "target", ScalarType::Long, per_row());
    }
    if (probabilities) {
      probabilities_ = contiguous(*probabilities);
      check(*probabilities_, "probabilities", logits.scalar_type(), {logits.size(0), logits.size(1), logits.size(2)});
    }
    if (class_weight) {
      class_weight_ = contiguous(*class_weight);
      check(*class_weight_, "class_weight", real_, {logits.size(1)});
    }
    params = {logits_.const_data_ptr(),
              target_ ? static_cast<const int64_t*>(target_->const_data_ptr()) : nullptr,
              probabilities_ ? probabilities_->const_data_ptr() : nullptr,
              class_weight_ ? class_weight_->const_data_ptr() : nullptr,
              factor_.const_data_ptr(),
              smoothing,
              logits.size(0),
              logits.size(1),
              logits.size(2),
              scalar_kind(logits)};
  }

  void check(const Tensor& tensor, const char* name, ScalarType type, const std::vector<int64_t>& shape) const {
    check_dtype(op_, name, tensor, type, logits_);
    check_shape(op_, name, tensor, shape);
  }

  // A dense copy of real numbers, a row each, under `lead` axes in front.
  Tensor dense_rows(const char* name, const Tensor& tensor, const std::vector<int64_t>& shape) const {
    check(tensor, name, real_, shape);
    return contiguous(tensor);
  }

  std::vector<int64_t> per_row() const { return {logits_.size(0), logits_.size(2)}; }
  std::vector<int64_t> per_row(int64_t k) const { return {k, logits_.size(0), logits_.size(2)}; }
  std::vector<int64_t> whole(int64_t k) const { return {k, logits_.size(0), logits_.size(1), logits_.size(2)}; }
  const Tensor& logits() const { return logits_; }
  ScalarType real() const { return real_; }

  // Runs `work(scratch, begin, end)` over all items, k tangents each, on torch's threads.
  template <class Work>
  void for_items(int64_t k, const Work& work) const {
    const int64_t items = cross_entropy_items(params), scratch = cross_entropy_scratch(params);
    const int64_t grain = std::max<int64_t>(1, 8192 / (scratch * k));
    torch::stable::parallel_for(0, items, grain, [&](int64_t begin, int64_t end) {
      std::vector<double> memory(static_cast<size_t>(scratch));
      work(memory.data(), begin, end);
    });
  }

  CrossEntropyRows params{};

 private:
  const char* op_;
  Tensor logits_, factor_;
  std::optional<Tensor> target_, probabilities_, class_weight_;
  ScalarType real_ = ScalarType::Float;
};

template <class F>
void check_classes(const char* op, const CrossEntropyRows& rows) {
  const F* const factor = static_cast<const F*>(rows.factor);
  for (int64_t i = 0; rows.target != nullptr && i < rows.outer * rows.inner; ++i) {
    const bool is_a_class = rows.target[i] >= 0 && rows.target[i] < rows.classes;
    STD_TORCH_CHECK(is_a_class || factor[i] == F(0) || factor[i] != factor[i], op, ": target must lie in 0..",
                    rows.classes - 1, ", got ", rows.target[i]);
  }
}

std::tuple<Tensor, Tensor, Tensor> cross_entropy_forward(const Tensor& logits, const std::optional<Tensor>& target,
                                                         const std::optional<Tensor>& probabilities,
                                                         const std::optional<Tensor>& class_weight,
                                                         const Tensor& factor, double smoothing) {
  constexpr const char* op = "cross_entropy_forward";
  const Rows rows(op, logits, target, probabilities, class_weight, factor, smoothing);
  Tensor log_sum = torch::stable::new_empty(factor, rows.per_row());
  Tensor mass = torch::stable::new_empty(factor, rows.per_row());
  Tensor loss = torch::stable::new_empty(factor, rows.per_row());
  if (loss.numel() == 0) return {log_sum, mass, loss};
  const CrossEntropyForwardParams params{rows.params, log_sum.mutable_data_ptr(), mass.mutable_data_ptr(),
                                         loss.mutable_data_ptr()};
  if (runs_cuda_kernels(logits)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(logits);
      check_launch(op, launch_cross_entropy_forward(params, scope.stream()));
    }
  } else {
    LSFAST_DISPATCH_REAL(params.rows.kind, check_classes<scalar_t>(op, params.rows));
    rows.for_items(1, [&](void* scratch, int64_t begin, int64_t end) {
      kernels().curvature.cross_entropy.forward(params, scratch, begin, end);
    });
  }
  return {log_sum, mass, loss};
}

Tensor cross_entropy_tangent(const Tensor& logits, const std::optional<Tensor>& target,
                             const std::optional<Tensor>& probabilities, const std::optional<Tensor>& class_weight,
                             const Tensor& factor, double smoothing, const Tensor& log_sum, const Tensor& mass,
                             const Tensor& tangents) {
  constexpr const char* op = "cross_entropy_tangent";
  const Rows rows(op, logits, target, probabilities, class_weight, factor, smoothing);
  const int64_t k = tangents.dim() > 0 ? tangents.size(0) : 0;
  rows.check(tangents, "tangents", logits.scalar_type(), rows.whole(k));
  const Tensor dense_sum = rows.dense_rows("log_sum", log_sum, rows.per_row());
  const Tensor dense_mass = rows.dense_rows("mass", mass, rows.per_row());
  const Tensor dense_tangents = contiguous(tangents);
  Tensor out = torch::stable::new_empty(factor, rows.per_row(k));
  if (out.numel() == 0) return out;
  const CrossEntropyTangentParams params{rows.params,
                                         dense_sum.const_data_ptr(),
                                         dense_mass.const_data_ptr(),
                                         dense_tangents.const_data_ptr(),
                                         out.mutable_data_ptr(),
                                         k};
  if (runs_cuda_kernels(logits)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(logits);
      check_launch(op, launch_cross_entropy_tangent(params, scope.stream()));
    }
  } else {
    rows.for_items(k, [&](void* scratch, int64_t begin, int64_t end) {
      kernels().curvature.cross_entropy.tangent(params, scratch, begin, end);
    });
  }
  return out;
}

void run_adjoint(const char* op, const Rows& rows, const Tensor& log_sum, const Tensor& mass,
                 const std::optional<Tensor>& adjoints, const std::optional<Tensor>& curvature, const Tensor* tangents,
                 Tensor& out) {
  if (out.numel() == 0) return;
  const int64_t k = out.size(0);
  const Tensor dense_sum = rows.dense_rows("log_sum", log_sum, rows.per_row());
  const Tensor dense_mass = rows.dense_rows("mass", mass, rows.per_row());
  std::optional<Tensor> dense_adjoints, dense_curvature;
  if (adjoints) dense_adjoints = rows.dense_rows("adjoints", *adjoints, rows.per_row(k));
  if (curvature) dense_curvature = rows.dense_rows("curvature", *curvature, rows.per_row());
  const CrossEntropyAdjointParams params{rows.params,
                                         dense_sum.const_data_ptr(),
                                         dense_mass.const_data_ptr(),
                                         dense_adjoints ? dense_adjoints->const_data_ptr() : nullptr,
                                         dense_curvature ? dense_curvature->const_data_ptr() : nullptr,
                                         tangents != nullptr ? tangents->const_data_ptr() : nullptr,
                                         out.mutable_data_ptr(),
                                         k};
  if (runs_cuda_kernels(out)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(out);
      check_launch(op, launch_cross_entropy_adjoint(params, scope.stream()));
    }
  } else {
    rows.for_items(k, [&](void* scratch, int64_t begin, int64_t end) {
      kernels().curvature.cross_entropy.adjoint(params, scratch, begin, end);
    });
  }
}

Tensor cross_entropy_adjoint(const Tensor& logits, const std::optional<Tensor>& target,
                             const std::optional<Tensor>& probabilities, const std::optional<Tensor>& class_weight,
                             const Tensor& factor, double smoothing, const Tensor& log_sum, const Tensor& mass,
                             const std::optional<Tensor>& adjoints, const std::optional<Tensor>& curvature,
                             const std::optional<Tensor>& tangents) {
  constexpr const char* op = "cross_entropy_adjoint";
  const Rows rows(op, logits, target, probabilities, class_weight, factor, smoothing);
  STD_TORCH_CHECK(adjoints || tangents, op, ": adjoints or tangents must be given, got neither");
  STD_TORCH_CHECK(curvature.has_value() == tangents.has_value(), op, ": curvature must be given with tangents");
  const Tensor& leading = tangents ? *tangents : *adjoints;
  const int64_t k = leading.dim() > 0 ? leading.size(0) : 0;
  std::optional<Tensor> dense_tangents;
  if (tangents) {
    rows.check(*tangents, "tangents", logits.scalar_type(), rows.whole(k));
    dense_tangents = contiguous(*tangents);
  }
  Tensor out = torch::stable::new_empty(logits, rows.whole(k));
  run_adjoint(op, rows, log_sum, mass, adjoints, curvature, dense_tangents ? &*dense_tangents : nullptr, out);
  return out;
}

void cross_entropy_adjoint_(const Tensor& logits, const std::optional<Tensor>& target,
                            const std::optional<Tensor>& probabilities, const std::optional<Tensor>& class_weight,
                            const Tensor& factor, double smoothing, const Tensor& log_sum, const Tensor& mass,
                            const std::optional<Tensor>& adjoints, const std::optional<Tensor>& curvature,
                            Tensor tangents) {
  constexpr const char* op = "cross_entropy_adjoint_";
  const Rows rows(op, logits, target, probabilities, class_weight, factor, smoothing);
  STD_TORCH_CHECK(adjoints || curvature, op, ": adjoints or curvature must be given, got neither");
  const int64_t k = tangents.dim() > 0 ? tangents.size(0) : 0;
  rows.check(tangents, "tangents", logits.scalar_type(), rows.whole(k));
  STD_TORCH_CHECK(tangents.is_contiguous(), op, ": tangents must be contiguous");
  run_adjoint(op, rows, log_sum, mass, adjoints, curvature, curvature ? &tangents : nullptr, tangents);
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  const std::string rows = kSchema;
  m.def(("cross_entropy_forward(" + rows + ") -> (Tensor, Tensor, Tensor)").c_str());
  m.def(("cross_entropy_tangent(" + rows + ", Tensor log_sum, Tensor mass, Tensor tangents) -> Tensor").c_str());
  m.def(("cross_entropy_adjoint(" + rows +
         ", Tensor log_sum, Tensor mass, Tensor? adjoints, Tensor? curvature, Tensor? tangents) -> Tensor")
            .c_str());
  m.def(("cross_entropy_adjoint_(" + rows +
         ", Tensor log_sum, Tensor mass, Tensor? adjoints, Tensor? curvature, Tensor(a!) tangents) -> ()")
            .c_str());
}

LSFAST_IMPLEMENT(m) {
  m.impl("cross_entropy_forward", TORCH_BOX(&cross_entropy_forward));
  m.impl("cross_entropy_tangent", TORCH_BOX(&cross_entropy_tangent));
  m.impl("cross_entropy_adjoint", TORCH_BOX(&cross_entropy_adjoint));
  m.impl("cross_entropy_adjoint_", TORCH_BOX(&cross_entropy_adjoint_));
}

}  // namespace
}  // namespace lsfast::curvature
