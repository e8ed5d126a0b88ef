// CPU kernels of batch, group and instance normalization: sums over planes (or columns, with channels last), and the
// pass that is linear in the tensors. A unit is taken for all k rows while x is in cache. Formulas: normalization.h.
#include "curvature/normalization.h"
#include "platform/reduction.h"

namespace lsfast::curvature::LSFAST_ISA {

// ---- planes of `size` neighbours ----------------------------------------------------------------------------------

constexpr int64_t kNormRun = 4096;  // elements summed in F before the sum goes on in float64

template <class T, int kSums>
void plane_sums(const ChannelNormParams& p, int64_t unit) {
  using F = Arithmetic<T>;
  const int64_t sample = unit / p.channels;
  const int64_t channel = unit % p.channels;
  const T* const x = element<T>(p.x, unit * p.size);
  const T* const y = element<T>(p.y, unit * p.size);
  const F mean = static_cast<const F*>(p.mean)[(p.groups == 1 ? 0 : sample) * p.channels + channel];
  for (int64_t j = 0; j < p.k; ++j) {
    const T* const a = element<T>(p.a, j * p.a_stride + unit * p.size);
    double total[kSums] = {};
    for (int64_t first = 0; first < p.size; first += kNormRun) {
      F sums[kSums];
      ordered_sums<F, kSums>(std::min(kNormRun, p.size - first), sums, [&](int64_t i, F* term) {
        term[0] = widen(a[first + i]);
        term[1] = widen(a[first + i]) * (widen(x[first + i]) - mean);
        if constexpr (kSums == 3) term[2] = widen(a[first + i]) * widen(y[first + i]);
      });
      for (int s = 0; s < kSums; ++s) total[s] += static_cast<double>(sums[s]);
    }
    for (int64_t s = 0; s < kSums; ++s) {  // samples = groups * parts
      static_cast<F*>(p.partial)[((s * p.k + j) * p.samples + sample) * p.channels + channel] =
          static_cast<F>(total[s]);
    }
  }
}

// out_i = c0 (x_i - mean) + c1 + c2 a_i + c3 b_i + c4 y_i. The coefficients are the same for all i, or one for each.
template <class T, bool kA, bool kBoth, class Coefficient>
LSFAST_HD void linear_run(int64_t count, const T* x, const T* a, const T* b, const T* y, T* out,
                          const Coefficient& at) {
  using F = Arithmetic<T>;
#pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    F value = at(0, i) * (widen(x[i]) - at(5, i)) + at(1, i);
    if constexpr (kA) value += at(2, i) * widen(a[i]);
    if constexpr (kBoth) value += at(3, i) * widen(b[i]) + at(4, i) * widen(y[i]);
    out[i] = narrow<T>(value);
  }
}

template <class T, bool kA, bool kBoth>
void plane_linear(const ChannelNormParams& p, int64_t unit) {
  using F = Arithmetic<T>;
  const int64_t offset = unit * p.size;
  const int64_t place = p.groups == 1 ? unit % p.channels : unit;
  const int64_t places = p.groups * p.channels;
  for (int64_t j = 0; j < p.k; ++j) {
    F c[6];
    for (int t = 0; t < 5; ++t) c[t] = static_cast<const F*>(p.coefficients)[(t * p.k + j) * places + place];
    c[5] = static_cast<const F*>(p.mean)[place];
    linear_run<T, kA, kBoth>(p.size, element<T>(p.x, offset), element<T>(p.a, j * p.a_stride + offset),
                             element<T>(p.b, j * p.b_stride + offset), element<T>(p.y, offset),
                             static_cast<T*>(p.out) + j * p.samples * p.channels * p.size + offset,
                             [&](int t, int64_t) { return c[t]; });
  }
}

// ---- columns of [rows, channels] -----------------------------------------------------------------------------------

// Up to kNormWidth neighbours are worked on together: a block of channels, or several rows of few channels.
constexpr int64_t kNormWidth = 256;

// Calls run(first element, elements, channel of the first) for the runs of a chunk of rows, in order: `width` is the
// length of all but the last.
template <class Run>
LSFAST_HD void column_runs(const ChannelNormParams& p, int64_t chunk, int64_t channel, int64_t width, const Run& run) {
  const int64_t first = chunk * kNormRowChunk * p.channels;
  const int64_t last = std::min(p.samples, (chunk + 1) * kNormRowChunk) * p.channels;
  if (width >= p.channels) {
    for (int64_t i = first; i < last; i += width) run(i, std::min(width, last - i));
  } else {
    for (int64_t i = first + channel; i < last; i += p.channels) run(i, width);
  }
}

