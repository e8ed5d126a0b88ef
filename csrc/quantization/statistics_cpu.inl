// Statistics of a tile, from the numbers that quantization has in the cache anyway: before rounding (what saturates)
// and after (what is lost). For a tensor in 16 partial sums per unit, so that the additions vectorize; for rows and
// blocks one element at a time into the sums of its row or block. The order of additions depends on shapes alone.
#pragma once

#include "quantization/tile_cpu.inl"

namespace lsfast::quantization::LSFAST_ISA {

struct Sums {
  double error[kGroup] = {};
  double sum[kGroup] = {};
  int64_t saturated = 0;
  int64_t flushed = 0;
  uint32_t largest = 0;

  void write(double* row) const {
    double parts[2][kGroup];
    for (int k = 0; k < kGroup; ++k) {
      parts[0][k] = error[k];
      parts[1][k] = sum[k];
    }
    for (int half = kGroup / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) {
        parts[0][k] += parts[0][k + half];
        parts[1][k] += parts[1][k + half];
      }
    }
    row[kSaturated] = static_cast<double>(saturated);
    row[kFlushed] = static_cast<double>(flushed);
    row[kSquaredError] = parts[0][0];
    row[kSquaredSum] = parts[1][0];
    row[kLargest] = static_cast<double>(bit_cast<float>(largest));
  }
};

template <class F>
int32_t count_saturated(const F* values, int count, const ElementFormat& format) {
  int32_t lane[kGroup] = {};
  for (int g = 0; g < count; g += kGroup) {
    for (int i = 0; i < kGroup; ++i) lane[i] += saturates(values[g + i], format) ? 1 : 0;
  }
  int32_t sum = 0;
  for (const int32_t part : lane) sum += part;
  return sum;
}

// count: a multiple of 16, padded with zeros, which add nothing.
template <class T, class F>
void include_rounded(const F* __restrict x, const F* __restrict values, int count, Sums& sums) {
  double errors[kGroup], squares[kGroup];
  int32_t flushed[kGroup] = {};
  std::memcpy(errors, sums.error, sizeof(errors));
  std::memcpy(squares, sums.sum, sizeof(squares));
  for (int g = 0; g < count; g += kGroup) {
    for (int i = 0; i < kGroup; ++i) {
      const F stored = widen<F>(narrow<T>(values[g + i]));
      const double before = static_cast<double>(x[g + i]);
      const double error = static_cast<double>(stored - x[g + i]);
      errors[i] += error * error;
      squares[i] += before * before;
      flushed[i] += (stored == F(0)) & (x[g + i] != F(0)) ? 1 : 0;
    }
  }
  std::memcpy(sums.error, errors, sizeof(errors));
  std::memcpy(sums.sum, squares, sizeof(squares));
  for (const int32_t part : flushed) sums.flushed += part;
}

// The largest magnitude of a tile: that of its blocks, where they have been looked at and all are finite.
template <class F>
void include_largest(const F* x, int count, const uint32_t* block_amax, int blocks, Sums& sums) {
  uint32_t largest = 0u;
  for (int b = 0; b < blocks; ++b) largest = largest > block_amax[b] ? largest : block_amax[b];
  if (blocks == 0 || largest >= kFloat32Infinity) largest = largest_within(x, count, kLargestFinite);
  sums.largest = sums.largest > largest ? sums.largest : largest;
}

// Where the statistics of a tile's elements go when they are wanted for each row or block.
struct Segments {
  double* rows;
  bool by_row;
  int64_t line;      // of the tile's first row
  int64_t position;  // along the block axis, of the tile's first element
  int64_t column;
  int64_t band;
};

inline double* segment_of(const Plan& plan, const Segments& to, int row, int column) {
  const int64_t position = to.position + (plan.columns ? row : column);
  const int64_t inner = plan.columns ? to.column + column : 0;
  const int64_t block = to.band * plan.length_blocks() + position / plan.block_length;
  return to.rows + ((to.by_row ? to.line : block) * plan.inner + inner) * kStatistics;
}

template <class F>
void segments_before(const Plan& plan, const Segments& to, const TilePlace& at, const F* values,
                     const ElementFormat& format) {
  for (int row = 0; row < at.rows; ++row) {
    for (int c = 0; c < at.columns; ++c) {
      segment_of(plan, to, row, c)[kSaturated] += saturates(values[row * at.pitch + c], format) ? 1.0 : 0.0;
    }
  }
}

template <class T, class F>
void segments_after(const Plan& plan, const Segments& to, const TilePlace& at, const F* x, const F* values) {
  for (int row = 0; row < at.rows; ++row) {
    for (int c = 0; c < at.columns; ++c) {
      double* const sums = segment_of(plan, to, row, c);
      const F before = x[row * at.pitch + c];
      const F stored = widen<F>(narrow<T>(values[row * at.pitch + c]));
      const double error = static_cast<double>(stored - before);
      sums[kFlushed] += stored == F(0) && before != F(0) ? 1.0 : 0.0;
      sums[kSquaredError] += error * error;
      sums[kSquaredSum] += static_cast<double>(before) * static_cast<double>(before);
      const int32_t bits = magnitude_bits(before);
      const double magnitude = bits < 0x7f800000 ? static_cast<double>(bit_cast<float>(bits)) : 0.0;
      sums[kLargest] = sums[kLargest] > magnitude ? sums[kLargest] : magnitude;
    }
  }
}

}  // namespace lsfast::quantization::LSFAST_ISA
