// Operators of the quantization room: schema, checks, allocation, device and threads. Kernels: cpu.inl, cuda.cu.
#include "quantization/quantization.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "quantization/scheme_numbers.h"

namespace lsfast::quantization {
namespace {

using torch::headeronly::ScalarType;

// Sizes and blocks: x as [tensors, outer, height, length, inner] around `axis`.
void set_shape(const char* op, QuantizeParams& params, const Tensor& x, const Numbers& numbers, int64_t axis,
               bool batched) {
  const int64_t first = batched ? 1 : 0;
  STD_TORCH_CHECK(first <= axis && axis < x.dim(), op, ": axis must lie in ", first, "..", x.dim() - 1, ", got ", axis);
  check_block(op, numbers);
  const int64_t side = numbers[kBlockHeight];
  STD_TORCH_CHECK(side == 1 || axis > first, op, ": a block of two dimensions needs an axis before axis ", axis);
  params.tensors = batched ? x.size(0) : 1;
  params.outer = params.height = params.inner = 1;
  params.length = x.size(axis);
  for (int64_t i = first; i < x.dim(); ++i) {
    if (side > 1 && i == axis - 1) {
      params.height = x.size(i);
    } else if (i < axis) {
      params.outer *= x.size(i);
    } else if (i > axis) {
      params.inner *= x.size(i);
    }
  }
  set_block(op, params, numbers);
}

// The largest magnitude of each tensor, as float32 bits, on the device of x: `given`, or found.
Tensor amax_of(const char* op, const QuantizeParams& params, const Tensor& x, const std::optional<Tensor>& given) {
  if (given.has_value()) {
    STD_TORCH_CHECK(given->numel() == 1 && given->scalar_type() == ScalarType::Float, op,
                    ": amax must be one float32 number, got shape ", shape_text(*given));
    STD_TORCH_CHECK(given->is_cuda() == x.is_cuda() && params.tensors == 1, op, ": amax must be on the device of x");
    return *given;
  }
  const bool transformed = params.scheme.hadamard.size > 0;
  AmaxParams amax{};
  amax.x = params.x;
  amax.tensors = params.tensors;
  amax.per_tensor = params.per_tensor();
  amax.finite_only = params.finite_amax();
  amax.kind = params.kind;
  Tensor result = torch::stable::new_zeros(x, {params.tensors}, ScalarType::Float);
  uint32_t* const largest = static_cast<uint32_t*>(result.mutable_data_ptr());
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      amax.amax_bits = largest;
      check_launch(op, transformed ? launch_transformed_amax(params, largest, scope.stream())
                                   : launch_amax(amax, scope.stream()));
    }
    return result;
  }
  const auto& cpu = kernels().quantization;
  const int64_t units = transformed ? cpu.units(params) : amax.chunks();
  std::vector<uint32_t> partial(static_cast<size_t>(params.tensors * units));
  if (transformed) {
    for (int64_t tensor = 0; tensor < params.tensors; ++tensor) {
      torch::stable::parallel_for(0, units, 4, [&](int64_t begin, int64_t end) {
        cpu.transformed_amax(params, tensor, partial.data() + tensor * units, begin, end);
      });
    }
  } else {
    amax.amax_bits = partial.data();
    torch::stable::parallel_for(0, params.tensors * units, 4,
                                [&](int64_t begin, int64_t end) { cpu.amax(amax, begin, end); });
  }
  for (int64_t i = 0; i < params.tensors * units; ++i) largest[i / units] = std::max(largest[i / units], partial[i]);
  return result;
}

void run(const char* op, const QuantizeParams& params, const Tensor& x) {
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      QuantizeParams with_scratch = params;
      std::optional<Tensor> scratch;
      if (const int64_t sums = partial_sums(params)) {
        scratch = torch::stable::new_empty(x, {sums}, ScalarType::Double);
        with_scratch.partial = static_cast<double*>(scratch->mutable_data_ptr());
      }
      check_launch(op, launch_quantize(with_scratch, scope.stream()));
    }
    return;
  }
  const auto& cpu = kernels().quantization;
  const int64_t units = cpu.units(params);
  const bool summed = params.granularity == Granularity::kTensor;
  std::vector<double> partial(summed ? static_cast<size_t>(units * kStatistics) : 0);
  for (int64_t tensor = 0; tensor < params.tensors; ++tensor) {
    torch::stable::parallel_for(
        0, units, 4, [&](int64_t begin, int64_t end) { cpu.quantize(params, tensor, partial.data(), begin, end); });
  }
  for (int64_t i = 0; summed && i < units; ++i) {
    for (int s = 0; s < kStatistics; ++s) {
      double& sum = params.statistics[s];
      const double part = partial[static_cast<size_t>(i * kStatistics + s)];
      sum = s == kLargest ? std::max(sum, part) : sum + part;
    }
  }
}

