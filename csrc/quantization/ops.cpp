// Operators of the quantization room: schema, checks, allocation, device and threads. Kernels: cpu.inl, cuda.cu.
#include "quantization/quantization.h"

#include <algorithm>
#include <vector>

#include "platform/torch_ops.h"

namespace lsfast::quantization {
namespace {

// The largest magnitude of each of `tensors` equal parts of x, as float32 bits, on the device of x.
Tensor amax_bits(const Tensor& x, int64_t tensors, bool finite_only) {
  AmaxParams params{x.const_data_ptr(), nullptr, tensors, x.numel() / tensors, finite_only, scalar_kind(x)};
  Tensor result = torch::stable::new_zeros(x, {tensors}, torch::headeronly::ScalarType::Int);
  params.amax_bits = static_cast<uint32_t*>(result.mutable_data_ptr());
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      check_launch("fake_quantize", launch_amax(params, scope.stream()));
    }
    return result;
  }
  uint32_t* const largest = params.amax_bits;
  const int64_t chunks = params.chunks();
  std::vector<uint32_t> partial(static_cast<size_t>(tensors * chunks));
  params.amax_bits = partial.data();
  torch::stable::parallel_for(0, tensors * chunks, 4,
                              [&](int64_t begin, int64_t end) { kernels().quantization.amax(params, begin, end); });
  for (int64_t i = 0; i < tensors * chunks; ++i) largest[i / chunks] = std::max(largest[i / chunks], partial[i]);
  return result;
}

void run(const FakeQuantizeParams& params, const Tensor& x) {
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      check_launch("fake_quantize", launch_fake_quantize(params, scope.stream()));
    }
    return;
  }
  const bool blocked = params.scaling == Scaling::kNvfp4;
  const int64_t blocks = params.outer * params.blocks_per_line() * params.inner;
  const int64_t units =
      blocked ? (blocks + kTileBlocks - 1) / kTileBlocks : (params.per_tensor() + kElementChunk - 1) / kElementChunk;
  const auto kernel = blocked ? kernels().quantization.quantize_nvfp4 : kernels().quantization.quantize_elements;
  for (int64_t tensor = 0; tensor < params.tensors; ++tensor) {
    torch::stable::parallel_for(0, units, 16, [&](int64_t begin, int64_t end) { kernel(params, tensor, begin, end); });
  }
}

// x [tensors, ...] if batched, else one tensor of any shape. See FakeQuantizeParams for the meaning of each number.
void fake_quantize_out(const Tensor& x, const Tensor& out, int64_t exponent_bits, int64_t mantissa_bits,
                       int64_t special, int64_t scaling, int64_t rounding, int64_t random_bits, int64_t overflow,
                       int64_t axis, bool batched, bool derivative, int64_t seed, int64_t stream) {
  check_floating("fake_quantize", "x", x);
  check_same("fake_quantize", "out", out, "x", x);
  STD_TORCH_CHECK(x.numel() == out.numel(), "fake_quantize: out must have the shape of x, got ", shape_text(out),
                  " and ", shape_text(x));
  STD_TORCH_CHECK(out.is_contiguous(), "fake_quantize: out must be contiguous, got shape ", shape_text(out));
  STD_TORCH_CHECK(2 <= exponent_bits && exponent_bits <= 8 && 0 <= mantissa_bits && mantissa_bits <= 23,
                  "fake_quantize: an element has 2 to 8 exponent bits and 0 to 23 mantissa bits, got ", exponent_bits,
                  " and ", mantissa_bits);
  STD_TORCH_CHECK(0 <= special && special <= 2 && 0 <= scaling && scaling <= 2 && 0 <= rounding && rounding <= 2 &&
                      0 <= overflow && overflow <= 2 && 1 <= random_bits && random_bits <= 32,
                  "fake_quantize: special, scaling, rounding and overflow lie in 0..2 and random_bits in 1..32");
  const int64_t first = batched ? 1 : 0;
  STD_TORCH_CHECK(x.dim() >= first && (scaling != 2 || (first <= axis && axis < x.dim())),
                  "fake_quantize: axis must lie in ", first, "..", x.dim() - 1, ", got ", axis);
  if (x.numel() == 0) return;

  const Tensor dense = torch::stable::contiguous(x);
  FakeQuantizeParams params{};
  params.x = dense.const_data_ptr();
  params.y = out.mutable_data_ptr();
  params.tensors = batched ? x.size(0) : 1;
  params.outer = params.inner = params.length = 1;
  for (int64_t i = first; i < x.dim(); ++i) {
    (i < axis ? params.outer : i == axis ? params.length : params.inner) *= x.size(i);
  }
  params.element = make_element_format(static_cast<int>(exponent_bits), static_cast<int>(mantissa_bits),
                                       static_cast<Special>(special));
  params.scaling = static_cast<Scaling>(scaling);
  params.rounding = static_cast<Rounding>(rounding);
  params.overflow = static_cast<Overflow>(overflow);
  params.random_bits = static_cast<int32_t>(random_bits);
  params.derivative = derivative;
  params.seed = static_cast<uint64_t>(seed);
  params.stream = static_cast<uint64_t>(stream);
  params.kind = scalar_kind(x);
  std::optional<Tensor> amax;
  if (params.scaling != Scaling::kNone) {
    amax = amax_bits(dense, params.tensors, params.scaling == Scaling::kNvfp4);
    params.amax_bits = static_cast<const uint32_t*>(amax->const_data_ptr());
  }
  run(params, dense);
}

Tensor fake_quantize(const Tensor& x, int64_t exponent_bits, int64_t mantissa_bits, int64_t special, int64_t scaling,
                     int64_t rounding, int64_t random_bits, int64_t overflow, int64_t axis, bool batched,
                     bool derivative, int64_t seed, int64_t stream) {
  check_floating("fake_quantize", "x", x);
  Tensor out = torch::stable::new_empty(x, x.sizes());
  fake_quantize_out(x, out, exponent_bits, mantissa_bits, special, scaling, rounding, random_bits, overflow, axis,
                    batched, derivative, seed, stream);
  return out;
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def(
      "fake_quantize(Tensor x, int exponent_bits, int mantissa_bits, int special, int scaling, int rounding, "
      "int random_bits, int overflow, int axis, bool batched, bool derivative, int seed, int stream) -> Tensor");
  m.def(
      "fake_quantize_out(Tensor x, Tensor(a!) out, int exponent_bits, int mantissa_bits, int special, int scaling, "
      "int rounding, int random_bits, int overflow, int axis, bool batched, bool derivative, int seed, int stream) "
      "-> ()");
}

LSFAST_IMPLEMENT(m) {
  m.impl("fake_quantize", TORCH_BOX(&fake_quantize));
  m.impl("fake_quantize_out", TORCH_BOX(&fake_quantize_out));
}

}  // namespace
}  // namespace lsfast::quantization
