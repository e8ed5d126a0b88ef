// CUDA kernels of sharpness. Sums and steps of an ascent are bound by memory; Keskar's measure takes a block for a row
// of many classes, a warp for one of few, and reads each logit once.
#include "landscape/sharpness.h"
#include "platform/launch.h"

namespace lsfast::landscape {
namespace {

constexpr int kThreads = 256;
static_assert(kAscentLanes == kThreads, "a block combines the sums of chunks, a thread for each partial sum");

// ---- ascent --------------------------------------------------------------------------------------------------------

__device__ __forceinline__ double scaled_by_theta(double theta, double slope, double offset) {
  return slope * fabs(theta) + offset;
}

// kSumLanes neighbouring lanes have a chunk, two chunks a warp. Bytes: reads the gradient and u (where given) once, and
// theta once for each point.
template <class T>
__global__ void __launch_bounds__(kThreads) ascent_sums_kernel(AscentSumsParams p) {
  constexpr int kUnits = kThreads / kSumLanes;
  const int lane = static_cast<int>(threadIdx.x) % kSumLanes;
  const int64_t chunks = p.chunks();
  const int64_t total = p.k * chunks;
  // Every lane of a warp runs the same number of rounds, so that all take part in the shuffles.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kUnits; base < total;
       base += static_cast<int64_t>(gridDim.x) * kUnits) {
    const int64_t id = base + threadIdx.x / kSumLanes;
    const int64_t row = id / chunks, chunk = id % chunks;
    double sums[kAscentSums] = {0.0, 0.0, 0.0};
    if (id < total) {
      const int64_t end = (chunk + 1) * kAscentChunk < p.n ? (chunk + 1) * kAscentChunk : p.n;
      const T* const theta = static_cast<const T*>(p.theta);
      const T* const gradient = static_cast<const T*>(p.gradient) + row * p.n;
      const T* const u = p.u == nullptr ? nullptr : static_cast<const T*>(p.u) + row * p.n;
      for (int64_t i = chunk * kAscentChunk + lane; i < end; i += kSumLanes) {
        const double scale = scaled_by_theta(static_cast<double>(theta[i]), p.slope, p.offset);
        const double g = scale * static_cast<double>(gradient[i]);
        sums[0] += g * g;
        if (u != nullptr) {
          const double at = static_cast<double>(u[i]);
          sums[1] += at * g;
          sums[2] += at * at;
        }
      }
    }
#pragma unroll
    for (int s = 0; s < kAscentSums; ++s) {
#pragma unroll
      for (int width = kSumLanes / 2; width > 0; width /= 2) sums[s] += __shfl_xor_sync(kFullWarp, sums[s], width);
      if (lane == 0 && id < total) p.partial[(row * kAscentSums + s) * chunks + chunk] = sums[s];
    }
  }
}

// A block has a sum. Bytes: reads the partial sums once, 8 for each 1024 elements.
__global__ void __launch_bounds__(kThreads) ascent_combine_kernel(AscentSumsParams p) {
  __shared__ double lanes[kThreads];
  const int64_t chunks = p.chunks();
  const int lane = static_cast<int>(threadIdx.x);
  for (int64_t id = blockIdx.x; id < p.k * kAscentSums; id += gridDim.x) {
    double sum = 0.0;
    for (int64_t i = lane; i < chunks; i += kThreads) sum += p.partial[id * chunks + i];
    lanes[lane] = sum;
    __syncthreads();
    for (int half = kThreads / 2; half > 0; half /= 2) {
      if (lane < half) lanes[lane] += lanes[lane + half];
      __syncthreads();
    }
    if (lane == 0) p.result[id] = lanes[0];
    __syncthreads();
  }
}

// Bytes: reads theta once for all points, of each the gradient and u (where given), and writes both results.
template <class T, int kCount, bool kBox>
__global__ void __launch_bounds__(kThreads) ascent_step_kernel(AscentStepParams p) {
  using P = Pack<T, kCount>;
  const int64_t packs = p.n / kCount;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x; i < packs; i += threads) {
    const P theta = static_cast<const P*>(p.theta)[i];
    for (int64_t row = 0; row < p.k; ++row) {
      const double first = p.coefficients[2 * row], second = p.coefficients[2 * row + 1];
      const int64_t at = row * packs + i;
      const P gradient = static_cast<const P*>(p.gradient)[at];
      P u = {};
      if (p.u != nullptr) u = static_cast<const P*>(p.u)[at];
      P moved, point;
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const double here = static_cast<double>(theta.element[e]);
        const double c = scaled_by_theta(here, p.slope, p.offset);
        const double g = c * static_cast<double>(gradient.element[e]);
        moved.element[e] = static_cast<T>(ascent_entry<kBox>(static_cast<double>(u.element[e]), g, first, second));
        point.element[e] = static_cast<T>(here + c * static_cast<double>(moved.element[e]));
      }
      static_cast<P*>(p.moved)[at] = moved;
      static_cast<P*>(p.points)[at] = point;
    }
  }
}