// x [tensors, ...] if batched, else one tensor of any shape. statistics: zeros, [rows, 5] float64; granularity as in
// quantization.h says what a row is. amax: a largest magnitude to use in place of x's own.
void fake_quantize_out(const Tensor& x, std::optional<Tensor> amax, const Tensor& out, std::optional<Tensor> statistics,
                       int64_t granularity, Numbers scheme, int64_t axis, bool batched, bool derivative, int64_t seed,
                       int64_t stream) {
  constexpr const char* kOp = "fake_quantize";
  check_floating(kOp, "x", x);
  check_same(kOp, "out", out, "x", x);
  STD_TORCH_CHECK(x.numel() == out.numel(), kOp, ": out must have the shape of x, got ", shape_text(out), " and ",
                  shape_text(x));
  STD_TORCH_CHECK(out.is_contiguous(), kOp, ": out must be contiguous, got shape ", shape_text(out));
  check_between(kOp, "granularity", granularity, 0, 3);
  QuantizeParams params{};
  params.scheme = scheme_of(kOp, scheme);
  set_shape(kOp, params, x, scheme, axis, batched);
  if (x.numel() == 0) return;

  const Tensor dense = torch::stable::contiguous(x);
  params.x = dense.const_data_ptr();
  params.y = out.mutable_data_ptr();
  params.granularity = static_cast<Granularity>(granularity);
  params.derivative = derivative;
  params.seed = static_cast<uint64_t>(seed);
  params.stream = static_cast<uint64_t>(stream);
  params.kind = scalar_kind(x);
  if (granularity != 0) {
    STD_TORCH_CHECK(granularity != 3 || scheme[kBlockLength] == -1 || scheme[kBlockLength] > 0, kOp,
                    ": statistics of blocks need a scheme with blocks");
    const int64_t lines = params.lines() * params.inner;
    const int64_t blocks = params.outer * params.height_blocks() * params.length_blocks() * params.inner;
    const int64_t rows = granularity == 1 ? 1 : (granularity == 2 ? lines : blocks);
    STD_TORCH_CHECK(statistics.has_value() && statistics->scalar_type() == ScalarType::Double &&
                        statistics->is_contiguous() && statistics->numel() == rows * kStatistics && !batched,
                    kOp, ": statistics must be a contiguous float64 tensor of ", rows, " x ",
                    static_cast<int>(kStatistics), " of one tensor");
    params.statistics = static_cast<double*>(statistics->mutable_data_ptr());
  }
  std::optional<Tensor> largest;
  if (params.scheme.needs_tensor_amax()) {
    largest = amax_of(kOp, params, dense, amax);
    params.amax_bits = static_cast<const uint32_t*>(largest->const_data_ptr());
  }
  run(kOp, params, dense);
}

