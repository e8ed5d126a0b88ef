// CUDA kernels of cross-entropy. A team of threads has a row: a block for many classes, a warp for few, one thread
// where the classes of a row are not neighbours (then neighbouring threads have neighbouring rows). Each probability is
// formed once for kTangentsAtOnce tangents in each of the two passes over them.
#include "curvature/cross_entropy.h"
#include "platform/launch.h"

namespace lsfast::curvature {
namespace {

constexpr int kThreads = 256;
constexpr int kTangentsAtOnce = 4;

template <class T>
using Real = Arithmetic<T>;

// Sums over a team of kTeam threads, in an order of its own that no schedule changes; every thread gets them.
template <int kTeam, int kCount, class F>
__device__ __forceinline__ void team_sums(F (&values)[kCount]) {
  if constexpr (kTeam > 1) {
    LSFAST_UNROLL
    for (int t = 0; t < kCount; ++t) values[t] = warp_sum(values[t]);
  }
  if constexpr (kTeam == kThreads) {
    __shared__ F parts[kCount][kThreads / kWarpSize];
    LSFAST_UNROLL
    for (int t = 0; t < kCount; ++t) {
      if (threadIdx.x % kWarpSize == 0) parts[t][threadIdx.x / kWarpSize] = values[t];
    }
    __syncthreads();
    LSFAST_UNROLL
    for (int t = 0; t < kCount; ++t) {
      values[t] = F(0);
      for (int warp = 0; warp < kThreads / kWarpSize; ++warp) values[t] += parts[t][warp];
    }
    __syncthreads();
  }
}

template <int kTeam, class F>
__device__ __forceinline__ F team_largest(F value) {
  if constexpr (kTeam > 1) {
    for (int offset = kWarpSize / 2; offset > 0; offset /= 2) {
      const F other = __shfl_xor_sync(kFullWarp, value, offset);
      value = other > value ? other : value;
    }
  }
  if constexpr (kTeam == kThreads) {
    __shared__ F parts[kThreads / kWarpSize];
    if (threadIdx.x % kWarpSize == 0) parts[threadIdx.x / kWarpSize] = value;
    __syncthreads();
    for (int warp = 0; warp < kThreads / kWarpSize; ++warp) value = parts[warp] > value ? parts[warp] : value;
    __syncthreads();
  }
  return value;
}

// The team's row and its place in it. All threads of a block make the same number of steps where a block is a team.
template <int kTeam>
struct Teams {
  int64_t first = static_cast<int64_t>(blockIdx.x) * (kThreads / kTeam) + threadIdx.x / kTeam;
  int64_t step = static_cast<int64_t>(gridDim.x) * (kThreads / kTeam);
  int lane = threadIdx.x % kTeam;
};

// What a thread needs of a row: its logits and label, and the probability and gradient of a class.
template <class T>
struct Row {
  using F = Real<T>;
  CrossEntropyLabel<T> label;
  int64_t first;
  const T* logits;
  F log_sum;
  F mass;

  template <class Params>
  __device__ __forceinline__ Row(const Params& p, int64_t row)
      : label(p.rows, row),
        first(row / p.rows.inner * p.rows.classes * p.rows.inner + row % p.rows.inner),
        logits(static_cast<const T*>(p.rows.logits) + first),
        log_sum(static_cast<const F*>(p.log_sum)[row]),
        mass(static_cast<const F*>(p.mass)[row]) {}

