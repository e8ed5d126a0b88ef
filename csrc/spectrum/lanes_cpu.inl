// The lanes of a sum on the CPU, shared by the kernels of this room that reduce; compiled once per instruction set.
#include "numerics/macros.h"

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

}  // namespace lsfast::spectrum::LSFAST_ISA
