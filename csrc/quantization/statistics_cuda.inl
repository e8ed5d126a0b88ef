// Statistics in the CUDA kernels: each thread sums what it rounds, lanes by shuffles, warps through shared memory, and
// CUDA blocks through QuantizeParams::partial, which finish_statistics adds up. Every order is fixed by the shape.
#pragma once

#include "quantization/rounding_cuda.inl"

namespace lsfast::quantization {

struct Sums {
  double error;
  double sum;
  uint32_t saturated;
  uint32_t flushed;
  uint32_t largest;  // bits
};

__device__ __forceinline__ Sums zero_sums() { return {0.0, 0.0, 0u, 0u, 0u}; }

__device__ __forceinline__ void add_sums(Sums& to, const Sums& other) {
  to.error += other.error;
  to.sum += other.sum;
  to.saturated += other.saturated;
  to.flushed += other.flushed;
  to.largest = larger(to.largest, other.largest);
}

// Over groups of `lanes` neighbouring lanes; every lane takes part and ends with the same bits.
__device__ __forceinline__ void add_lanes(Sums& sums, int lanes) {
  for (int away = 1; away < lanes; away *= 2) {
    Sums other;
    other.error = __shfl_xor_sync(kFullWarp, sums.error, away);
    other.sum = __shfl_xor_sync(kFullWarp, sums.sum, away);
    other.saturated = __shfl_xor_sync(kFullWarp, sums.saturated, away);
    other.flushed = __shfl_xor_sync(kFullWarp, sums.flushed, away);
    other.largest = __shfl_xor_sync(kFullWarp, sums.largest, away);
    add_sums(sums, other);
  }
}

__device__ __forceinline__ void write_sums(const Sums& sums, double* row) {
  row[kSaturated] = static_cast<double>(sums.saturated);
  row[kFlushed] = static_cast<double>(sums.flushed);
  row[kSquaredError] = sums.error;
  row[kSquaredSum] = sums.sum;
  row[kLargest] = static_cast<double>(bit_cast<float>(sums.largest));
}

// Of a whole CUDA block, into a row. slots: shared, [kWarps].
__device__ __forceinline__ void write_block_sums(Sums sums, Sums* slots, double* row) {
  add_lanes(sums, kWarpSize);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) slots[threadIdx.x / kWarpSize] = sums;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int warp = 1; warp < kWarps; ++warp) add_sums(sums, slots[warp]);
    write_sums(sums, row);
  }
}

// From numbers to what is stored (or, for codes, to numbers on the grid), in place; adds the first `count` to the sums.
template <class T, bool kStatistics, int kCount, class F>
__device__ __forceinline__ void quantize_values(F (&x)[kCount], const QuantizeParams& p, float multiplier, float factor,
                                                const WordPlace& words, int count, Sums& sums) {
  F values[kCount];
  scale_values(x, p.scheme, multiplier, values);
  if (p.derivative) {
    to_derivative(p.scheme.element, values);
  } else {
    if constexpr (kStatistics) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        if (k < count) sums.saturated += saturates(values[k], p.scheme.element) ? 1u : 0u;
      }
    }
    round_values(values, p, words);
    if (p.codes == nullptr && p.scheme.rule != ScaleRule::kNone) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) values[k] *= static_cast<F>(factor);
    }
    if constexpr (kStatistics) {
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const F stored = widen<F>(narrow<T>(values[k]));
        const double before = static_cast<double>(x[k]);
        const double error = static_cast<double>(stored - x[k]);
        if (k < count) {
          sums.error += error * error;
          sums.sum += before * before;
          sums.flushed += stored == F(0) && x[k] != F(0) ? 1u : 0u;
          sums.largest = larger(sums.largest, finite_or_zero(magnitude_bits(x[k])));
        }
      }
    }
  }
#pragma unroll
  for (int k = 0; k < kCount; ++k) x[k] = values[k];
}

}  // namespace lsfast::quantization
