// CPU kernels of the spectrum room. Bound by memory: a basis row is read once by each pass, in pieces that stay in
// cache where a pass needs them twice. Compiled once per instruction set (platform/dispatch.h).
#include "platform/reduction.h"
#include "spectrum/lanes_cpu.inl"
#include "spectrum/recurrence.h"
#include "spectrum/spectrum.h"
#include "spectrum/tridiagonal.h"

namespace lsfast::spectrum::LSFAST_ISA {

// Lane sums are made in T over kChunk elements, then added in float64. With eps the unit roundoff of T, at most
// 1024 / 16 = 64 additions (128 for float64) lie behind a lane, so a sum is off by at most 65 eps sum |x_i y_i|
// whatever n is, and by about 8 eps / sqrt(n) |x||y| for errors that are independent.
constexpr int64_t kChunk = 1024;

// sums[r] += rows[r] . w for R rows at once, so that w is loaded once and R chains of additions overlap. What lies
// `ahead` elements further is prefetched: the processor's own prefetcher stops at the end of a page.
template <class T, int R>
LSFAST_HD void add_dots(const T* row, int64_t stride, const T* w, int64_t count, double* sums, int64_t sums_stride,
                        int64_t ahead) {
  constexpr int64_t kCount = Lanes<T>::kCount;
  constexpr int kParts = Lanes<T>::kParts;
  for (int64_t first = 0; first < count; first += kChunk) {
    const int64_t end = std::min(count, first + kChunk);
    Lanes<T> acc[R];
    std::memset(acc, 0, sizeof(acc));
    int64_t i = first;
    for (; i + kCount <= end; i += kCount) {
      Lanes<T> x;
      load(x, w + i);
      for (int r = 0; r < R; ++r) {
        Lanes<T> y;
        load(y, row + r * stride + i);
        __builtin_prefetch(row + r * stride + i + ahead, 0, 2);
        for (int part = 0; part < kParts; ++part) acc[r].part[part] += y.part[part] * x.part[part];
      }
    }
    if (i < end) {
      T left[kCount] = {};
      std::memcpy(left, w + i, static_cast<size_t>(end - i) * sizeof(T));
      Lanes<T> x;
      load(x, left);
      for (int r = 0; r < R; ++r) {
        T row_left[kCount] = {};
        std::memcpy(row_left, row + r * stride + i, static_cast<size_t>(end - i) * sizeof(T));
        Lanes<T> y;
        load(y, row_left);
        for (int part = 0; part < kParts; ++part) acc[r].part[part] += y.part[part] * x.part[part];
      }
    }
    for (int r = 0; r < R; ++r) sums[r * sums_stride] += total(acc[r]);
  }
}

// s += sum over R rows of c_r row_r, one row after the other.
template <class T, int R>
LSFAST_HD void add_rows(const T* __restrict row, int64_t stride, const double* c, T* __restrict s, int64_t count) {
  T factor[R];
  for (int r = 0; r < R; ++r) factor[r] = static_cast<T>(c[r]);
  for (int64_t i = 0; i < count; ++i) {
    T sum = s[i];
    for (int r = 0; r < R; ++r) sum += factor[r] * row[r * stride + i];
    s[i] = sum;
  }
}

template <class T>
void orthogonalize_range(const OrthogonalizeParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kUnit = kUnitBytes / static_cast<int64_t>(sizeof(T));
  constexpr int64_t kCacheBytes = int64_t{1} << 19;  // what a pass that reads rows twice may hold of them, in L2
  const int64_t units = p.units();
  const int64_t outputs = p.outputs();
  const bool subtract = p.coefficients != nullptr;
  int64_t tile = kUnit;
  while (subtract && p.project && tile > kChunk && tile * p.count * static_cast<int64_t>(sizeof(T)) > kCacheBytes) {
    tile /= 2;
  }
  alignas(64) T s[kUnit];
  for (int64_t id = begin; id < end; ++id) {
    const int64_t probe = id / units;
    const int64_t unit = id % units;
    const int64_t unit_end = std::min(p.n, (unit + 1) * kUnit);
    const T* const basis = static_cast<const T*>(p.basis) + probe * p.rows * p.n;
    double* const sums = p.partial + probe * outputs * units + unit;
    for (int64_t j = 0; j < outputs; ++j) sums[j * units] = 0.0;
    for (int64_t first = unit * kUnit; first < unit_end; first += tile) {
      const int64_t count = std::min(tile, unit_end - first);
      const T* const row = basis + first;
      const T* w = static_cast<const T*>(p.w) + probe * p.n + first;
      if (subtract) {
        const double* const c = p.coefficients + probe * p.count;
        std::memset(s, 0, static_cast<size_t>(count) * sizeof(T));
        int64_t j = 0;
        for (; j + 4 <= p.count; j += 4) add_rows<T, 4>(row + j * p.n, p.n, c + j, s, count);
        for (; j < p.count; ++j) add_rows<T, 1>(row + j * p.n, p.n, c + j, s, count);
        T* const out = static_cast<T*>(p.out) + probe * p.n + first;
        for (int64_t i = 0; i < count; ++i) out[i] = w[i] - s[i];
        w = out;
      }
      if (!p.project) {
        sums[0] += ordered_sum<double>(
            count, [&](int64_t i) { return static_cast<double>(w[i]) * static_cast<double>(w[i]); });
        continue;
      }
      const int64_t ahead = subtract ? tile : 512;
      int64_t j = 0;
      for (; j + 4 <= p.count; j += 4) add_dots<T, 4>(row + j * p.n, p.n, w, count, sums + j * units, units, ahead);
      for (; j < p.count; ++j) add_dots<T, 1>(row + j * p.n, p.n, w, count, sums + j * units, units, ahead);
    }
  }
}

void orthogonalize(const OrthogonalizeParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, orthogonalize_range<scalar_t>(p, begin, end));
}

