// CUDA kernel that makes numbers of codes and scales.
#include "quantization/tile_cuda.inl"

namespace lsfast::quantization {
namespace {

constexpr int kUnit = 8;  // elements of a thread: their codes fill whole bytes

__device__ __forceinline__ float factor_at(const DequantizeParams& p, const TensorScale& tensor, int64_t block) {
  const ScaleRule rule = p.scheme.rule;
  if (rule == ScaleRule::kNone) return 1.0f;
  if (p.scheme.per_tensor) return static_cast<const float*>(p.scales)[0];
  if (!scale_is_byte(rule)) return static_cast<const float*>(p.scales)[block];
  return stored_factor(rule, static_cast<const uint8_t*>(p.scales)[block], tensor, p.scheme.compat);
}

// decode_code for up to 8 bits; the table is searched, since looking up a run-time index would put it in local memory.
__device__ __forceinline__ float decode_byte(uint32_t code, const QuantScheme& scheme) {
  if (scheme.element.special != Special::kTable) return decode_element(code, scheme.element);
  float number = 0.0f;
#pragma unroll
  for (int i = 0; i < kNormalFloats; ++i) number = static_cast<uint32_t>(i) == code ? normal_float(i) : number;
  return number;
}

// A thread has 8 neighbours of a line, which lie in one block. Codes of up to 8 bits are looked up.
// Grid: any. Bytes: reads codes and scales once, writes y once.
template <class T>
__global__ void __launch_bounds__(kThreads, 4) dequantize_kernel(DequantizeParams p, bool aligned) {
  __shared__ float numbers[256];
  const int bits = p.scheme.code_bits();
  const int bytes = bits <= 16 ? 2 : 4;  // of a code of more than 8 bits
  const uint32_t own = threadIdx.x;
  numbers[own] = bits <= 8 && own >> bits == 0u ? decode_byte(own, p.scheme) : 0.0f;
  __syncthreads();
  const float amax = p.amax_bits == nullptr ? 0.0f : bit_cast<float>(*p.amax_bits);
  const TensorScale tensor = make_tensor_scale(amax, p.scheme.tensor_scale, p.scheme.compat);
  const int64_t of_line = (p.length + kUnit - 1) / kUnit;
  const int64_t units = p.outer * p.height * of_line;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < units; i += threads) {
    const int64_t line = i / of_line;
    const int64_t position = i % of_line * kUnit;
    const int count = p.length - position < kUnit ? static_cast<int>(p.length - position) : kUnit;
    const int64_t band = line / p.height * p.height_blocks() + line % p.height / p.block_height;
    const float factor = factor_at(p, tensor, band * p.length_blocks() + position / p.block_length);
    const uint8_t* const codes = p.codes + line * p.line_bytes + position * (bits <= 8 ? bits : 8 * bytes) / 8;
    float values[kUnit];
    if (bits <= 8) {
      uint64_t packed = 0u;
      for (int byte = 0; 8 * byte < count * bits; ++byte) packed |= static_cast<uint64_t>(codes[byte]) << (8 * byte);
#pragma unroll
      for (int k = 0; k < kUnit; ++k) values[k] = numbers[packed >> (k * bits) & ((1u << bits) - 1u)] * factor;
    } else {
#pragma unroll
      for (int k = 0; k < kUnit; ++k) {
        uint32_t code = 0u;
        for (int byte = 0; byte < bytes && k < count; ++byte) code |= uint32_t{codes[k * bytes + byte]} << (8 * byte);
        values[k] = decode_element(code, p.scheme.element) * factor;
      }
    }
    store_line(values, count, aligned, static_cast<T*>(p.y) + line * p.length + position);
  }
}

template <class T>
const char* launch_typed(const DequantizeParams& p, Stream stream) {
  const bool aligned = aligned_to_16(p.y) && p.length * static_cast<int64_t>(sizeof(T)) % 16 == 0;
  const dim3 blocks(grid_size(p.outer * p.height * ((p.length + kUnit - 1) / kUnit), kThreads));
  return LSFAST_LAUNCH(dequantize_kernel<T>, blocks, dim3(kThreads), 0, stream, p, aligned);
}

}  // namespace

const char* launch_dequantize(const DequantizeParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return launch_typed<scalar_t>(p, stream));
  return "dequantize: unknown element type";
}

}  // namespace lsfast::quantization
