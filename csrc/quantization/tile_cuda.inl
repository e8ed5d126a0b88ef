// What the CUDA kernels of quantization do with the few neighbouring elements a thread holds in registers: load,
// transform, scale, round, store. The same steps as tile_cpu.inl and the same order of every operation. Register arrays
// are indexed by constants alone: a run-time index would move them to memory.
#pragma once

#include "numerics/philox.h"
#include "platform/launch.h"
#include "quantization/quantization.h"

namespace lsfast::quantization {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int64_t kMaxTensorsPerLaunch = 65535;  // gridDim.y

// The kernels of launch_quantize; each file says which tensors are its own.
bool runs_flat(const QuantizeParams& params);
const char* launch_flat(const QuantizeParams& params, Stream stream);
const char* launch_strips(const QuantizeParams& params, unsigned* blocks, Stream stream);   // inner == 1
const char* launch_columns(const QuantizeParams& params, unsigned* blocks, Stream stream);  // inner > 1

// Runs launch(first_tensor, tensors) over all tensors, within the limit of a grid's second dimension.
template <class Launch>
const char* for_tensors(int64_t tensors, const Launch& launch) {
  for (int64_t first = 0; first < tensors; first += kMaxTensorsPerLaunch) {
    const int64_t left = tensors - first;
    const int64_t count = left < kMaxTensorsPerLaunch ? left : kMaxTensorsPerLaunch;
    if (const char* error = launch(first, static_cast<unsigned>(count))) return error;
  }
  return nullptr;
}

// log2 of a power of two among the sizes that blocks of fixed size have, else -1.
inline int fixed_block_shift(int64_t length) {
  for (int shift = 4; shift <= 9; ++shift) {
    if (length == int64_t{1} << shift) return shift;
  }
  return -1;
}

// ---- load and store ------------------------------------------------------------------------------------------------

template <class F, class T>
__device__ __forceinline__ F widen(T x) {
  if constexpr (sizeof(F) == sizeof(double)) {
    return x;
  } else {
    return to_float(x);
  }
}

template <class T, class F>
__device__ __forceinline__ T narrow(F x) {
  if constexpr (sizeof(F) == sizeof(double)) {
    return x;
  } else {
    return from_float<T>(x);
  }
}

// Moved in accesses of 16 bytes (8 where there are no more).
template <class T, int count>
struct alignas(sizeof(T) * count < 16 ? sizeof(T) * count : 16) Elements {
  T element[count];
};

// The first `count` of kCount neighbours, zeros after them. aligned: x lies at a multiple of 16 bytes.
template <int kCount, class F, class T>
__device__ __forceinline__ void load_line(const T* x, int count, bool aligned, F (&values)[kCount]) {
  if (aligned && count == kCount) {
    const Elements<T, kCount> held = *reinterpret_cast<const Elements<T, kCount>*>(x);
#pragma unroll
    for (int k = 0; k < kCount; ++k) values[k] = widen<F>(held.element[k]);
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] = k < count ? widen<F>(x[k]) : F(0);
}

// In one access: in a large kernel the compiler takes the assignment of a struct apart, into a store for each element.
template <class Held>
__device__ __forceinline__ void store_16_bytes(const Held& held, void* to) {
  static_assert(sizeof(Held) == 16, "an access moves 16 bytes");
#if defined(__CUDA_ARCH__)
  uint4 words;
  memcpy(&words, &held, 16);
  __stwb(static_cast<uint4*>(to), words);
#else
  *static_cast<Held*>(to) = held;
#endif
}

template <int kCount, class F, class T>
__device__ __forceinline__ void store_line(const F (&values)[kCount], int count, bool aligned, T* y) {
  if (aligned && count == kCount) {
    constexpr int kWidth = 16 / static_cast<int>(sizeof(T));
#pragma unroll
    for (int first = 0; first < kCount; first += kWidth) {
      Elements<T, kWidth> held;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) held.element[k] = narrow<T>(values[first + k]);
      store_16_bytes(held, y + first);
    }
    return;
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) {
    if (k < count) y[k] = narrow<T>(values[k]);
  }
}

// ---- columns: a CUDA block holds 128 positions of 32 neighbouring columns, a thread 16 positions of one ------------

constexpr int kColumnRows = 16;
constexpr int kTileLength = kColumnRows * kWarps;

template <class F, class T>
__device__ __forceinline__ void load_column(const T* x, int64_t stride, int count, F (&values)[kColumnRows]) {
#pragma unroll
  for (int k = 0; k < kColumnRows; ++k) values[k] = k < count ? widen<F>(x[k * stride]) : F(0);
}

template <class F, class T>
__device__ __forceinline__ void store_column(const F (&values)[kColumnRows], int64_t stride, int count, T* y) {
#pragma unroll
  for (int k = 0; k < kColumnRows; ++k) {
    if (k < count) y[k * stride] = narrow<T>(values[k]);
  }
}

// How many of a thread's positions of a column exist.
__device__ __forceinline__ int column_count(int64_t position, int64_t end, bool inside) {
  const int64_t left = end - position;
  return !inside || left < 0 ? 0 : (left < kColumnRows ? static_cast<int>(left) : kColumnRows);
}

// ---- transform -----------------------------------------------------------------------------------------------------

// The signs of kCount neighbours from `first` (a multiple of kCount) on, from the lowest bit up.
__device__ __forceinline__ uint32_t signs_from(const Hadamard& hadamard, int first) {
  const uint32_t low = first < 32 ? hadamard.signs[0] : hadamard.signs[1];
  const uint32_t high = first < 96 ? hadamard.signs[2] : hadamard.signs[3];
  return (first < 64 ? low : high) >> (first & 31);
}