  __device__ __forceinline__ F probability(T logit) const { return exp(widen(logit) - log_sum); }
  __device__ __forceinline__ F gradient(F probability, int64_t c) const {
    F q = label.is_soft ? label.soft(c) : F(0);
    if (c == label.target) q += label.hot;
    return mass * probability - q;
  }
};

template <class T, int kPack>
__device__ __forceinline__ Pack<T, kPack> load(const T* from) {
  return *reinterpret_cast<const Pack<T, kPack>*>(from);
}

// Bytes: reads the logits of a row twice, the second time from cache, and soft labels once.
template <class T, int kTeam, int kPack>
__global__ void __launch_bounds__(kThreads, 1) forward_kernel(CrossEntropyForwardParams p) {
  using F = Real<T>;
  const Teams<kTeam> team;
  const int64_t classes = p.rows.classes, stride = p.rows.inner;
  for (int64_t row = team.first; row < p.rows.outer * p.rows.inner; row += team.step) {
    const CrossEntropyLabel<T> label(p.rows, row);
    const T* const logits = static_cast<const T*>(p.rows.logits) + row / stride * classes * stride + row % stride;
    F largest = widen(logits[0]);
    for (int64_t c = team.lane * kPack; c < classes; c += kTeam * kPack) {
      const auto z = load<T, kPack>(logits + c * stride);
      LSFAST_UNROLL
      for (int e = 0; e < kPack; ++e) largest = widen(z.element[e]) > largest ? widen(z.element[e]) : largest;
    }
    largest = team_largest<kTeam>(largest);
    // The total, the mass, and the loss measured from the largest logit, which loses no digits where all are large.
    F sums[3] = {F(0), F(0), F(0)};
    for (int64_t c = team.lane * kPack; c < classes; c += kTeam * kPack) {
      const auto z = load<T, kPack>(logits + c * stride);
      LSFAST_UNROLL
      for (int e = 0; e < kPack; ++e) {
        const F below = largest - widen(z.element[e]);
        sums[0] += exp(-below);
        if (label.is_soft) {
          const F q = label.soft(c + e);
          sums[1] += q;
          sums[2] += q * below;
        }
      }
    }
    team_sums<kTeam>(sums);
    if (team.lane != 0) continue;
    const F log_total = log(sums[0]);
    F mass = F(0), loss = F(0);
    if (label.factor != F(0)) {
      mass = sums[1] + label.hot;
      loss = label.target < 0 ? sums[2] : sums[2] + label.hot * (largest - widen(logits[label.target * stride]));
      loss = label.is_a_class ? loss + mass * log_total : static_cast<F>(nan(""));
    }
    static_cast<F*>(p.log_sum)[row] = largest + log_total;
    static_cast<F*>(p.mass)[row] = mass;
    static_cast<F*>(p.loss)[row] = loss;
  }
}

// Bytes: reads the tangents once, the logits k / 4 times, all but the first from cache.
template <class T, int kTeam, int kPack>
__global__ void __launch_bounds__(kThreads, 1) tangent_kernel(CrossEntropyTangentParams p) {
  using F = Real<T>;
  const Teams<kTeam> team;
  const int64_t classes = p.rows.classes, stride = p.rows.inner, count = p.rows.outer * p.rows.inner;
  for (int64_t row = team.first; row < count; row += team.step) {
    const Row<T> at(p, row);
    for (int64_t j = 0; j < p.k; j += kTangentsAtOnce) {
      const T* const tangents = static_cast<const T*>(p.tangents) + j * count * classes + at.first;
      F sums[kTangentsAtOnce] = {};
      for (int64_t c = team.lane * kPack; at.label.factor != F(0) && c < classes; c += kTeam * kPack) {
        const auto z = load<T, kPack>(at.logits + c * stride);
        F gradient[kPack];
        LSFAST_UNROLL
        for (int e = 0; e < kPack; ++e) gradient[e] = at.gradient(at.probability(z.element[e]), c + e);
        LSFAST_UNROLL
        for (int t = 0; t < kTangentsAtOnce; ++t) {
          if (j + t >= p.k) break;
          const auto u = load<T, kPack>(tangents + t * count * classes + c * stride);
          LSFAST_UNROLL
          for (int e = 0; e < kPack; ++e) sums[t] += gradient[e] * widen(u.element[e]);
        }
      }
      team_sums<kTeam>(sums);
      LSFAST_UNROLL
      for (int t = 0; t < kTangentsAtOnce; ++t) {
        if (team.lane == 0 && j + t < p.k) static_cast<F*>(p.out)[(j + t) * count + row] = sums[t];
      }
    }
  }
}

// Bytes: reads the tangents twice (the second time from cache where a team's rows fit it) and writes the results once;
// reads the logits k / 2 times, all but the first from cache.
template <class T, int kTeam, int kPack>
__global__ void __launch_bounds__(kThreads, 1) adjoint_kernel(CrossEntropyAdjointParams p) {
  using F = Real<T>;
  const Teams<kTeam> team;
  const int64_t classes = p.rows.classes, stride = p.rows.inner, count = p.rows.outer * p.rows.inner;
  const bool moves = p.tangents != nullptr;
  for (int64_t row = team.first; row < count; row += team.step) {
    const Row<T> at(p, row);
    const bool counts = at.label.factor != F(0);
    const F curvature = moves ? static_cast<const F*>(p.curvature)[row] : F(0);
    for (int64_t j = 0; j < p.k; j += kTangentsAtOnce) {
      const int64_t offset = j * count * classes + at.first;
      // May be the same memory: each element is read by the thread that writes it, all of a row before its first write.
      const T* const tangents = static_cast<const T*>(p.tangents) + (moves ? offset : 0);
      T* const out = static_cast<T*>(p.out) + offset;
      F adjoint[kTangentsAtOnce], mean[kTangentsAtOnce] = {};
      LSFAST_UNROLL
      for (int t = 0; t < kTangentsAtOnce; ++t) {
        const bool given = p.adjoints != nullptr && j + t < p.k;
        adjoint[t] = given ? static_cast<const F*>(p.adjoints)[(j + t) * count + row] : F(0);
      }
      for (int64_t c = team.lane * kPack; moves && counts && c < classes; c += kTeam * kPack) {
        const auto z = load<T, kPack>(at.logits + c * stride);
        F probability[kPack];
        LSFAST_UNROLL
        for (int e = 0; e < kPack; ++e) probability[e] = at.probability(z.element[e]);
        LSFAST_UNROLL
        for (int t = 0; t < kTangentsAtOnce; ++t) {
          if (j + t >= p.k) break;
          const auto u = load<T, kPack>(tangents + t * count * classes + c * stride);
          LSFAST_UNROLL
          for (int e = 0; e < kPack; ++e) mean[t] += probability[e] * widen(u.element[e]);
        }
      }
      team_sums<kTeam>(mean);
      for (int64_t c = team.lane * kPack; c < classes; c += kTeam * kPack) {
        const auto z = load<T, kPack>(at.logits + c * stride);
        F probability[kPack], gradient[kPack];
        LSFAST_UNROLL
        for (int e = 0; e < kPack; ++e) {
          probability[e] = counts ? at.probability(z.element[e]) : F(0);
          gradient[e] = counts && p.adjoints != nullptr ? at.gradient(probability[e], c + e) : F(0);
        }
        LSFAST_UNROLL
        for (int t = 0; t < kTangentsAtOnce; ++t) {
          if (j + t >= p.k) break;
          Pack<T, kPack> u = {}, result;
          if (moves) u = load<T, kPack>(tangents + t * count * classes + c * stride);
          LSFAST_UNROLL
          for (int e = 0; e < kPack; ++e) {
            const F moved = moves ? probability[e] * (widen(u.element[e]) - mean[t]) : F(0);
            result.element[e] = narrow<T>(adjoint[t] * gradient[e] + curvature * moved);
          }
          *reinterpret_cast<Pack<T, kPack>*>(out + t * count * classes + c * stride) = result;
        }
      }
    }
  }
}

// Whether the packs of 16 bytes of a row lie where one access moves them.
template <class T, class... Pointers>
bool packs(const CrossEntropyRows& rows, Pointers... pointers) {
  const bool whole = rows.inner == 1 && rows.classes % Pack<T>::kCount == 0;
  return whole && (aligned_to_16(rows.logits) && ... && aligned_to_16(pointers));
}

constexpr int64_t kManyClasses = 1024;  // a block for a row pays from here on

// Calls `kernel(team, pack)` with the constants that suit the rows.
#define LSFAST_CROSS_ENTROPY_LAUNCH(kernel, T, is_packed)                                                         \
  const int64_t count = p.rows.outer * p.rows.inner;                                                              \
  const dim3 block(kThreads);                                                                                     \
  if (p.rows.inner > 1) {                                                                                         \
    return LSFAST_LAUNCH((kernel<T, 1, 1>), dim3(grid_size(count, kThreads)), block, 0, stream, p);               \
  }                                                                                                               \
  if (p.rows.classes < kManyClasses) {                                                                            \
    const dim3 grid(grid_size(count, kThreads / kWarpSize));                                                      \
    return LSFAST_LAUNCH((kernel<T, kWarpSize, 1>), grid, block, 0, stream, p);                                   \
  }                                                                                                               \
  if (is_packed) {                                                                                                \
    return LSFAST_LAUNCH((kernel<T, kThreads, Pack<T>::kCount>), dim3(grid_size(count, 1)), block, 0, stream, p); \
  }                                                                                                               \
  return LSFAST_LAUNCH((kernel<T, kThreads, 1>), dim3(grid_size(count, 1)), block, 0, stream, p)

template <class T>
const char* forward_typed(const CrossEntropyForwardParams& p, Stream stream) {
  LSFAST_CROSS_ENTROPY_LAUNCH(forward_kernel, T, packs<T>(p.rows));
}

template <class T>
const char* tangent_typed(const CrossEntropyTangentParams& p, Stream stream) {
  LSFAST_CROSS_ENTROPY_LAUNCH(tangent_kernel, T, packs<T>(p.rows, p.tangents));
}

template <class T>
const char* adjoint_typed(const CrossEntropyAdjointParams& p, Stream stream) {
  LSFAST_CROSS_ENTROPY_LAUNCH(adjoint_kernel, T, (packs<T>(p.rows, p.tangents, p.out)));
}

}  // namespace

const char* launch_cross_entropy_forward(const CrossEntropyForwardParams& p, Stream stream) {
  LSFAST_DISPATCH(p.rows.kind, return forward_typed<scalar_t>(p, stream));
  return "cross_entropy_forward: unknown element type";
}

const char* launch_cross_entropy_tangent(const CrossEntropyTangentParams& p, Stream stream) {
  LSFAST_DISPATCH(p.rows.kind, return tangent_typed<scalar_t>(p, stream));
  return "cross_entropy_tangent: unknown element type";
}

const char* launch_cross_entropy_adjoint(const CrossEntropyAdjointParams& p, Stream stream) {
  LSFAST_DISPATCH(p.rows.kind, return adjoint_typed<scalar_t>(p, stream));
  return "cross_entropy_adjoint: unknown element type";
}

}  // namespace lsfast::curvature