Tensor fake_quantize(const Tensor& x, std::optional<Tensor> amax, Numbers scheme, int64_t axis, bool batched,
                     bool derivative, int64_t seed, int64_t stream) {
  check_floating("fake_quantize", "x", x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  fake_quantize_out(x, amax, out, std::nullopt, 0, scheme, axis, batched, derivative, seed, stream);
  return out;
}

int64_t packed_bytes(int64_t length, const QuantScheme& scheme) { return (length * scheme.stored_bits() + 7) / 8; }

// x with its block axis last. codes [..., bytes of a line], scales [..., blocks] (one for a tensor, none unscaled),
// amax [1] or [0].
std::tuple<Tensor, Tensor, Tensor> quantize(const Tensor& x, std::optional<Tensor> amax, Numbers scheme,
                                            int64_t word_inner, int64_t seed, int64_t stream) {
  constexpr const char* kOp = "quantize";
  check_floating(kOp, "x", x);
  STD_TORCH_CHECK(x.numel() > 0 && x.is_contiguous(), kOp, ": x must be contiguous and not empty, got shape ",
                  shape_text(x));
  QuantizeParams params{};
  params.scheme = scheme_of(kOp, scheme);
  set_shape(kOp, params, x, scheme, x.dim() - 1, false);
  STD_TORCH_CHECK(word_inner >= 1 && params.lines() % word_inner == 0, kOp,
                  ": word_inner must divide the number of lines, got ", word_inner);
  params.word_inner = word_inner;
  params.line_bytes = packed_bytes(params.length, params.scheme);
  params.seed = static_cast<uint64_t>(seed);
  params.stream = static_cast<uint64_t>(stream);
  params.kind = scalar_kind(x);
  params.x = x.const_data_ptr();

  Numbers shape;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) shape.push_back(x.size(i));
  Numbers scale_shape = shape;
  shape.push_back(params.line_bytes);
  const ScaleRule rule = params.scheme.rule;
  if (rule == ScaleRule::kNone || params.scheme.per_tensor) {
    scale_shape = {rule == ScaleRule::kNone ? 0 : 1};
  } else {
    if (params.block_height > 1) scale_shape.back() = params.height_blocks();
    scale_shape.push_back(params.length_blocks());
  }
  const bool bytes = scale_is_byte(rule);
  Tensor codes = torch::stable::new_empty(x, shape, ScalarType::Byte);
  Tensor scales = torch::stable::new_empty(x, scale_shape, bytes ? ScalarType::Byte : ScalarType::Float);
  Tensor largest = params.scheme.needs_tensor_amax() ? amax_of(kOp, params, x, amax)
                                                     : torch::stable::new_empty(x, {0}, ScalarType::Float);
  if (amax.has_value()) largest = torch::stable::clone(largest);  // what an operator returns shares no memory with x
  params.codes = static_cast<uint8_t*>(codes.mutable_data_ptr());
  params.scales = scales.numel() == 0 ? nullptr : scales.mutable_data_ptr();
  params.amax_bits =
      params.scheme.needs_tensor_amax() ? static_cast<const uint32_t*>(largest.const_data_ptr()) : nullptr;
  run(kOp, params, x);
  return {codes, scales, largest};
}

void dequantize_out(const Tensor& codes, const Tensor& scales, const Tensor& amax, const Tensor& out, Numbers scheme) {
  constexpr const char* kOp = "dequantize";
  check_floating(kOp, "out", out);
  QuantizeParams shape{};
  shape.scheme = scheme_of(kOp, scheme);
  shape.scheme.hadamard.size = 0;  // what was transformed stays so
  STD_TORCH_CHECK(out.dim() > 0 && out.is_contiguous(), kOp, ": out must be contiguous, got shape ", shape_text(out));
  set_shape(kOp, shape, out, scheme, out.dim() - 1, false);
  DequantizeParams params{};
  params.outer = shape.outer;
  params.height = shape.height;
  params.length = shape.length;
  params.block_height = shape.block_height;
  params.block_length = shape.block_length;
  params.scheme = shape.scheme;
  params.line_bytes = packed_bytes(params.length, params.scheme);
  params.kind = scalar_kind(out);
  const ScaleRule rule = params.scheme.rule;
  const bool bytes = scale_is_byte(rule);
  const int64_t blocks = shape.outer * shape.height_blocks() * shape.length_blocks();
  const int64_t expected = rule == ScaleRule::kNone ? 0 : (params.scheme.per_tensor ? 1 : blocks);
  STD_TORCH_CHECK(codes.scalar_type() == ScalarType::Byte && codes.is_contiguous() &&
                      codes.numel() == shape.lines() * params.line_bytes,
                  kOp, ": codes must be contiguous uint8 with ", params.line_bytes, " bytes a line, got shape ",
                  shape_text(codes));
  STD_TORCH_CHECK(scales.scalar_type() == (bytes ? ScalarType::Byte : ScalarType::Float) && scales.is_contiguous() &&
                      scales.numel() == expected,
                  kOp, ": scales must be ", expected, bytes ? " contiguous uint8" : " contiguous float32",
                  " numbers, got shape ", shape_text(scales));
  STD_TORCH_CHECK(!params.scheme.tensor_scale || (amax.numel() == 1 && amax.scalar_type() == ScalarType::Float), kOp,
                  ": amax must be one float32 number, got shape ", shape_text(amax));
  STD_TORCH_CHECK(codes.is_cuda() == out.is_cuda() && scales.is_cuda() == out.is_cuda(), kOp,
                  ": codes, scales and out must be on one device");
  if (out.numel() == 0) return;
  params.codes = static_cast<const uint8_t*>(codes.const_data_ptr());
  params.scales = scales.const_data_ptr();
  params.amax_bits = params.scheme.tensor_scale ? static_cast<const uint32_t*>(amax.const_data_ptr()) : nullptr;
  params.y = out.mutable_data_ptr();
  if (runs_cuda_kernels(out)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(out);
      check_launch(kOp, launch_dequantize(params, scope.stream()));
    }
    return;
  }
  const int64_t grain = std::max<int64_t>(1, 65536 / params.length);
  torch::stable::parallel_for(0, shape.lines(), grain, [&](int64_t begin, int64_t end) {
    kernels().quantization.dequantize(params, begin, end);
  });
}

