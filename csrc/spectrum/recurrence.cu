// CUDA kernels of the Lanczos recurrence. Bound by memory; sums are made in stages of fixed order (a thread's elements,
// lanes, tiles of a block, warps; then blocks), so a result is the same from run to run and on every device.
#include "platform/launch.h"
#include "spectrum/recurrence.h"
#include "spectrum/step.h"
#include "spectrum/stored.h"

namespace lsfast::spectrum {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarpSize;
constexpr int kTogether = 8;                    // sums that a warp makes at once
constexpr int64_t kSharedForRows = 100 * 1024;  // two blocks of a multiprocessor with 228 KiB

// The sum over the block, in every thread.
__device__ __forceinline__ double block_sum(double value) {
  __shared__ double of_warp[kWarps];
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % kWarpSize == 0) of_warp[threadIdx.x / kWarpSize] = value;
  __syncthreads();
  double sum = 0.0;
  for (int warp = 0; warp < kWarps; ++warp) sum += of_warp[warp];
  return sum;
}

// Lane l is left with the sum over the warp of value[l / 4]: halves are exchanged, 9 shuffles in place of 40.
__device__ __forceinline__ double warp_sums(double (&value)[kTogether], int lane) {
#pragma unroll
  for (int half = kTogether / 2, offset = kWarpSize / 2; half > 0; half /= 2, offset /= 2) {
    const bool upper = (lane & offset) != 0;
#pragma unroll
    for (int i = 0; i < half; ++i) {
      const double given = upper ? value[i] : value[i + half];
      const double kept = upper ? value[i + half] : value[i];
      value[i] = kept + __shfl_xor_sync(kFullWarp, given, offset);
    }
  }
  double sum = value[0];
  sum += __shfl_xor_sync(kFullWarp, sum, 2);
  sum += __shfl_xor_sync(kFullWarp, sum, 1);
  return sum;
}

// Grid: (parts, k). Bytes: x and y once.
template <class T>
__global__ void __launch_bounds__(kThreads) dots_kernel(DotsParams p) {
  const T* const x = static_cast<const T*>(p.x) + blockIdx.y * p.n;
  const T* const y = static_cast<const T*>(p.y) + blockIdx.y * p.n;
  double sum = 0.0;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < p.n; i += gridDim.x * kThreads) {
    sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) p.partial[blockIdx.y * p.parts + blockIdx.x] = sum;
}

// sums[i] = sum over parts of partial[i, part]. Grid: one block for each i.
__global__ void __launch_bounds__(kThreads) combine_kernel(const double* partial, double* sums, int64_t parts) {
  double sum = 0.0;
  for (int64_t part = threadIdx.x; part < parts; part += kThreads) sum += partial[blockIdx.x * parts + part];
  sum = block_sum(sum);
  if (threadIdx.x == 0) sums[blockIdx.x] = sum;
}

// Grid: k.
__global__ void __launch_bounds__(kThreads) begin_kernel(BeginParams p) {
  const int64_t probe = blockIdx.x;
  const double* const c = p.defect + probe * p.capacity;
  double c_squared = 0.0;
  double c_T_c = 0.0;
  for (int64_t i = threadIdx.x; i < p.count; i += kThreads) {
    c_squared += c[i] * c[i];
    c_T_c += c[i] * projected(p, probe, i);
  }
  c_squared = block_sum(c_squared);
  c_T_c = block_sum(c_T_c);
  const Factors factors = begin_step(p, probe, c_squared, c_T_c);
  double* const values = p.of(probe);
  if (threadIdx.x == 0) {
    values[0] = factors.scale;
    values[1] = factors.current;
    values[2] = factors.previous;
    values[3] = factors.alpha;
  }
  for (int64_t i = threadIdx.x; i < p.count; i += kThreads) {
    values[Factors::kCount + i] = c[i] * factors.scale;
    values[Factors::kCount + p.count + i] = projected(p, probe, i) * factors.scale;
  }
}

