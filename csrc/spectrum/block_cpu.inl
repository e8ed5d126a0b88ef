// CPU kernels for a block of vectors against a basis: a tile of columns of four rows is read from memory once and
// serves every vector of the block from the nearest cache. Compiled once per instruction set (platform/dispatch.h).
#include "spectrum/block.h"
#include "spectrum/lanes_cpu.inl"

namespace lsfast::spectrum::LSFAST_ISA {

constexpr int64_t kVectorsAtOnce = 8;  // whose sums of rows wait on the stack

// s += sum over R rows of c_r row_r, one row after the other.
template <class T, int R>
LSFAST_HD void block_rows(const T* __restrict row, int64_t stride, const double* c, T* __restrict s, int64_t count) {
  T factor[R];
  for (int r = 0; r < R; ++r) factor[r] = static_cast<T>(c[r]);
  for (int64_t i = 0; i < count; ++i) {
    T sum = s[i];
    for (int r = 0; r < R; ++r) sum += factor[r] * row[r * stride + i];
    s[i] = sum;
  }
}

template <class T>
void block_project_range(const BlockProjectParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kUnit = kBlockUnitBytes / static_cast<int64_t>(sizeof(T));
  const int64_t units = p.units();
  alignas(64) T s[kVectorsAtOnce][kChunk];
  for (int64_t unit = begin; unit < end; ++unit) {
    for (int64_t i = 0; p.partial != nullptr && i < p.b * p.s; ++i) p.partial[i * units + unit] = 0.0;
    const int64_t unit_end = std::min(p.n, (unit + 1) * kUnit);
    for (int64_t first = unit * kUnit; first < unit_end; first += kChunk) {
      const int64_t count = std::min(kChunk, unit_end - first);
      const T* const row = static_cast<const T*>(p.rows) + first;
      T* const w = static_cast<T*>(p.block) + first;
      for (int64_t group = 0; p.coefficients != nullptr && group < p.b; group += kVectorsAtOnce) {
        const int64_t vectors = std::min(kVectorsAtOnce, p.b - group);
        const double* const c = p.coefficients + group * p.s;
        for (int64_t v = 0; v < vectors; ++v) std::memset(s[v], 0, static_cast<size_t>(count) * sizeof(T));
        int64_t j = 0;
        for (; j + 4 <= p.s; j += 4) {
          for (int64_t v = 0; v < vectors; ++v) {
            block_rows<T, 4>(row + j * p.rows_stride, p.rows_stride, c + v * p.s + j, s[v], count);
          }
        }
        for (; j < p.s; ++j) {
          for (int64_t v = 0; v < vectors; ++v) {
            block_rows<T, 1>(row + j * p.rows_stride, p.rows_stride, c + v * p.s + j, s[v], count);
          }
        }
        for (int64_t v = 0; v < vectors; ++v) {
          T* const vector = w + (group + v) * p.block_stride;
          for (int64_t i = 0; i < count; ++i) vector[i] -= s[v][i];
        }
      }
      if (p.partial == nullptr) continue;
      double* const sums = p.partial + unit;
      int64_t j = 0;
      for (; j + 4 <= p.s; j += 4) {
        for (int64_t v = 0; v < p.b; ++v) {
          add_dots<T, T, 4>(row + j * p.rows_stride, p.rows_stride, w + v * p.block_stride, count,
                            sums + (v * p.s + j) * units, units, v == 0 ? 4 * p.rows_stride : 0);
        }
      }
      for (; j < p.s; ++j) {
        for (int64_t v = 0; v < p.b; ++v) {
          add_dots<T, T, 1>(row + j * p.rows_stride, p.rows_stride, w + v * p.block_stride, count,
                            sums + (v * p.s + j) * units, units);
        }
      }
    }
  }
}

void block_project(const BlockProjectParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, block_project_range<scalar_t>(p, begin, end));
}

template <class T>
void block_combine_range(const BlockCombineParams& p, int64_t begin, int64_t end) {
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kChunk;
    const int64_t count = std::min(kChunk, p.n - first);
    const T* const row = static_cast<const T*>(p.rows) + first;
    T* const out = static_cast<T*>(p.out) + first;
    T* const target = p.scratch != nullptr ? static_cast<T*>(p.scratch) : out;
    const int64_t stride = p.scratch != nullptr ? p.scratch_columns : p.out_stride;
    for (int64_t i = 0; i < p.p; ++i) {
      const double* const c = p.coefficients + i * p.s;
      T* const s = target + i * stride;
      std::memset(s, 0, static_cast<size_t>(count) * sizeof(T));
      int64_t j = 0;
      for (; j + 4 <= p.s; j += 4) block_rows<T, 4>(row + j * p.rows_stride, p.rows_stride, c + j, s, count);
      for (; j < p.s; ++j) block_rows<T, 1>(row + j * p.rows_stride, p.rows_stride, c + j, s, count);
    }
    for (int64_t i = 0; p.scratch != nullptr && i < p.p; ++i) {
      std::memcpy(out + i * p.out_stride, target + i * stride, static_cast<size_t>(count) * sizeof(T));
    }
  }
}

void block_combine(const BlockCombineParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, block_combine_range<scalar_t>(p, begin, end));
}

constexpr BlockKernels kBlockKernels = {block_project, block_combine};

}  // namespace lsfast::spectrum::LSFAST_ISA
