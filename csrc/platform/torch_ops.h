// What every room's ops.cpp shares: the library it registers in, the scalar kind of a tensor, where an operator runs,
// and the threads it runs on. One of the few files that know torch, through its stable interface only.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <optional>
#include <string>

#include "platform/dispatch.h"

// The emulated build (tests/emulation) registers the CUDA side of the same files for CPU tensors, in a library of its
// own.
#if defined(LSFAST_EMULATION)
#define LSFAST_LIBRARY lsfast_emulated
#else
#define LSFAST_LIBRARY lsfast
#endif

namespace lsfast {

using torch::stable::Tensor;

#if defined(LSFAST_EMULATION) || defined(LSFAST_WITH_CUDA)
constexpr bool kHasCudaKernels = true;
#else
constexpr bool kHasCudaKernels = false;
#endif

inline bool runs_cuda_kernels([[maybe_unused]] const Tensor& tensor) {
#if defined(LSFAST_EMULATION)
  return true;
#elif defined(LSFAST_WITH_CUDA)
  return tensor.is_cuda();
#else
  return false;
#endif
}

// Makes a tensor's device current while it lives, and gives the stream torch is using there.
class CudaScope {
 public:
#if defined(LSFAST_WITH_CUDA) && !defined(LSFAST_EMULATION)
  explicit CudaScope(const Tensor& tensor) : guard_(tensor.get_device_index()) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream_));
  }
#else
  explicit CudaScope(const Tensor&) {}
#endif
  Stream stream() const { return stream_; }

 private:
#if defined(LSFAST_WITH_CUDA) && !defined(LSFAST_EMULATION)
  torch::stable::accelerator::DeviceGuard guard_;
#endif
  Stream stream_ = nullptr;
};

inline void check_launch(const char* op, const char* error) {
  STD_TORCH_CHECK(error == nullptr, op, ": CUDA launch failed: ", error == nullptr ? "" : error);
}

inline bool has_scalar_kind(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::BFloat16 ||
         type == ScalarType::Half;
}

inline ScalarKind scalar_kind(const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  switch (tensor.scalar_type()) {
    case ScalarType::Double:
      return ScalarKind::kFloat64;
    case ScalarType::BFloat16:
      return ScalarKind::kBFloat16;
    case ScalarType::Half:
      return ScalarKind::kFloat16;
    default:
      return ScalarKind::kFloat32;
  }
}

inline void check_floating(const char* op, const char* name, const Tensor& tensor) {
  STD_TORCH_CHECK(has_scalar_kind(tensor), op, ": ", name, " must be float32, float64, bfloat16 or float16, got torch.",
                  torch::headeronly::toString(tensor.scalar_type()));
}

// float32 or float64: what the arithmetic of the spectrum and landscape rooms is done in.
inline void check_real(const char* op, const char* name, const Tensor& tensor) {
  using torch::headeronly::ScalarType;
  const ScalarType type = tensor.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double, op, ": ", name,
                  " must be float32 or float64, got torch.", torch::headeronly::toString(type));
}

inline void check_same(const char* op, const char* name, const Tensor& tensor, const char* other_name,
                       const Tensor& other) {
  STD_TORCH_CHECK(tensor.scalar_type() == other.scalar_type(), op, ": ", name, " must have the dtype of ", other_name,
                  ", got torch.", torch::headeronly::toString(tensor.scalar_type()), " and torch.",
                  torch::headeronly::toString(other.scalar_type()));
  STD_TORCH_CHECK(tensor.is_cuda() == other.is_cuda() && tensor.get_device_index() == other.get_device_index(), op,
                  ": ", name, " must be on the device of ", other_name);
}

inline std::string shape_text(const Tensor& tensor) {
  std::string text = "[";
  for (int64_t i = 0; i < tensor.dim(); ++i) text += (i > 0 ? ", " : "") + std::to_string(tensor.size(i));
  return text + "]";
}

inline void check_dense(const char* op, const char* name, const Tensor& tensor, int64_t dimensions) {
  STD_TORCH_CHECK(tensor.dim() == dimensions && tensor.is_contiguous(), op, ": ", name, " must be contiguous with ",
                  dimensions, " dimensions, got shape ", shape_text(tensor));
}

// A contiguous [rows, columns] tensor of `type` on the device of `like`.
inline void check_table(const char* op, const char* name, const Tensor& tensor, torch::headeronly::ScalarType type,
                        int64_t rows, int64_t columns, const Tensor& like) {
  check_dense(op, name, tensor, 2);
  STD_TORCH_CHECK(tensor.scalar_type() == type, op, ": ", name, " must be torch.", torch::headeronly::toString(type),
                  ", got torch.", torch::headeronly::toString(tensor.scalar_type()));
  STD_TORCH_CHECK(tensor.size(0) == rows && tensor.size(1) == columns, op, ": ", name, " must have shape [", rows, ", ",
                  columns, "], got ", shape_text(tensor));
  STD_TORCH_CHECK(tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(), op, ": ",
                  name, " is on another device");
}

// Every operator below runs the same function on both devices: it chooses by its tensors.
#if defined(LSFAST_WITH_CUDA) && !defined(LSFAST_EMULATION)
#define LSFAST_IMPLEMENT(m)                                                               \
  static void LSFAST_implement(torch::stable::detail::StableLibrary&);                    \
  STABLE_TORCH_LIBRARY_IMPL(LSFAST_LIBRARY, CPU, library) { LSFAST_implement(library); }  \
  STABLE_TORCH_LIBRARY_IMPL(LSFAST_LIBRARY, CUDA, library) { LSFAST_implement(library); } \
  static void LSFAST_implement(torch::stable::detail::StableLibrary& m)
#else
#define LSFAST_IMPLEMENT(m)                                                              \
  static void LSFAST_implement(torch::stable::detail::StableLibrary&);                   \
  STABLE_TORCH_LIBRARY_IMPL(LSFAST_LIBRARY, CPU, library) { LSFAST_implement(library); } \
  static void LSFAST_implement(torch::stable::detail::StableLibrary& m)
#endif

}  // namespace lsfast
