// Implicit QL iteration for a symmetric tridiagonal matrix: eigenvalues and first components of the eigenvectors in
// O(m^2), as Gauss quadrature needs them (Golub & Welsch, Calculation of Gauss quadrature rules, Math. Comp. 23, 1969;
// Bowdler, Martin, Reinsch & Wilkinson, the QR and QL algorithms for symmetric matrices, Numer. Math. 11, 1968).
// Shared by the CPU and CUDA kernels, which give the same bits.
#pragma once

#include <cmath>

#include "numerics/macros.h"
#include "spectrum/tridiagonal.h"

namespace lsfast::spectrum {

constexpr int kMaxSweeps = 60;  // a value per eigenvalue; two are usual

// Arrays of one matrix: contiguous, or `stride` apart so that threads of a warp touch neighbouring words.
struct DenseArray {
  double* data;
  LSFAST_HD double& operator[](int64_t i) const { return data[i]; }
};
struct StridedArray {
  double* data;
  int64_t stride;
  LSFAST_HD double& operator[](int64_t i) const { return data[i * stride]; }
};

// One matrix on its way: `start`, then `rotate` while `next_rotation` says so, then `finish`. In steps, so that a CPU
// thread can take several matrices by turns: a rotation is one chain of a square root and a division, of which the
// processor can overlap several.
template <class Array>
struct TridiagonalQl {
  Array d;  // [size] diagonal; at the end the eigenvalues
  Array e;  // [size] off-diagonal, the last one 0
  Array z;  // [size] first row of the eigenvectors so far
  int64_t matrix;
  int64_t size;
  int64_t first;  // eigenvalues before it are found
  int64_t last;   // of the unreduced block that begins at first
  int64_t i;      // the next rotation is in the plane (i, i + 1); below first: the sweep is done
  int64_t sweeps;
  int exponent;
  bool failed;
  double g;
  double sine;
  double cosine;
  double shift;

  LSFAST_HD void start(const TridiagonalParams& p) {
    const int64_t given = p.steps[matrix];
    size = given < 0 ? 0 : (given < p.m ? given : p.m);
    const double* const alpha = p.alpha + matrix * p.m;
    const double* const beta = p.beta + matrix * p.m;
    double norm = 0.0;
    failed = false;
    for (int64_t j = 0; j < size; ++j) {
      const double row = ::fabs(alpha[j]) + (j + 1 < size ? ::fabs(beta[j]) : 0.0);
      failed = failed || !(row - row == 0.0);
      norm = row > norm ? row : norm;
    }
    // Scaled by a power of two to norm about 1, squares neither overflow nor lose what matters to underflow.
    exponent = 0;
    if (!failed) ::frexp(norm, &exponent);
    exponent = exponent < -1000 ? -1000 : (exponent > 1000 ? 1000 : exponent);
    const double up = power_of_two<double>(-exponent);
    for (int64_t j = 0; j < size; ++j) {
      d[j] = alpha[j] * up;
      e[j] = j + 1 < size ? beta[j] * up : 0.0;
      z[j] = j == 0 ? 1.0 : 0.0;
    }
    first = failed ? size : 0;
    sweeps = 0;
    i = -1;
  }

  // Whether a rotation is left to do; begins the next sweep, or the next eigenvalue, where one is finished.
  LSFAST_HD bool next_rotation() {
    constexpr double kEpsilon = 2.220446049250313e-16;
    constexpr double kTiny = 1e-150;  // its square is still a normal number
    if (first < size && i >= first) return true;
    while (first < size) {
      last = first;
      while (last + 1 < size) {
        const double left = ::fabs(e[last]);
        if (left <= kEpsilon * (::fabs(d[last]) + ::fabs(d[last + 1])) || left <= kTiny) break;
        ++last;
      }
      if (last == first) {
        ++first;
        sweeps = 0;
        continue;
      }
      if (sweeps == kMaxSweeps) {
        failed = true;
        return false;
      }
      ++sweeps;
      // Wilkinson's shift: the eigenvalue of the leading 2 x 2 block nearest to d[first].
      const double half_gap = (d[first + 1] - d[first]) / (2.0 * e[first]);
      const double root = ::sqrt(half_gap * half_gap + 1.0);
      g = d[last] - d[first] + e[first] / (half_gap + (half_gap < 0.0 ? -root : root));
      sine = 1.0;
      cosine = 1.0;
      shift = 0.0;
      i = last - 1;
      return true;
    }
    return false;
  }

  LSFAST_HD void rotate() {
    const double f = sine * e[i];
    const double b = cosine * e[i];
    const double r = ::sqrt(f * f + g * g);
    e[i + 1] = r;
    if (r == 0.0) {  // the matrix splits here: take back the shift and look again
      d[i + 1] -= shift;
      e[last] = 0.0;
      i = -1;
      return;
    }
    const double inverse = 1.0 / r;
    sine = f * inverse;
    cosine = g * inverse;
    const double before = d[i + 1] - shift;
    const double t = (d[i] - before) * sine + 2.0 * cosine * b;
    shift = sine * t;
    d[i + 1] = before + shift;
    g = cosine * t - b;
    const double upper = z[i + 1];
    z[i + 1] = sine * z[i] + cosine * upper;
    z[i] = cosine * z[i] - sine * upper;
    if (--i < first) {
      d[first] -= shift;
      e[first] = g;
      e[last] = 0.0;
    }
  }

  // Ascending nodes and squared first components; beyond the matrix's size the last node again, with weight 0.
  LSFAST_HD void finish(const TridiagonalParams& p) {
    double* const nodes = p.nodes + matrix * p.m;
    double* const weights = p.weights + matrix * p.m;
    const double down = power_of_two<double>(exponent);
    for (int64_t j = 0; j < size; ++j) {  // insertion sort: QL leaves them nearly in order
      const double value = d[j] * down;
      int64_t place = j;
      for (; place > 0 && nodes[place - 1] > value; --place) {
        nodes[place] = nodes[place - 1];
        weights[place] = weights[place - 1];
      }
      nodes[place] = value;
      weights[place] = z[j] * z[j];
    }
    for (int64_t j = size; j < p.m; ++j) {
      nodes[j] = size > 0 ? nodes[size - 1] : 0.0;
      weights[j] = 0.0;
    }
    p.failed[matrix] = failed ? 1 : 0;
  }
};

}  // namespace lsfast::spectrum
