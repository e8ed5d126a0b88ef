// Kernels that prove the emulation: right ones that use each of its features, and ones with a planted fault that a
// check must find. Each is launched by a C function of its own, called from test_faults.py; returns null or the error.
#include "platform/launch.h"

namespace {

constexpr int kThreads = 256;
constexpr int kTile = 16;

// ---- right ---------------------------------------------------------------------------------------------------------

// The sum of each block's part of x [blocks, kThreads], in a tree over static shared memory.
__global__ void __launch_bounds__(kThreads) sum_kernel(const float* x, float* sums) {
  __shared__ float partial[kThreads];
  const unsigned t = threadIdx.x;
  partial[t] = x[blockIdx.x * kThreads + t];
  for (unsigned half = kThreads / 2; half > 0; half /= 2) {
    __syncthreads();
    if (t < half) partial[t] += partial[t + half];
  }
  if (t == 0) sums[blockIdx.x] = partial[0];
}

// x [rows, columns] -> y [columns, rows], tile by tile through dynamic shared memory. Block (kTile, kTile).
__global__ void transpose_kernel(const float* x, float* y, int rows, int columns) {
  LSFAST_DYNAMIC_SHARED(float, tile);  // [kTile, kTile + 1]
  const int row = static_cast<int>(blockIdx.y) * kTile;
  const int column = static_cast<int>(blockIdx.x) * kTile;
  const int i = static_cast<int>(threadIdx.y);
  const int j = static_cast<int>(threadIdx.x);
  if (row + i < rows && column + j < columns) tile[i * (kTile + 1) + j] = x[(row + i) * columns + column + j];
  __syncthreads();
  if (column + i < columns && row + j < rows) y[(column + i) * rows + row + j] = tile[j * (kTile + 1) + i];
}

// The sum of each warp's 32 doubles in lane order (prefix sums by __shfl_up_sync), its largest (by __shfl_xor_sync),
// its first (by __shfl_sync) and the sum of halves of 16 lanes (by __shfl_down_sync with a width). out [warps, 5].
__global__ void shuffle_kernel(const double* x, double* out) {
  const int lane = static_cast<int>(threadIdx.x) % lsfast::kWarpSize;
  const double value = x[blockIdx.x * blockDim.x + threadIdx.x];
  double prefix = value;
  double largest = value;
  double half = value;
  for (int distance = 1; distance < lsfast::kWarpSize; distance *= 2) {
    const double before = __shfl_up_sync(lsfast::kFullWarp, prefix, distance);
    if (lane >= distance) prefix += before;
    largest = fmax(largest, __shfl_xor_sync(lsfast::kFullWarp, largest, distance));
  }
  for (int distance = 8; distance > 0; distance /= 2) {
    half += __shfl_down_sync(lsfast::kFullWarp, half, distance, 16);
  }
  const double first = __shfl_sync(lsfast::kFullWarp, value, 0);
  double* const warp = out + (blockIdx.x * blockDim.x + threadIdx.x) / lsfast::kWarpSize * 5;
  if (lane == 31) warp[0] = prefix;
  if (lane == 0) warp[1] = largest;
  if (lane == 1) warp[2] = first;
  if (lane == 0) warp[3] = half;
  if (lane == 16) warp[4] = half;
}

// Moves the positive numbers of each warp to its front. out [warps, 32], counts [warps]: how many; any, all.
__global__ void compact_kernel(const int* x, int* out, int* counts) {
  const unsigned lane = threadIdx.x % lsfast::kWarpSize;
  const unsigned warp = (blockIdx.x * blockDim.x + threadIdx.x) / lsfast::kWarpSize;
  const int value = x[warp * lsfast::kWarpSize + lane];
  const unsigned kept = __ballot_sync(lsfast::kFullWarp, value > 0);
  if (value > 0) out[warp * lsfast::kWarpSize + __popc(kept & ((1u << lane) - 1u))] = value;
  const int any = __any_sync(lsfast::kFullWarp, value > 0);
  const int all = __all_sync(lsfast::kFullWarp, value > 0);
  if (lane == 0) {
    counts[warp * 3] = __popc(kept);
    counts[warp * 3 + 1] = any;
    counts[warp * 3 + 2] = all;
  }
}

// counts [8]: how many of x [n] have each remainder by 8. extremes: largest, smallest, all bits.
__global__ void histogram_kernel(const unsigned* x, int n, unsigned* counts, unsigned* extremes) {
  __shared__ unsigned local[8];
  if (threadIdx.x < 8) local[threadIdx.x] = 0u;
  __syncthreads();
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n;
       i += static_cast<int>(gridDim.x * blockDim.x)) {
    atomicAdd(&local[x[i] % 8], 1u);
    atomicMax(extremes, x[i]);
    atomicMin(extremes + 1, x[i]);
    atomicOr(extremes + 2, x[i]);
  }
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(counts + threadIdx.x, local[threadIdx.x]);
}

// ---- with a fault --------------------------------------------------------------------------------------------------

// y = x reversed within each block, but nothing says that the neighbour has written.
__global__ void missing_barrier_kernel(const float* x, float* y) {
  __shared__ float values[kThreads];
  const unsigned start = blockIdx.x * kThreads;
  values[threadIdx.x] = x[start + threadIdx.x];
  y[start + threadIdx.x] = values[kThreads - 1 - threadIdx.x];
}

// Every thread writes one cell of shared memory, and the last one wins.
__global__ void shared_race_kernel(float* y) {
  __shared__ float winner;
  winner = static_cast<float>(threadIdx.x);
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = winner;
}