Tensor hadamard(const Tensor& x, int64_t axis, int64_t size, Numbers signs, bool inverse) {
  constexpr const char* kOp = "hadamard";
  check_floating(kOp, "x", x);
  STD_TORCH_CHECK(0 <= axis && axis < x.dim(), kOp, ": axis must lie in 0..", x.dim() - 1, ", got ", axis);
  STD_TORCH_CHECK(size == 16 || size == 32 || size == 64 || size == 128, kOp, ": size must be 16, 32, 64 or 128, got ",
                  size);
  STD_TORCH_CHECK(x.size(axis) % size == 0, kOp, ": size must divide the axis, got ", size, " and ", x.size(axis));
  STD_TORCH_CHECK(signs.size() == 4, kOp, ": signs must be 4 words, got ", signs.size());
  Tensor out = torch::stable::new_empty(x, x.sizes());
  if (x.numel() == 0) return out;
  const Tensor dense = torch::stable::contiguous(x);
  HadamardParams params{};
  params.x = dense.const_data_ptr();
  params.y = out.mutable_data_ptr();
  params.outer = params.inner = 1;
  params.length = x.size(axis);
  for (int64_t i = 0; i < x.dim(); ++i) {
    if (i != axis) (i < axis ? params.outer : params.inner) *= x.size(i);
  }
  params.transform.size = static_cast<int32_t>(size);
  for (size_t i = 0; i < 4; ++i) params.transform.signs[i] = static_cast<uint32_t>(signs[i]);
  params.inverse = inverse;
  params.kind = scalar_kind(x);
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      check_launch(kOp, launch_hadamard(params, scope.stream()));
    }
    return out;
  }
  const int64_t grain = std::max<int64_t>(1, 65536 / (size * params.inner));
  torch::stable::parallel_for(0, params.outer * params.length / size, grain,
                              [&](int64_t begin, int64_t end) { kernels().quantization.hadamard(params, begin, end); });
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def(
      "fake_quantize(Tensor x, Tensor? amax, int[] scheme, int axis, bool batched, bool derivative, int seed, "
      "int stream) -> Tensor");
  m.def(
      "fake_quantize_out(Tensor x, Tensor? amax, Tensor(a!) out, Tensor(b!)? statistics, int granularity, "
      "int[] scheme, int axis, bool batched, bool derivative, int seed, int stream) -> ()");
  m.def(
      "quantize(Tensor x, Tensor? amax, int[] scheme, int word_inner, int seed, int stream) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("dequantize_out(Tensor codes, Tensor scales, Tensor amax, Tensor(a!) out, int[] scheme) -> ()");
  m.def("hadamard(Tensor x, int axis, int size, int[] signs, bool inverse) -> Tensor");
}

LSFAST_IMPLEMENT(m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize));
  m.impl("fake_quantize_out", TORCH_BOX(&fake_quantize_out));
  m.impl("quantize", TORCH_BOX(&quantize));
  m.impl("dequantize_out", TORCH_BOX(&dequantize_out));
  m.impl("hadamard", TORCH_BOX(&hadamard));
}

}  // namespace
}  // namespace lsfast::quantization