// Grid: (parts, k); a block takes tiles of kThreads * kWidth columns by turns. Bytes: every row once (the first
// `cached` rows of a tile wait in shared memory for their projections, further ones are read again, from L2), the
// current vector read and written, the product and the previous vector read, the next one written. A thread sums kWidth
// products in T, everything above that is summed in float64.
template <class T, class S, int kWidth>
__global__ void __launch_bounds__(kThreads) pass_kernel(PassParams p, int64_t cached) {
  using Vector = Pack<T, kWidth>;
  using Row = Pack<S, kWidth>;
  constexpr int64_t kTile = kThreads * kWidth;
  LSFAST_DYNAMIC_SHARED(unsigned char, shared);
  Row* const rows_here = reinterpret_cast<Row*>(shared);  // [cached, kThreads]
  double* const sums = reinterpret_cast<double*>(shared + cached * kTile * static_cast<int64_t>(sizeof(S)));
  const int64_t probe = blockIdx.y;
  const int64_t outputs = p.outputs();
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  const double* const values = p.of(probe);
  const bool live = values[0] != 0.0;
  const T scale = static_cast<T>(values[0]);
  const T of_current = static_cast<T>(values[1]);
  const T of_previous = static_cast<T>(values[2]);
  const double* const in_q = values + Factors::kCount;
  const double* const in_w = in_q + p.count;
  const S* const rows = static_cast<const S*>(p.rows) + probe * p.probe_stride;
  for (int64_t i = threadIdx.x; i < kWarps * outputs; i += kThreads) sums[i] = 0.0;
  __syncthreads();

  for (int64_t first = blockIdx.x * kTile; first < p.n; first += gridDim.x * kTile) {
    const int64_t at = first + static_cast<int64_t>(threadIdx.x) * kWidth;
    const bool inside = at < p.n;
    const int64_t in_vector = probe * p.vector_stride + at;
    Vector q{};
    Vector w{};
    if (inside && live) {  // no products where it is not: what an ended probe is given may be NaN
      q = *reinterpret_cast<const Vector*>(static_cast<const T*>(p.current) + in_vector);
      w = *reinterpret_cast<const Vector*>(static_cast<const T*>(p.product) + in_vector);
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) {
      q.element[e] *= scale;
      w.element[e] *= scale;
    }
#pragma unroll 4
    for (int64_t r = 0; r < p.count; ++r) {
      const T a = static_cast<T>(in_q[r]);
      const T b = static_cast<T>(in_w[r]);
      Row row{};
      if (inside && live) row = *reinterpret_cast<const Row*>(rows + r * p.row_stride + at);
      if (r < cached) rows_here[r * kThreads + threadIdx.x] = row;
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        const T x = from_stored<T>(row.element[e]);
        q.element[e] -= a * x;
        w.element[e] -= b * x;
      }
    }
#pragma unroll
    for (int e = 0; e < kWidth; ++e) w.element[e] -= of_current * q.element[e];
    if (p.previous != nullptr && inside && live) {
      const Vector previous = *reinterpret_cast<const Vector*>(static_cast<const T*>(p.previous) + in_vector);
#pragma unroll
      for (int e = 0; e < kWidth; ++e) w.element[e] -= of_previous * previous.element[e];
    }
    if (inside) {
      if (live) *reinterpret_cast<Vector*>(static_cast<T*>(p.current) + in_vector) = q;
      *reinterpret_cast<Vector*>(static_cast<T*>(p.next) + in_vector) = w;
      if (p.stored != nullptr) {
        Row row;
#pragma unroll
        for (int e = 0; e < kWidth; ++e) row.element[e] = to_stored<S>(q.element[e]);
        *reinterpret_cast<Row*>(static_cast<S*>(p.stored) + probe * p.probe_stride + at) = row;
      }
    }
    for (int64_t group = 0; group < outputs; group += kTogether) {
      double value[kTogether];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int64_t output = group + i;
        value[i] = 0.0;
        if (output < p.count) {
          Row row{};
          if (output < cached) {
            row = rows_here[output * kThreads + threadIdx.x];
          } else if (inside && live) {
            row = *reinterpret_cast<const Row*>(rows + output * p.row_stride + at);
          }
          T dot = T(0);
#pragma unroll
          for (int e = 0; e < kWidth; ++e) dot += from_stored<T>(row.element[e]) * w.element[e];
          value[i] = static_cast<double>(dot);
        } else if (output < outputs) {
#pragma unroll
          for (int e = 0; e < kWidth; ++e) {
            const double other = static_cast<double>(output == p.count ? q.element[e] : w.element[e]);
            value[i] += other * static_cast<double>(w.element[e]);
          }
        }
      }
      const double sum = warp_sums(value, lane);
      const int64_t output = group + lane / (kWarpSize / kTogether);
      if (lane % (kWarpSize / kTogether) == 0 && output < outputs) sums[warp * outputs + output] += sum;
    }
  }
  __syncthreads();
  for (int64_t output = threadIdx.x; output < outputs; output += kThreads) {
    double sum = 0.0;
    for (int i = 0; i < kWarps; ++i) sum += sums[i * outputs + output];
    p.partial[(probe * outputs + output) * p.parts + blockIdx.x] = sum;
  }
}

// Grid: k.
__global__ void __launch_bounds__(kThreads) end_kernel(EndParams p) {
  const int64_t probe = blockIdx.x;
  const double* const d = p.sums + probe * (p.count + 2);
  double d_squared = 0.0;
  for (int64_t i = threadIdx.x; i < p.count; i += kThreads) d_squared += d[i] * d[i];
  const StepEnd end = end_step(p, probe, block_sum(d_squared));
  double* const defect = p.defect + probe * p.capacity;
  for (int64_t i = threadIdx.x; i < p.count + (p.append ? 1 : 0); i += kThreads) {
    defect[i] = end.factor == 0.0 ? 0.0 : d[i] * end.factor;
  }
  __syncthreads();  // all threads have read what is recorded now
  if (threadIdx.x == 0) record_step(p, probe, end);
}

