// The operator that forms points around the parameters and quantizes them in one go: schema, checks, allocation, device
// and threads. Kernels: cpu.inl, points.cu.
#include <algorithm>
#include <vector>

#include "platform/check_points.h"
#include "quantization/scheme_numbers.h"

namespace lsfast::quantization {
namespace {

using torch::headeronly::ScalarType;

constexpr const char* kOp = "quantized_points";

// The CPU's work is a unit of a few points at a time, so that small weights of many points have enough of it for all
// threads: theta and the directions are in the cache for all but the first.
constexpr int64_t kPointsAtOnce = 8;

QuantizeParams few_points(const QuantizeParams& params, int64_t first, int64_t element_size) {
  QuantizeParams few = params;
  few.tensors = std::min(kPointsAtOnce, params.tensors - first);
  few.points.coordinates = static_cast<const char*>(params.points.coordinates) + first * params.points.d * element_size;
  few.y = static_cast<char*>(params.y) + first * params.points.n * element_size;
  if (params.amax_bits != nullptr) few.amax_bits = params.amax_bits + first;
  return few;
}

// Calls function(few points, first of them, unit) for every unit of every few points.
template <class Function>
void for_units(const QuantizeParams& params, int64_t element_size, const Function& function) {
  const int64_t groups = (params.tensors + kPointsAtOnce - 1) / kPointsAtOnce;
  const int64_t grain = std::max<int64_t>(1, 4 / params.tensors);
  torch::stable::parallel_for(0, kernels().quantization.units(params) * groups, grain, [&](int64_t begin, int64_t end) {
    for (int64_t id = begin; id < end; ++id) {
      const int64_t first = id % groups * kPointsAtOnce;
      function(few_points(params, first, element_size), first, id / groups);
    }
  });
}

// The largest magnitude of each point, as float32 bits, on the device of theta.
Tensor amax_of(const QuantizeParams& params, const Tensor& theta) {
  Tensor result = torch::stable::new_zeros(theta, {params.tensors}, ScalarType::Float);
  uint32_t* const largest = static_cast<uint32_t*>(result.mutable_data_ptr());
  if (runs_cuda_kernels(theta)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(theta);
      check_launch(kOp, launch_points_amax(params, largest, scope.stream()));
    }
    return result;
  }
  const auto& cpu = kernels().quantization;
  const int64_t units = cpu.units(params);
  std::vector<uint32_t> partial(static_cast<size_t>(units * params.tensors));
  for_units(params, theta.element_size(), [&](const QuantizeParams& few, int64_t first, int64_t unit) {
    cpu.points_amax(few, partial.data() + first * units, unit, unit + 1);
  });
  for (int64_t i = 0; i < units * params.tensors; ++i) {
    const int64_t first = i / units / kPointsAtOnce * kPointsAtOnce;
    const int64_t few = std::min(kPointsAtOnce, params.tensors - first);
    uint32_t& of = largest[first + (i - first * units) % few];
    of = std::max(of, partial[static_cast<size_t>(i)]);
  }
  return result;
}

// out[i] = point i, seen as rows of `length`, quantized along them as a tensor of its own.
void quantized_points_out(const Tensor& theta, const Tensor& directions, const Tensor& coordinates, const Tensor& out,
                          Numbers scheme, int64_t length, int64_t seed, int64_t stream) {
  check_points(kOp, theta, directions, coordinates);
  check_points_out(kOp, theta, coordinates, out);
  const int64_t n = theta.size(0);
  STD_TORCH_CHECK(length >= 1 && n % length == 0, kOp, ": length must divide the ", n, " parameters, got ", length);
  QuantizeParams params{};
  params.scheme = scheme_of(kOp, scheme);
  check_block(kOp, scheme);
  params.tensors = coordinates.size(0);
  const bool square = scheme[kBlockHeight] > 1;
  params.outer = square ? 1 : n / length;
  params.height = square ? n / length : 1;
  params.length = length;
  params.inner = 1;
  set_block(kOp, params, scheme);
  params.seed = static_cast<uint64_t>(seed);
  params.stream = static_cast<uint64_t>(stream);
  params.kind = scalar_kind(theta);
  if (out.numel() == 0) return;

  const Tensor dense[] = {torch::stable::contiguous(theta), torch::stable::contiguous(directions),
                          torch::stable::contiguous(coordinates)};
  params.points = point_set(dense[0], dense[1], dense[2]);
  params.y = out.mutable_data_ptr();
  std::optional<Tensor> largest;
  if (params.scheme.needs_tensor_amax()) {
    largest = amax_of(params, theta);
    params.amax_bits = static_cast<const uint32_t*>(largest->const_data_ptr());
  }
  if (runs_cuda_kernels(theta)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(theta);
      check_launch(kOp, launch_quantize_points(params, scope.stream()));
    }
    return;
  }
  for_units(params, theta.element_size(), [&](const QuantizeParams& few, int64_t, int64_t unit) {
    kernels().quantization.quantize_points(few, unit, unit + 1);
  });
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def(
      "quantized_points_out(Tensor theta, Tensor directions, Tensor coordinates, Tensor(a!) out, int[] scheme, "
      "int length, int seed, int stream) -> ()");
}

LSFAST_IMPLEMENT(m) { m.impl("quantized_points_out", TORCH_BOX(&quantized_points_out)); }

}  // namespace
}  // namespace lsfast::quantization
