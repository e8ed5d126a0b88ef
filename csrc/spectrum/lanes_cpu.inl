// The lanes of a sum on the CPU, shared by the kernels of this room that reduce; compiled once per instruction set.
#pragma once

#include "spectrum/stored.h"

namespace lsfast::spectrum::LSFAST_ISA {

constexpr int kRegisterBytes = LSFAST_VECTOR_BITS > 128 ? LSFAST_VECTOR_BITS / 8 : 16;

// 64 bytes of T, the lanes of every sum: the same lanes, and so the same bits, for every instruction set.
template <class T>
struct Lanes {
  typedef T Register __attribute__((vector_size(kRegisterBytes)));
  static constexpr int kParts = 64 / kRegisterBytes;
  static constexpr int64_t kCount = 64 / sizeof(T);
  Register part[kParts];
};

template <class T>
LSFAST_HD void load(Lanes<T>& lanes, const T* from) {
  std::memcpy(&lanes, from, sizeof(lanes));
}

// Lanes of T from numbers stored in a narrower type.
template <class T, class S>
LSFAST_HD void load(Lanes<T>& lanes, const S* from) {
  T values[Lanes<T>::kCount];
  for (int64_t i = 0; i < Lanes<T>::kCount; ++i) values[i] = from_stored<T>(from[i]);
  std::memcpy(&lanes, values, sizeof(lanes));
}

// A sum of lanes in float64, by halves.
template <class T>
LSFAST_HD double total(const Lanes<T>& lanes) {
  T values[Lanes<T>::kCount];
  std::memcpy(values, &lanes, sizeof(lanes));
  double sums[Lanes<T>::kCount];
  for (int i = 0; i < Lanes<T>::kCount; ++i) sums[i] = static_cast<double>(values[i]);
  for (int half = Lanes<T>::kCount / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}

// sums[r] += row_r . w over at most kChunk elements, for R rows at once: w is loaded once and R chains of additions
// overlap. What lies `ahead` of a row's element is prefetched: no stream of the processor's own runs from row to row.
template <class T, class S, int R>
LSFAST_HD void add_dots(const S* row, int64_t stride, const T* w, int64_t count, double* sums, int64_t sums_stride,
                        int64_t ahead = 0) {
  constexpr int64_t kCount = Lanes<T>::kCount;
  Lanes<T> acc[R];
  std::memset(acc, 0, sizeof(acc));
  int64_t i = 0;
  for (; i + kCount <= count; i += kCount) {
    Lanes<T> x;
    load(x, w + i);
    for (int r = 0; r < R; ++r) {
      Lanes<T> y;
      load(y, row + r * stride + i);
      __builtin_prefetch(row + r * stride + i + ahead, 0, 2);
      for (int part = 0; part < Lanes<T>::kParts; ++part) acc[r].part[part] += y.part[part] * x.part[part];
    }
  }
  if (i < count) {
    T left[kCount] = {};
    std::memcpy(left, w + i, static_cast<size_t>(count - i) * sizeof(T));
    Lanes<T> x;
    load(x, left);
    for (int r = 0; r < R; ++r) {
      S row_left[kCount] = {};
      std::memcpy(row_left, row + r * stride + i, static_cast<size_t>(count - i) * sizeof(S));
      Lanes<T> y;
      load(y, row_left);
      for (int part = 0; part < Lanes<T>::kParts; ++part) acc[r].part[part] += y.part[part] * x.part[part];
    }
  }
  for (int r = 0; r < R; ++r) sums[r * sums_stride] += total(acc[r]);
}

}  // namespace lsfast::spectrum::LSFAST_ISA