template <class T>
const char* ascent_sums_typed(const AscentSumsParams& p, Stream stream) {
  const dim3 blocks(grid_size(p.k * p.chunks(), kThreads / kSumLanes));
  if (const char* error = LSFAST_LAUNCH(ascent_sums_kernel<T>, blocks, dim3(kThreads), 0, stream, p)) return error;
  const dim3 combining(grid_size(p.k * kAscentSums, 1));
  return LSFAST_LAUNCH(ascent_combine_kernel, combining, dim3(kThreads), 0, stream, p);
}

template <class T, int kCount>
const char* ascent_step_packed(const AscentStepParams& p, Stream stream) {
  const dim3 blocks(grid_size(p.n / kCount, kThreads));
  if (p.box) return LSFAST_LAUNCH((ascent_step_kernel<T, kCount, true>), blocks, dim3(kThreads), 0, stream, p);
  return LSFAST_LAUNCH((ascent_step_kernel<T, kCount, false>), blocks, dim3(kThreads), 0, stream, p);
}

template <class T>
const char* ascent_step_typed(const AscentStepParams& p, Stream stream) {
  constexpr int kCount = 16 / sizeof(T);
  const bool packed = p.n % kCount == 0 && aligned_to_16(p.theta) && aligned_to_16(p.gradient) && aligned_to_16(p.u) &&
                      aligned_to_16(p.moved) && aligned_to_16(p.points);
  return packed ? ascent_step_packed<T, kCount>(p, stream) : ascent_step_packed<T, 1>(p, stream);
}

// ---- logits --------------------------------------------------------------------------------------------------------

