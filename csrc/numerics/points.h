// Points around the parameters: theta + sum_k c_k d_k, formed where they are used, in the order k = 0, 1, ... and
// without fused multiply-add. The 16-bit types are computed in float32 and rounded once.
#pragma once

#include "numerics/half.h"

namespace lsfast {

// One point.
template <class T>
struct PointForm {
  const T* theta;        // [n]
  const T* directions;   // [d, n]
  const T* coordinates;  // [d]
  int64_t n;
  int64_t d;
};

// With `count` directions, which the compiler knows.
template <int count, class T>
LSFAST_HD void form_few(const PointForm<T>& form, int64_t first, int64_t length, T* __restrict values) {
  using A = Arithmetic<T>;
  const T* const theta = form.theta + first;
  const T* const d0 = form.directions + first;
  const T* const d1 = count > 1 ? d0 + form.n : d0;
  const T* const d2 = count > 2 ? d1 + form.n : d0;
  const A c0 = widen(form.coordinates[0]);
  const A c1 = widen(form.coordinates[count > 1 ? 1 : 0]);
  const A c2 = widen(form.coordinates[count > 2 ? 2 : 0]);
  for (int64_t i = 0; i < length; ++i) {
    A value = widen(theta[i]) + c0 * widen(d0[i]);
    if constexpr (count > 1) value = value + c1 * widen(d1[i]);
    if constexpr (count > 2) value = value + c2 * widen(d2[i]);
    values[i] = narrow<T>(value);
  }
}

constexpr int64_t kFormedAtOnce = 64;

// For length <= kFormedAtOnce.
template <class T>
LSFAST_HD void form_part(const PointForm<T>& form, int64_t first, int64_t length, T* __restrict values) {
  using A = Arithmetic<T>;
  A sum[kFormedAtOnce];
  for (int64_t i = 0; i < length; ++i) sum[i] = widen(form.theta[first + i]);
  for (int64_t k = 0; k < form.d; ++k) {
    const A c = widen(form.coordinates[k]);
    const T* const direction = form.directions + k * form.n + first;
    for (int64_t i = 0; i < length; ++i) sum[i] = sum[i] + c * widen(direction[i]);
  }
  for (int64_t i = 0; i < length; ++i) values[i] = narrow<T>(sum[i]);
}

template <class T>
LSFAST_HD void form_many(const PointForm<T>& form, int64_t first, int64_t length, T* __restrict values) {
  int64_t done = 0;
  for (; done + kFormedAtOnce <= length; done += kFormedAtOnce) {
    form_part(form, first + done, kFormedAtOnce, values + done);
  }
  if (done < length) form_part(form, first + done, length - done, values + done);
}

// values[i] = number first + i of the point, in loops that the compiler vectorizes.
template <class T>
LSFAST_HD void form_numbers(const PointForm<T>& form, int64_t first, int64_t length, T* values) {
  switch (form.d) {
    case 1:
      return form_few<1>(form, first, length, values);
    case 2:
      return form_few<2>(form, first, length, values);
    case 3:
      return form_few<3>(form, first, length, values);
    default:
      return form_many(form, first, length, values);
  }
}

// g points of tensors whose type is known at run time.
struct PointSet {
  const void* theta;        // [n]
  const void* directions;   // [d, n]
  const void* coordinates;  // [g, d]
  int64_t n;
  int64_t d;

  template <class T>
  LSFAST_HD PointForm<T> point(int64_t i) const {
    return {static_cast<const T*>(theta), static_cast<const T*>(directions), static_cast<const T*>(coordinates) + i * d,
            n, d};
  }
};

}  // namespace lsfast
