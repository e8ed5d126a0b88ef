// CPU kernels of the Lanczos recurrence. Bound by memory: a chunk of all rows stays in cache between the two times it
// is read. Compiled once per instruction set (platform/dispatch.h).
#include "platform/reduction.h"
#include "spectrum/lanes_cpu.inl"
#include "spectrum/recurrence.h"

namespace lsfast::spectrum::LSFAST_ISA {

template <class T>
void dots_range(const DotsParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kUnit = kUnitBytes / static_cast<int64_t>(sizeof(T));
  for (int64_t id = begin; id < end; ++id) {
    const int64_t first = id % p.parts * kUnit;
    const T* const x = static_cast<const T*>(p.x) + id / p.parts * p.n + first;
    const T* const y = static_cast<const T*>(p.y) + id / p.parts * p.n + first;
    p.partial[id] = ordered_sum<double>(
        std::min(kUnit, p.n - first), [&](int64_t i) { return static_cast<double>(x[i]) * static_cast<double>(y[i]); });
  }
}

void dots(const DotsParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, dots_range<scalar_t>(p, begin, end));
}

// q -= sum of a_r row_r and w -= sum of b_r row_r over R rows, one row after the other. What lies a chunk further is
// prefetched: the processor's own prefetcher stops at the end of a page.
template <class T, class S, int R>
LSFAST_HD void subtract_rows(const S* row, int64_t stride, const double* a, const double* b, T* __restrict q,
                             T* __restrict w, int64_t count) {
  T in_q[R];
  T in_w[R];
  for (int r = 0; r < R; ++r) {
    in_q[r] = static_cast<T>(a[r]);
    in_w[r] = static_cast<T>(b[r]);
  }
  for (int r = 0; r < R; ++r) {
    const char* const ahead = reinterpret_cast<const char*>(row + r * stride + kChunk);
    for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(S)); byte += 64) {
      __builtin_prefetch(ahead + byte, 0, 2);
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    T new_q = q[i];
    T new_w = w[i];
    for (int r = 0; r < R; ++r) {
      const T x = from_stored<T>(row[r * stride + i]);
      new_q -= in_q[r] * x;
      new_w -= in_w[r] * x;
    }
    q[i] = new_q;
    w[i] = new_w;
  }
}

template <class T, class S>
void pass_range(const PassParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kUnit = kUnitBytes / static_cast<int64_t>(sizeof(T));
  alignas(64) T q[kChunk];
  alignas(64) T w[kChunk];
  for (int64_t id = begin; id < end; ++id) {
    const int64_t probe = id / p.parts;
    const int64_t unit = id % p.parts;
    const int64_t unit_end = std::min(p.n, (unit + 1) * kUnit);
    const double* const values = p.of(probe);
    const Factors& factors = *reinterpret_cast<const Factors*>(values);
    const double* const in_q = values + Factors::kCount;
    const double* const in_w = in_q + p.count;
    const T scale = static_cast<T>(factors.scale);
    const T of_current = static_cast<T>(factors.current);
    const T of_previous = static_cast<T>(factors.previous);
    double* const sums = p.partial + probe * p.outputs() * p.parts + unit;
    for (int64_t j = 0; j < p.outputs(); ++j) sums[j * p.parts] = 0.0;
    for (int64_t first = unit * kUnit; first < unit_end; first += kChunk) {
      const int64_t count = std::min(kChunk, unit_end - first);
      const int64_t at = probe * p.vector_stride + first;
      T* const current = static_cast<T*>(p.current) + at;
      T* const next = static_cast<T*>(p.next) + at;
      S* const stored = p.stored == nullptr ? nullptr : static_cast<S*>(p.stored) + probe * p.probe_stride + first;
      if (factors.scale == 0.0) {  // no sums of products: what an ended probe is given may be NaN
        std::memset(next, 0, static_cast<size_t>(count) * sizeof(T));
        if (stored != nullptr) std::memset(stored, 0, static_cast<size_t>(count) * sizeof(S));
        continue;
      }
      const T* const product = static_cast<const T*>(p.product) + at;
      const S* const row = static_cast<const S*>(p.rows) + probe * p.probe_stride + first;
      for (int64_t i = 0; i < count; ++i) {
        q[i] = current[i] * scale;
        w[i] = product[i] * scale;
      }
      int64_t j = 0;
      for (; j + 4 <= p.count; j += 4) {
        subtract_rows<T, S, 4>(row + j * p.row_stride, p.row_stride, in_q + j, in_w + j, q, w, count);
      }
      for (; j < p.count; ++j) {
        subtract_rows<T, S, 1>(row + j * p.row_stride, p.row_stride, in_q + j, in_w + j, q, w, count);
      }
      for (int64_t i = 0; i < count; ++i) w[i] -= of_current * q[i];
      if (p.previous != nullptr) {
        const T* const previous = static_cast<const T*>(p.previous) + at;
        for (int64_t i = 0; i < count; ++i) w[i] -= of_previous * previous[i];
      }
      std::memcpy(current, q, static_cast<size_t>(count) * sizeof(T));
      std::memcpy(next, w, static_cast<size_t>(count) * sizeof(T));
      if (stored != nullptr) {
        for (int64_t i = 0; i < count; ++i) stored[i] = to_stored<S>(q[i]);
      }
      for (j = 0; j + 4 <= p.count; j += 4) {
        add_dots<T, S, 4>(row + j * p.row_stride, p.row_stride, w, count, sums + j * p.parts, p.parts);
      }
      for (; j < p.count; ++j) {
        add_dots<T, S, 1>(row + j * p.row_stride, p.row_stride, w, count, sums + j * p.parts, p.parts);
      }
      add_dots<T, T, 1>(q, 0, w, count, sums + p.count * p.parts, p.parts);
      sums[(p.count + 1) * p.parts] +=
          ordered_sum<double>(count, [&](int64_t i) { return static_cast<double>(w[i]) * static_cast<double>(w[i]); });
    }
  }
}

void pass(const PassParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_STORED(p.kind, p.rows_kind, pass_range<scalar_t, stored_t>(p, begin, end));
}

template <class T>
void scale_range(const EndParams& p, int64_t begin, int64_t end) {
  const int64_t blocks = (p.n + kScaleBlock - 1) / kScaleBlock;
  for (int64_t id = begin; id < end; ++id) {
    const double factor = p.norm_factor[id / blocks];
    const int64_t first = id % blocks * kScaleBlock;
    const int64_t count = std::min(kScaleBlock, p.n - first);
    T* const next = static_cast<T*>(p.next) + id / blocks * p.n + first;
    if (factor == 0.0) {  // not a product: what is left of an ended probe may be NaN
      std::memset(next, 0, static_cast<size_t>(count) * sizeof(T));
    } else {
      for (int64_t i = 0; i < count; ++i) next[i] = static_cast<T>(static_cast<double>(next[i]) * factor);
    }
  }
}

void scale(const EndParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, scale_range<scalar_t>(p, begin, end));
}

constexpr RecurrenceKernels kRecurrenceKernels = {dots, pass, scale};

}  // namespace lsfast::spectrum::LSFAST_ISA