// Every block writes one cell of global memory.
__global__ void global_race_kernel(float* y) {
  if (threadIdx.x == 0) *y = static_cast<float>(blockIdx.x);
}

// An unordered sum of floats: atomic, and yet not the same in every order.
__global__ void float_atomic_kernel(const float* x, float* y) { atomicAdd(y, x[blockIdx.x * kThreads + threadIdx.x]); }

__global__ void uninitialized_kernel(int* y) {
  __shared__ int never_written[kThreads];
  y[threadIdx.x] = never_written[threadIdx.x];
}

__global__ void global_overrun_kernel(float* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i <= n) y[i] = 1.0f;
}

__global__ void static_overrun_kernel(float* y) {
  __shared__ float values[kThreads];
  values[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

__global__ void dynamic_overrun_kernel(float* y) {
  LSFAST_DYNAMIC_SHARED(float, values);  // [kThreads]
  values[threadIdx.x + 1] = 1.0f;
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

// Half a warp names all of it.
__global__ void divergent_shuffle_kernel(float* y) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % lsfast::kWarpSize < 16) value += __shfl_down_sync(lsfast::kFullWarp, value, 8);
  y[threadIdx.x] = value;
}

// The lanes of a warp name all of it, but call two operations.
__global__ void mixed_shuffle_kernel(float* y) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x % 2 == 0) {
    value = __shfl_down_sync(lsfast::kFullWarp, value, 1);
  } else {
    value = __shfl_up_sync(lsfast::kFullWarp, value, 1);
  }
  y[threadIdx.x] = value;
}

// A lane reads one that its mask leaves out.
__global__ void absent_source_kernel(float* y) {
  float value = static_cast<float>(threadIdx.x);
  if (threadIdx.x < 16) value = __shfl_xor_sync(0xffffu, value, 16);
  y[threadIdx.x] = value;
}

// Half the block waits at a barrier inside a branch, the other half at the next one.
__global__ void divergent_barrier_kernel(float* y) {
  __shared__ float values[kThreads];
  values[threadIdx.x] = 1.0f;
  if (threadIdx.x < kThreads / 2) {
    __syncthreads();
    values[threadIdx.x] += values[threadIdx.x + kThreads / 2];
  }
  __syncthreads();
  y[threadIdx.x] = values[threadIdx.x];
}

}  // namespace

// ---- launchers -----------------------------------------------------------------------------------------------------

#define LAUNCHER extern "C" __attribute__((visibility("default"))) const char*

LAUNCHER launch_sum(const float* x, float* sums, int blocks) {
  return LSFAST_LAUNCH(sum_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, x, sums);
}
LAUNCHER launch_transpose(const float* x, float* y, int rows, int columns) {
  const dim3 grid((columns + kTile - 1) / kTile, (rows + kTile - 1) / kTile);
  const int bytes = kTile * (kTile + 1) * static_cast<int>(sizeof(float));
  return LSFAST_LAUNCH(transpose_kernel, grid, dim3(kTile, kTile), bytes, nullptr, x, y, rows, columns);
}
LAUNCHER launch_shuffle(const double* x, double* out, int blocks) {
  return LSFAST_LAUNCH(shuffle_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, x, out);
}
LAUNCHER launch_compact(const int* x, int* out, int* counts, int blocks) {
  return LSFAST_LAUNCH(compact_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, x, out, counts);
}
LAUNCHER launch_histogram(const unsigned* x, int n, unsigned* counts, unsigned* extremes) {
  return LSFAST_LAUNCH(histogram_kernel, dim3(3), dim3(kThreads), 0, nullptr, x, n, counts, extremes);
}
LAUNCHER launch_missing_barrier(const float* x, float* y, int blocks) {
  return LSFAST_LAUNCH(missing_barrier_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, x, y);
}
LAUNCHER launch_shared_race(float* y, int blocks) {
  return LSFAST_LAUNCH(shared_race_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_global_race(float* y, int blocks) {
  return LSFAST_LAUNCH(global_race_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_float_atomic(const float* x, float* y, int blocks) {
  return LSFAST_LAUNCH(float_atomic_kernel, dim3(blocks), dim3(kThreads), 0, nullptr, x, y);
}
LAUNCHER launch_uninitialized(int* y) {
  return LSFAST_LAUNCH(uninitialized_kernel, dim3(1), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_global_overrun(float* y, int n) {
  return LSFAST_LAUNCH(global_overrun_kernel, dim3((n + kThreads) / kThreads), dim3(kThreads), 0, nullptr, y, n);
}
LAUNCHER launch_static_overrun(float* y) {
  return LSFAST_LAUNCH(static_overrun_kernel, dim3(1), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_dynamic_overrun(float* y) {
  const int bytes = kThreads * static_cast<int>(sizeof(float));
  return LSFAST_LAUNCH(dynamic_overrun_kernel, dim3(1), dim3(kThreads), bytes, nullptr, y);
}
LAUNCHER launch_divergent_shuffle(float* y) {
  return LSFAST_LAUNCH(divergent_shuffle_kernel, dim3(1), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_mixed_shuffle(float* y) {
  return LSFAST_LAUNCH(mixed_shuffle_kernel, dim3(1), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_absent_source(float* y) {
  return LSFAST_LAUNCH(absent_source_kernel, dim3(1), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_divergent_barrier(float* y) {
  return LSFAST_LAUNCH(divergent_barrier_kernel, dim3(1), dim3(kThreads), 0, nullptr, y);
}
LAUNCHER launch_too_many_threads(float* y) {
  return LSFAST_LAUNCH(shared_race_kernel, dim3(1), dim3(2048), 0, nullptr, y);
}