// Grid: (any, k). Bytes: the next vector read and written.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads) scale_kernel(EndParams p) {
  const double factor = p.norm_factor[blockIdx.y];
  T* const next = static_cast<T*>(p.next) + blockIdx.y * p.n;
  const int64_t packs = p.n / kWidth;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += gridDim.x * kThreads) {
    Pack<T, kWidth> pack{};
    if (factor != 0.0) {  // else not a product: what is left of an ended probe may be NaN
      pack = reinterpret_cast<const Pack<T, kWidth>*>(next)[i];
#pragma unroll
      for (int e = 0; e < kWidth; ++e) {
        pack.element[e] = static_cast<T>(static_cast<double>(pack.element[e]) * factor);
      }
    }
    reinterpret_cast<Pack<T, kWidth>*>(next)[i] = pack;
  }
}

template <class T, class S, int kWidth>
const char* pass_typed(const PassParams& p, Stream stream) {
  constexpr int64_t kRow = kThreads * kWidth * static_cast<int64_t>(sizeof(S));
  const int64_t for_sums = kWarps * p.outputs() * static_cast<int64_t>(sizeof(double));
  const int64_t wanted = std::min(p.count * kRow, kSharedForRows) + for_sums;
  const int64_t given = shared_memory_for(pass_kernel<T, S, kWidth>, wanted);
  if (given < for_sums) return "too many rows for the sums of a block in shared memory";
  const int64_t cached = std::min(p.count, (given - for_sums) / kRow);
  const dim3 grid(static_cast<unsigned>(p.parts), static_cast<unsigned>(p.k));
  const auto bytes = static_cast<size_t>(cached * kRow + for_sums);
  const char* const error = LSFAST_LAUNCH((pass_kernel<T, S, kWidth>), grid, dim3(kThreads), bytes, stream, p, cached);
  if (error != nullptr) return error;
  return LSFAST_LAUNCH(combine_kernel, dim3(static_cast<unsigned>(p.k * p.outputs())), dim3(kThreads), 0, stream,
                       static_cast<const double*>(p.partial), p.sums, p.parts);
}

template <class T, int kWidth>
const char* scale_typed(const EndParams& p, Stream stream) {
  const dim3 grid(grid_size(p.n, kThreads * kWidth * 4, 4096), static_cast<unsigned>(p.k));
  return LSFAST_LAUNCH((scale_kernel<T, kWidth>), grid, dim3(kThreads), 0, stream, p);
}

// Whether all that a pass reads and writes can be moved in accesses of kWidth elements.
template <class T, class S, int kWidth>
bool is_packed(const PassParams& p) {
  const auto fits = [](const void* pointer, size_t size) { return reinterpret_cast<uintptr_t>(pointer) % size == 0; };
  const size_t vector = sizeof(T) * kWidth;
  const size_t row = sizeof(S) * kWidth;
  return p.n % kWidth == 0 && p.vector_stride % kWidth == 0 && p.row_stride % kWidth == 0 &&
         p.probe_stride % kWidth == 0 && fits(p.current, vector) && fits(p.product, vector) &&
         fits(p.previous, vector) && fits(p.next, vector) && fits(p.rows, row) && fits(p.stored, row);
}

}  // namespace

const char* launch_dots(const DotsParams& p, Stream stream) {
  const dim3 grid(static_cast<unsigned>(p.parts), static_cast<unsigned>(p.k));
  const char* error = "row_dots: unknown element type";
  LSFAST_DISPATCH_REAL(p.kind, error = LSFAST_LAUNCH((dots_kernel<scalar_t>), grid, dim3(kThreads), 0, stream, p));
  if (error != nullptr) return error;
  return LSFAST_LAUNCH(combine_kernel, dim3(static_cast<unsigned>(p.k)), dim3(kThreads), 0, stream,
                       static_cast<const double*>(p.partial), p.dots, p.parts);
}

const char* launch_begin(const BeginParams& p, Stream stream) {
  return LSFAST_LAUNCH(begin_kernel, dim3(static_cast<unsigned>(p.k)), dim3(kThreads), 0, stream, p);
}

const char* launch_pass(const PassParams& p, Stream stream) {
  const char* error = "lanczos_pass: unknown element type";
  LSFAST_DISPATCH_STORED(p.kind, p.rows_kind, {
    constexpr int kWidth = 16 / static_cast<int>(sizeof(scalar_t));
    error = is_packed<scalar_t, stored_t, kWidth>(p) ? pass_typed<scalar_t, stored_t, kWidth>(p, stream)
                                                     : pass_typed<scalar_t, stored_t, 1>(p, stream);
  });
  return error;
}

const char* launch_end(const EndParams& p, Stream stream) {
  const char* error = LSFAST_LAUNCH(end_kernel, dim3(static_cast<unsigned>(p.k)), dim3(kThreads), 0, stream, p);
  if (error != nullptr || p.last || p.n == 0) return error;
  LSFAST_DISPATCH_REAL(p.kind, constexpr int kWidth = 16 / sizeof(scalar_t);
                       error = aligned_to_16(p.next) && p.n % kWidth == 0 ? scale_typed<scalar_t, kWidth>(p, stream)
                                                                          : scale_typed<scalar_t, 1>(p, stream));
  return error;
}

}  // namespace lsfast::spectrum