template <class T>
void advance_range(const AdvanceParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.n + kAdvanceBlock - 1) / kAdvanceBlock;
  for (int64_t id = begin; id < end; ++id) {
    const int64_t probe = id / blocks;
    const int64_t block = id % blocks;
    const Step step = decide_step(p, probe);
    if (block == 0) record_step(p, probe, step);
    if (p.row < 0) continue;
    const int64_t first = block * kAdvanceBlock;
    const int64_t count = std::min(kAdvanceBlock, p.n - first);
    T* const w = static_cast<T*>(p.w) + probe * p.n + first;
    T* const next = static_cast<T*>(p.basis) + (probe * p.rows + p.row) * p.n + first;
    if (step.factor == 0.0) {  // not a product: what an ended probe holds may be NaN
      std::memset(w, 0, static_cast<size_t>(count) * sizeof(T));
    } else {
      for (int64_t i = 0; i < count; ++i) w[i] = static_cast<T>(static_cast<double>(w[i]) * step.factor);
    }
    std::memcpy(next, w, static_cast<size_t>(count) * sizeof(T));
  }
}

void advance(const AdvanceParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, advance_range<scalar_t>(p, begin, end));
}

void tridiagonal(const TridiagonalParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kTurns = 8;  // matrices a thread works on by turns: enough to hide the latency of a rotation
  TridiagonalQl<DenseArray> turn[kTurns];
  int64_t next = begin;
  int64_t busy = 0;
  const auto take = [&](TridiagonalQl<DenseArray>& ql) {
    while (next < end) {
      ql.matrix = next++;
      ql.d.data = p.scratch + ql.matrix * p.m;
      ql.e.data = p.scratch + (p.k + ql.matrix) * p.m;
      ql.z.data = p.scratch + (2 * p.k + ql.matrix) * p.m;
      ql.start(p);
      if (ql.next_rotation()) return true;
      ql.finish(p);
    }
    return false;
  };
  while (busy < kTurns && take(turn[busy])) ++busy;
  while (busy > 0) {
    for (int64_t t = 0; t < busy; ++t) {
      turn[t].rotate();
      if (turn[t].next_rotation()) continue;
      turn[t].finish(p);
      if (!take(turn[t])) turn[t--] = turn[--busy];
    }
  }
}

constexpr CpuKernels kKernels = {orthogonalize, advance, tridiagonal};

}  // namespace lsfast::spectrum::LSFAST_ISA