// Times the signs (and `factor`); what is left of the transform lies within the kCount neighbours or beyond them.
template <int kCount, class F>
__device__ __forceinline__ void times_signs(F (&values)[kCount], uint32_t signs, F factor) {
#pragma unroll
  for (int k = 0; k < kCount; ++k) values[k] *= (signs >> k & 1u) != 0u ? -factor : factor;
}

template <int kCount, class F>
__device__ __forceinline__ void butterflies_inside(F (&values)[kCount]) {
#pragma unroll
  for (int stage = 1; stage < kCount; stage *= 2) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      if ((k & stage) == 0) {
        const F sum = values[k] + values[k + stage];
        values[k + stage] = values[k] - values[k + stage];
        values[k] = sum;
      }
    }
  }
}

// Elements of a line, kCount in each lane; lane 0 of the warp starts a group. Every lane takes part.
template <int kCount, class F>
__device__ __forceinline__ void transform_line(F (&values)[kCount], const Hadamard& hadamard, bool inverse) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const uint32_t signs = signs_from(hadamard, lane * kCount & (hadamard.size - 1));
  const F factor = hadamard_factor<F>(hadamard.size);
  if (!inverse) times_signs(values, signs, F(1));
  butterflies_inside(values);
#pragma unroll 1
  for (int away = 1; away * kCount < hadamard.size; away *= 2) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      const F other = __shfl_xor_sync(kFullWarp, values[k], away);
      values[k] = (lane & away) == 0 ? values[k] + other : other - values[k];
    }
  }
  times_signs(values, inverse ? signs : 0u, factor);
}

// Elements of columns; tile: shared, [kTileLength, kWarpSize]. Every thread of the CUDA block takes part.
template <class F>
__device__ __forceinline__ void transform_columns(F (&values)[kColumnRows], const Hadamard& hadamard, bool inverse,
                                                  F* tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const uint32_t signs = signs_from(hadamard, warp * kColumnRows & (hadamard.size - 1));
  const F factor = hadamard_factor<F>(hadamard.size);
  if (!inverse) times_signs(values, signs, F(1));
  butterflies_inside(values);
#pragma unroll 1
  for (int away = 1; away * kColumnRows < hadamard.size; away *= 2) {
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kColumnRows; ++k) tile[(warp * kColumnRows + k) * kWarpSize + lane] = values[k];
    __syncthreads();
#pragma unroll
    for (int k = 0; k < kColumnRows; ++k) {
      const F other = tile[((warp ^ away) * kColumnRows + k) * kWarpSize + lane];
      values[k] = (warp & away) == 0 ? values[k] + other : other - values[k];
    }
  }
  times_signs(values, inverse ? signs : 0u, factor);
}

// ---- scales --------------------------------------------------------------------------------------------------------

// The rules that one kernel knows: compiled apart where speed counts.
enum class Family { kNone, kFloat, kE4m3, kE8m0, kAny };

__device__ __forceinline__ constexpr bool in_family(Family family, ScaleRule rule) {
  const bool none = rule == ScaleRule::kNone, e4m3 = rule == ScaleRule::kE4m3, e8m0 = is_e8m0(rule);
  return family == Family::kAny || (family == Family::kNone && none) || (family == Family::kE4m3 && e4m3) ||
         (family == Family::kE8m0 && e8m0) || (family == Family::kFloat && !none && !e4m3 && !e8m0);
}

template <Family family>
__device__ __forceinline__ BlockScale scale_of(const QuantScheme& scheme, uint32_t amax_bits,
                                               const TensorScale& tensor) {
  BlockScale block{1.0f, 1.0f, 0u};
  LSFAST_DISPATCH_SCALE(
      scheme.rule, if constexpr (in_family(family, rule)) {
        block = block_scale<rule>(amax_bits, scheme.element, tensor, scheme.compat);
      });
  return block;
}

__device__ __forceinline__ TensorScale tensor_scale_of(const QuantizeParams& p, float amax) {
  return make_tensor_scale(amax, p.scheme.tensor_scale, p.scheme.compat);
}

__device__ __forceinline__ float tensor_amax(const QuantizeParams& p, int64_t tensor) {
  return p.amax_bits == nullptr ? 0.0f : bit_cast<float>(p.amax_bits[tensor]);
}

__device__ __forceinline__ void store_scale(const QuantizeParams& p, int64_t at, const BlockScale& block) {
  if (scale_is_byte(p.scheme.rule)) {
    static_cast<uint8_t*>(p.scales)[at] = static_cast<uint8_t>(stored_code(p.scheme.rule, block));
  } else {
    static_cast<float*>(p.scales)[at] = block.factor;
  }
}

template <class F>
__device__ __forceinline__ uint32_t magnitude_bits(F x) {
  return bit_cast<uint32_t>(static_cast<float>(x)) & 0x7fffffffu;
}

__device__ __forceinline__ uint32_t finite_or_zero(uint32_t bits) { return bits < kFloat32Infinity ? bits : 0u; }

__device__ __forceinline__ uint32_t larger(uint32_t a, uint32_t b) { return a > b ? a : b; }

template <int kCount, class F>
__device__ __forceinline__ uint32_t largest_of(const F (&values)[kCount]) {
  uint32_t largest = 0u;
#pragma unroll
  for (int k = 0; k < kCount; ++k) largest = larger(largest, magnitude_bits(values[k]));
  return largest;
}

// Over groups of `lanes` neighbouring lanes; every lane takes part.
__device__ __forceinline__ uint32_t largest_of_lanes(uint32_t largest, int lanes) {
  for (int away = 1; away < lanes; away *= 2) {
    largest = larger(largest, __shfl_xor_sync(kFullWarp, largest, away));
  }
  return largest;
}

}  // namespace lsfast::quantization