// A team of kTeam threads, a warp or a block, has a row; each thread adds what it reads, and the sums are brought to
// one `top` at the end. Bytes: reads each logit once.
template <class T, int kTeam, int kCount>
__global__ void __launch_bounds__(kThreads, 1) logit_sharpness_kernel(LogitSharpnessParams p) {
  using F = Arithmetic<T>;
  constexpr int kWarps = kTeam / kWarpSize;
  constexpr F kLowest = std::numeric_limits<F>::lowest();
  const int lane = static_cast<int>(threadIdx.x) % kTeam;
  const F epsilon = static_cast<F>(p.epsilon);
  // All threads of a team take the same rounds.
  for (int64_t row = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam; row < p.rows;
       row += static_cast<int64_t>(gridDim.x) * (kThreads / kTeam)) {
    const int64_t target = p.target[row];
    const bool is_a_class = target >= 0 && target < p.classes;
    if (target == p.ignore_index || !is_a_class) {
      if (lane == 0) p.result[row] = target == p.ignore_index ? 0.0 : std::numeric_limits<double>::quiet_NaN();
      continue;
    }
    const T* const logits = static_cast<const T*>(p.logits) + row * p.classes;
    const F target_logit = widen(logits[target]);
    const F target_magnitude = target_logit < F(0) ? -target_logit : target_logit;
    LogitSums<F> sums{kLowest, 0.0, 0.0};
    const auto raise_top = [&](F to) {
      const double total_factor = exp(sums.below(to));
      sums.raise_top(to, total_factor, exp(sums.raised_below(to, p.epsilon)));
    };
    for (int64_t c = static_cast<int64_t>(lane) * kCount; c < p.classes; c += kTeam * kCount) {
      const Pack<T, kCount> pack = *reinterpret_cast<const Pack<T, kCount>*>(logits + c);
      F z[kCount], largest = sums.top;
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        z[e] = c + e == target ? -std::numeric_limits<F>::infinity() : widen(pack.element[e]);
        largest = z[e] > largest ? z[e] : largest;
      }
      if (largest > sums.top) raise_top(largest);
#pragma unroll
      for (int e = 0; e < kCount; ++e) {
        const LogitExponents<F> of(z[e], sums.top, target_magnitude, epsilon);
        if (of.masked) continue;
        sums.total += static_cast<double>(exp(of.below));
        sums.rise += static_cast<double>(exp(of.raised) * -expm1(-of.lift));
      }
    }

    F top = sums.top;
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      const F other = __shfl_xor_sync(kFullWarp, top, offset);
      top = other > top ? other : top;
    }
    if constexpr (kWarps > 1) {
      __shared__ F tops[kWarps];
      if (lane % kWarpSize == 0) tops[lane / kWarpSize] = top;
      __syncthreads();
      for (int warp = 0; warp < kWarps; ++warp) top = tops[warp] > top ? tops[warp] : top;
    }
    if (top > sums.top) raise_top(top);
    sums.total = warp_sum(sums.total);
    sums.rise = warp_sum(sums.rise);
    if constexpr (kWarps > 1) {
      __shared__ double parts[2][kWarps];
      if (lane % kWarpSize == 0) {
        parts[0][lane / kWarpSize] = sums.total;
        parts[1][lane / kWarpSize] = sums.rise;
      }
      __syncthreads();
      if (lane == 0) {
        for (int warp = 1; warp < kWarps; ++warp) {
          sums.total += parts[0][warp];
          sums.rise += parts[1][warp];
        }
      }
    }
    if (lane == 0) p.result[row] = logit_sharpness_of(sums, static_cast<double>(target_logit), p.epsilon);
    if constexpr (kWarps > 1) __syncthreads();
  }
}

constexpr int64_t kManyClasses = 1024;  // a block for a row pays from here on

template <class T>
const char* logit_sharpness_typed(const LogitSharpnessParams& p, Stream stream) {
  constexpr int kCount = Pack<T>::kCount;
  const dim3 block(kThreads);
  if (p.classes < kManyClasses) {
    const dim3 warps(grid_size(p.rows, kThreads / kWarpSize));
    return LSFAST_LAUNCH((logit_sharpness_kernel<T, kWarpSize, 1>), warps, block, 0, stream, p);
  }
  const dim3 blocks(grid_size(p.rows, 1));
  if (p.classes % kCount == 0 && aligned_to_16(p.logits)) {
    return LSFAST_LAUNCH((logit_sharpness_kernel<T, kThreads, kCount>), blocks, block, 0, stream, p);
  }
  return LSFAST_LAUNCH((logit_sharpness_kernel<T, kThreads, 1>), blocks, block, 0, stream, p);
}

}  // namespace

const char* launch_ascent_sums(const AscentSumsParams& p, Stream stream) {
  LSFAST_DISPATCH_REAL(p.kind, return ascent_sums_typed<scalar_t>(p, stream));
}

const char* launch_ascent_step(const AscentStepParams& p, Stream stream) {
  LSFAST_DISPATCH_REAL(p.kind, return ascent_step_typed<scalar_t>(p, stream));
}

const char* launch_logit_sharpness(const LogitSharpnessParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return logit_sharpness_typed<scalar_t>(p, stream));
  return "logit_sharpness: unknown element type";
}

}  // namespace lsfast::landscape