// The length of runs that begin at `channel`.
LSFAST_HD int64_t run_width(const ChannelNormParams& p, int64_t channel) {
  if (p.channels <= kNormWidth) return kNormWidth / p.channels * p.channels;
  return std::min(kNormWidth, p.channels - channel);
}

// values[i] = from[i], repeated for every row of a run.
template <class F>
LSFAST_HD void fill_run(F* values, const F* from, int64_t width, int64_t channels) {
  const int64_t distinct = std::min(width, channels);
  for (int64_t i = 0; i < distinct; ++i) values[i] = from[i];
  for (int64_t i = distinct; i < width; ++i) values[i] = values[i - distinct];
}

template <class T, int kSums>
void column_sums(const ChannelNormParams& p, int64_t chunk) {
  using F = Arithmetic<T>;
  for (int64_t channel = 0; channel < p.channels; channel += kNormWidth) {
    const int64_t width = run_width(p, channel);
    F mean[kNormWidth];
    fill_run(mean, element<F>(p.mean, channel), width, p.channels);
    for (int64_t j = 0; j < p.k; ++j) {
      F sums[3][kNormWidth] = {};
      column_runs(p, chunk, channel, width, [&](int64_t first, int64_t count) {
        const T* const x = element<T>(p.x, first);
        const T* const y = element<T>(p.y, first);
        const T* const a = element<T>(p.a, j * p.a_stride + first);
        for (int64_t i = 0; i < count; ++i) {
          sums[0][i] += widen(a[i]);
          sums[1][i] += widen(a[i]) * (widen(x[i]) - mean[i]);
          if constexpr (kSums == 3) sums[2][i] += widen(a[i]) * widen(y[i]);
        }
      });
      const int64_t distinct = std::min(width, p.channels);
      for (int64_t s = 0; s < kSums; ++s) {
        F* const partial = static_cast<F*>(p.partial) + ((s * p.k + j) * p.parts() + chunk) * p.channels + channel;
        for (int64_t i = 0; i < distinct; ++i) partial[i] = sums[s][i];
        for (int64_t from = distinct; from < width; from += distinct) {
          for (int64_t i = 0; i < distinct; ++i) partial[i] += sums[s][from + i];
        }
      }
    }
  }
}

template <class T, bool kA, bool kBoth>
void column_linear(const ChannelNormParams& p, int64_t chunk) {
  using F = Arithmetic<T>;
  for (int64_t channel = 0; channel < p.channels; channel += kNormWidth) {
    const int64_t width = run_width(p, channel);
    for (int64_t j = 0; j < p.k; ++j) {
      F c[6][kNormWidth];
      for (int t = 0; t < 5; ++t) {
        fill_run(c[t], element<F>(p.coefficients, (t * p.k + j) * p.channels + channel), width, p.channels);
      }
      fill_run(c[5], element<F>(p.mean, channel), width, p.channels);
      column_runs(p, chunk, channel, width, [&](int64_t first, int64_t count) {
        linear_run<T, kA, kBoth>(count, element<T>(p.x, first), element<T>(p.a, j * p.a_stride + first),
                                 element<T>(p.b, j * p.b_stride + first), element<T>(p.y, first),
                                 static_cast<T*>(p.out) + j * p.samples * p.channels + first,
                                 [&](int t, int64_t i) { return c[t][i]; });
      });
    }
  }
}

// ---- ranges --------------------------------------------------------------------------------------------------------

template <class T, int kSums>
void channel_sums_range(const ChannelNormParams& p, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    p.by_columns() ? column_sums<T, kSums>(p, unit) : plane_sums<T, kSums>(p, unit);
  }
}

template <class T, bool kA, bool kBoth>
void channel_linear_range(const ChannelNormParams& p, int64_t begin, int64_t end) {
  for (int64_t unit = begin; unit < end; ++unit) {
    p.by_columns() ? column_linear<T, kA, kBoth>(p, unit) : plane_linear<T, kA, kBoth>(p, unit);
  }
}

template <class T>
void channel_sums_of(const ChannelNormParams& p, int64_t begin, int64_t end) {
  p.y == nullptr ? channel_sums_range<T, 2>(p, begin, end) : channel_sums_range<T, 3>(p, begin, end);
}

template <class T>
void channel_linear_of(const ChannelNormParams& p, int64_t begin, int64_t end) {
  if (p.a == nullptr) return channel_linear_range<T, false, false>(p, begin, end);
  p.b == nullptr ? channel_linear_range<T, true, false>(p, begin, end)
                 : channel_linear_range<T, true, true>(p, begin, end);
}

void channel_norm_sums(const ChannelNormParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, channel_sums_of<scalar_t>(p, begin, end));
}

void channel_norm_linear(const ChannelNormParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, channel_linear_of<scalar_t>(p, begin, end));
}

}  // namespace lsfast::curvature::LSFAST_ISA
