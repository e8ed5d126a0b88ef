// CUDA kernels that form points around the parameters and quantize them: a thread forms 8 neighbours of a point in
// registers, for one point after the other, and nothing but the quantized numbers is written.
#include "quantization/strips_cuda.inl"

namespace lsfast::quantization {
namespace {

constexpr int64_t kEnoughBlocks = 1024;  // CUDA blocks that fill a device
constexpr int kPointsOfBlock = 64;       // points a CUDA block of the amax kernel takes at most

// The numbers of a unit at a point, transformed, with zeros after the last. Every lane of a warp takes part.
template <class T, class F>
__device__ __forceinline__ void form_unit(const QuantizeParams& p, bool aligned, int64_t point, int64_t first,
                                          int count, F (&values)[kUnit]) {
  using A = Arithmetic<T>;
  const PointForm<T> form = p.points.template point<T>(point);
  A sums[kUnit];
  load_line(form.theta + first, count, aligned, sums);
  for (int64_t k = 0; k < form.d; ++k) {
    A direction[kUnit];
    load_line(form.directions + k * form.n + first, count, aligned, direction);
    const A step = lsfast::widen(form.coordinates[k]);
#pragma unroll
    for (int e = 0; e < kUnit; ++e) sums[e] = sums[e] + step * direction[e];
  }
#pragma unroll
  for (int e = 0; e < kUnit; ++e) values[e] = e < count ? widen<F>(lsfast::narrow<T>(sums[e])) : F(0);
  if (p.scheme.hadamard.size > 0) transform_line(values, p.scheme.hadamard, false);
}

// Grid: (any, groups of `points_each` points). Bytes: reads theta and the directions once for a group of points, from
// the first-level cache after the group's first point.
template <class T>
__global__ void __launch_bounds__(kThreads)
    points_amax_kernel(QuantizeParams p, bool aligned, int64_t points_each, uint32_t* amax_bits) {
  __shared__ uint32_t largest_of_point[kPointsOfBlock];
  const int64_t first_point = static_cast<int64_t>(blockIdx.y) * points_each;
  const int64_t left = p.tensors - first_point;
  const int points = static_cast<int>(left < points_each ? left : points_each);
  const uint32_t limit = p.finite_amax() ? kFloat32Infinity : 0xffffffffu;
  if (threadIdx.x < kPointsOfBlock) largest_of_point[threadIdx.x] = 0u;
  __syncthreads();
  const int64_t n = p.per_tensor();
  // Every lane of a warp runs the same number of rounds, so that all take part in the shuffles.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads * kUnit; base < n;
       base += static_cast<int64_t>(gridDim.x) * kThreads * kUnit) {
    const int64_t first = base + static_cast<int64_t>(threadIdx.x) * kUnit;
    const int count = first >= n ? 0 : (n - first < kUnit ? static_cast<int>(n - first) : kUnit);
    for (int point = 0; point < points; ++point) {
      float values[kUnit];
      form_unit<T>(p, aligned, first_point + point, first, count, values);
      uint32_t largest = 0u;
#pragma unroll
      for (int e = 0; e < kUnit; ++e) {
        const uint32_t bits = magnitude_bits(values[e]);
        largest = larger(largest, bits < limit ? bits : 0u);
      }
      largest = largest_of_lanes(largest, kWarpSize);
      if (threadIdx.x % kWarpSize == 0) atomicMax(&largest_of_point[point], largest);
    }
  }
  __syncthreads();
  if (static_cast<int>(threadIdx.x) < points) {
    atomicMax(amax_bits + first_point + threadIdx.x, largest_of_point[threadIdx.x]);
  }
}

// A CUDA block has a strip at a time, for a group of points. kInWarp: a block of the scheme lies in a warp, whose lanes
// find its largest magnitude from the numbers they hold; else they are formed again once the scales are known. Grid:
// (any, groups of `points_each` points). Bytes: reads theta and the directions once for a group of points, from the
// first-level cache after the group's first point; writes each point once.
template <class T, class F, bool kInWarp>
__global__ void __launch_bounds__(kThreads, sizeof(F) == 8 || sizeof(T) == 8 ? 1 : 3)
    quantize_points_kernel(QuantizeParams p, Strips s, int64_t points_each) {
  __shared__ uint32_t amax[kInWarp ? 1 : kMostBlocks];
  __shared__ float multiplier[kInWarp ? 1 : kMostBlocks];
  __shared__ float factor[kInWarp ? 1 : kMostBlocks];
  const int64_t first_point = static_cast<int64_t>(blockIdx.y) * points_each;
  const int64_t end_point = first_point + points_each < p.tensors ? first_point + points_each : p.tensors;
  const int lanes = s.block_shift < 8 ? 1 << (s.block_shift - 3) : kWarpSize;  // neighbours in one block
  const int64_t strips = s.bands() * s.of_line;
  Sums sums = zero_sums();
  for (int64_t id = blockIdx.x; id < strips; id += gridDim.x) {
    const Strip strip(s, id);
    for (int64_t point = first_point; point < end_point; ++point) {
      const float largest = tensor_amax(p, point);
      const TensorScale shared_scale = tensor_scale_of(p, largest);
      T* const y = static_cast<T*>(p.y) + point * p.per_tensor();
      if constexpr (!kInWarp) {
        __syncthreads();  // the scales of the point before are no longer read
        if (threadIdx.x < kMostBlocks) amax[threadIdx.x] = 0u;
        __syncthreads();
        for (int round = 0; round < strip.rounds; ++round) {
          const Unit unit = strip.unit(s, round);
          F values[kUnit];
          form_unit<T>(p, s.aligned, point, unit.line * s.length + unit.position, unit.count, values);
          const uint32_t bits = largest_of_lanes(largest_of(values), lanes);
          if (threadIdx.x % lanes == 0) atomicMax(&amax[unit.block], bits);
        }
        __syncthreads();
        if (static_cast<int>(threadIdx.x) < s.blocks) {
          const BlockScale block = scale_of<Family::kAny>(p.scheme, amax[threadIdx.x], shared_scale);
          multiplier[threadIdx.x] = block.multiplier;
          factor[threadIdx.x] = block.factor;
        }
        __syncthreads();
      }
      for (int round = 0; round < strip.rounds; ++round) {
        const Unit unit = strip.unit(s, round);
        const int64_t first = unit.line * s.length + unit.position;
        F values[kUnit];
        form_unit<T>(p, s.aligned, point, first, unit.count, values);
        BlockScale block{1.0f, 1.0f, 0u};
        if constexpr (kInWarp) {
          const uint32_t bits = s.blocked ? largest_of_lanes(largest_of(values), lanes) : bit_cast<uint32_t>(largest);
          block = scale_of<Family::kAny>(p.scheme, bits, shared_scale);
        } else {
          block.multiplier = multiplier[unit.block];
          block.factor = factor[unit.block];
        }
        quantize_values<T, false>(values, p, block.multiplier, block.factor, {first, 1}, unit.count, sums);
        store_line(values, unit.count, s.aligned, y + first);
      }
    }
  }
}

// How many points each group of CUDA blocks has, so that few parameters still give enough of them.
int64_t points_each(const QuantizeParams& p, int64_t blocks, int64_t most) {
  const int64_t groups = blocks < kEnoughBlocks ? (kEnoughBlocks + blocks - 1) / blocks : 1;
  const int64_t each = (p.tensors + groups - 1) / groups;
  const int64_t least = (p.tensors + kMaxTensorsPerLaunch - 1) / kMaxTensorsPerLaunch;
  return each > most ? most : (each < least ? least : each);
}

bool sources_aligned(const QuantizeParams& p, int64_t bytes) {
  return aligned_to_16(p.points.theta) && aligned_to_16(p.points.directions) && p.points.n * bytes % 16 == 0;
}

template <class T>
const char* amax_typed(const QuantizeParams& p, uint32_t* amax_bits, Stream stream) {
  const unsigned blocks = grid_size(p.per_tensor(), kThreads * kUnit, 2048);
  const bool aligned = sources_aligned(p, sizeof(T));
  // Points beyond the limit of a grid are those of another launch.
  for (int64_t first = 0; first < p.tensors; first += kMaxTensorsPerLaunch) {
    QuantizeParams some = p;
    const int64_t left = p.tensors - first;
    some.tensors = left < kMaxTensorsPerLaunch ? left : kMaxTensorsPerLaunch;
    some.points.coordinates = static_cast<const T*>(p.points.coordinates) + first * p.points.d;
    const int64_t each = points_each(some, blocks, kPointsOfBlock);
    const dim3 grid(blocks, static_cast<unsigned>((some.tensors + each - 1) / each));
    const char* const error =
        LSFAST_LAUNCH(points_amax_kernel<T>, grid, dim3(kThreads), 0, stream, some, aligned, each, amax_bits + first);
    if (error != nullptr) return error;
  }
  return nullptr;
}

template <class T, class F>
const char* quantize_typed(const QuantizeParams& p, Stream stream) {
  Strips s = make_strips(p);
  s.aligned = s.aligned && sources_aligned(p, sizeof(T));
  const unsigned blocks = grid_size(s.bands() * s.of_line, 1, 1 << 16);
  const int64_t each = points_each(p, blocks, p.tensors);
  const dim3 grid(blocks, static_cast<unsigned>((p.tensors + each - 1) / each));
  const bool in_warp = !s.blocked || (s.block_height == 1 && s.block_shift <= 8);
  if (in_warp) {
    return LSFAST_LAUNCH((quantize_points_kernel<T, F, true>), grid, dim3(kThreads), 0, stream, p, s, each);
  }
  if constexpr (sizeof(F) == sizeof(float)) {  // blocks have scales: they are computed in float32
    return LSFAST_LAUNCH((quantize_points_kernel<T, F, false>), grid, dim3(kThreads), 0, stream, p, s, each);
  }
  return "quantized_points: blocks of numbers without a scale";
}

}  // namespace

const char* launch_points_amax(const QuantizeParams& p, uint32_t* amax_bits, Stream stream) {
  LSFAST_DISPATCH(p.kind, return amax_typed<scalar_t>(p, amax_bits, stream));
  return "quantized_points: unknown element type";
}

const char* launch_quantize_points(const QuantizeParams& p, Stream stream) {
  if (p.kind == ScalarKind::kFloat64 && p.scheme.rule == ScaleRule::kNone) {
    return quantize_typed<double, double>(p, stream);
  }
  LSFAST_DISPATCH(p.kind, return (quantize_typed<scalar_t, float>(p, stream)));
  return "quantized_points: unknown element type";
}

}  // namespace lsfast::quantization
