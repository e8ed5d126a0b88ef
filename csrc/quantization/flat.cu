// CUDA kernel of quantization for what lies flat in memory: no scale, one scale for the tensor, or full blocks of up to
// 32 lanes along contiguous lines. Everything but the largest magnitude of the tensor in one pass.
#include "quantization/rounding_cuda.inl"

namespace lsfast::quantization {
namespace {

template <class T>
constexpr int kCountOf = 16 / sizeof(T) < 4 ? 4 : 16 / static_cast<int>(sizeof(T));

// kCount codes of at most 8 bits, which fill whole bytes.
template <int kCount>
__device__ __forceinline__ void store_codes(uint64_t packed, int bits, uint8_t* codes) {
  switch (kCount * bits) {
    case 16:
      *reinterpret_cast<uint16_t*>(codes) = static_cast<uint16_t>(packed);
      return;
    case 32:
      *reinterpret_cast<uint32_t*>(codes) = static_cast<uint32_t>(packed);
      return;
    case 64:
      *reinterpret_cast<uint64_t*>(codes) = packed;
      return;
    default:
      for (int byte = 0; byte < kCount * bits / 8; ++byte) codes[byte] = static_cast<uint8_t>(packed >> (8 * byte));
  }
}

// A lane holds kCount neighbours (16 bytes; 4 float64), block_length / kCount neighbouring lanes a block, which find
// its largest magnitude by shuffles. Each lane asks for its next elements before it works on these. Grid: (any,
// tensors). Bytes: reads x once (after the amax pass, where there is one), writes y (or the codes) once.
template <class T, class F, Family family>
__global__ void __launch_bounds__(kThreads, 4) flat_kernel(QuantizeParams p, int64_t first_tensor) {
  constexpr int kCount = kCountOf<T>;
  using Held = Elements<T, kCount>;
  const int64_t tensor = first_tensor + blockIdx.y;
  const int64_t total = p.per_tensor();
  const int64_t packs = total / kCount;
  const Held* const x = reinterpret_cast<const Held*>(static_cast<const T*>(p.x) + tensor * total);
  const float amax = tensor_amax(p, tensor);
  const TensorScale shared_scale = tensor_scale_of(p, amax);
  const bool blocked = family != Family::kNone && !p.scheme.per_tensor;
  const int lanes = static_cast<int>(p.block_length) / kCount;  // of a block
  BlockScale block = scale_of<family>(p.scheme, bit_cast<uint32_t>(amax), shared_scale);
  if (p.scheme.per_tensor && p.scales != nullptr && blockIdx.x == 0 && threadIdx.x == 0) store_scale(p, 0, block);
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads;
  Held next{};
  if (base + threadIdx.x < packs) next = x[base + threadIdx.x];
  // Every lane of a warp runs the same number of rounds, so that all take part in the shuffles.
  for (; base < packs; base += threads) {
    const int64_t i = base + threadIdx.x;
    F values[kCount];
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = widen<F>(next.element[k]);
    if (i + threads < packs) next = x[i + threads];
    if (p.scheme.hadamard.size > 0) transform_line(values, p.scheme.hadamard, false);
    if (blocked) {
      block = scale_of<family>(p.scheme, largest_of_lanes(largest_of(values), lanes), shared_scale);
      if (p.scales != nullptr && i < packs && i % lanes == 0) store_scale(p, i / lanes, block);
    }
    scale_values(values, p.scheme, block.multiplier, values);
    if (p.derivative) {
      to_derivative(p.scheme.element, values);
    } else {
      round_values(values, p, {i * kCount, 1});
      if (p.codes != nullptr) {
        const int bits = p.scheme.code_bits();
        const uint64_t packed = packed_codes(values, p.scheme, kCount);
        if (i < packs) store_codes<kCount>(packed, bits, p.codes + i * (kCount * bits / 8));
        continue;
      }
      if (family != Family::kNone) {
#pragma unroll
        for (int k = 0; k < kCount; ++k) values[k] *= static_cast<F>(block.factor);
      }
    }
    if (i < packs) store_line(values, kCount, true, static_cast<T*>(p.y) + tensor * total + i * kCount);
  }
}

int64_t count_of(ScalarKind kind) {
  LSFAST_DISPATCH(kind, return kCountOf<scalar_t>);
  return 1;
}

template <class T, class F, Family family>
const char* launch_family(const QuantizeParams& p, Stream stream) {
  const unsigned blocks = grid_size(p.per_tensor(), kThreads * kCountOf<T>, 8192);
  return for_tensors(p.tensors, [&](int64_t first, unsigned count) {
    return LSFAST_LAUNCH((flat_kernel<T, F, family>), dim3(blocks, count), dim3(kThreads), 0, stream, p, first);
  });
}

template <class T>
const char* launch_typed(const QuantizeParams& p, Stream stream) {
  if (p.scheme.rule == ScaleRule::kNone) {
    if constexpr (sizeof(T) == sizeof(double)) {
      return launch_family<T, double, Family::kNone>(p, stream);
    } else {
      return launch_family<T, float, Family::kNone>(p, stream);
    }
  }
  if (p.scheme.rule == ScaleRule::kE4m3) return launch_family<T, float, Family::kE4m3>(p, stream);
  if (is_e8m0(p.scheme.rule)) return launch_family<T, float, Family::kE8m0>(p, stream);
  return launch_family<T, float, Family::kFloat>(p, stream);
}

}  // namespace

bool runs_flat(const QuantizeParams& p) {
  const int64_t count = count_of(p.kind);
  const int bits = p.scheme.code_bits();
  const bool blocked = p.scheme.blocked();
  const bool fits = fixed_block_shift(p.block_length) > 0 && p.block_length <= count * kWarpSize &&
                    p.length % p.block_length == 0 && p.inner == 1 && p.block_height == 1;
  // A transform runs along lines, codes start each line at a whole byte.
  const bool along = p.scheme.hadamard.size == 0 || p.inner == 1;
  const bool packs =
      p.codes == nullptr || (p.word_inner == 1 && bits <= 8 && count * bits % 8 == 0 && p.length * bits % 8 == 0);
  return p.granularity == Granularity::kNone && (fits || !blocked) && along && packs && p.per_tensor() % count == 0 &&
         aligned_to_16(p.x) && (p.y == nullptr || aligned_to_16(p.y));
}

const char* launch_flat(const QuantizeParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return launch_typed<scalar_t>(p, stream));
  return "quantize: unknown element type";
}

}  // namespace lsfast::quantization
