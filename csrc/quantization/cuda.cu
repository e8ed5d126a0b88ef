// Which CUDA kernel quantizes a tensor, and the last step of its statistics. The kernels: flat.cu, strip.cu,
// columns.cu.
#include "quantization/statistics_cuda.inl"

namespace lsfast::quantization {
namespace {

// Adds up the `parts` rows of sums of each segment: row ((s / inner) parts + part) inner + s % inner of segment s. A
// CUDA block has a segment at a time. Bytes: reads the rows once, 40 each.
__global__ void __launch_bounds__(kThreads)
    combine_kernel(const double* partial, int64_t segments, int64_t parts, int64_t inner, double* statistics) {
  __shared__ double slots[kWarps][kStatistics];
  const int lane = static_cast<int>(threadIdx.x) % kWarpSize;
  const int warp = static_cast<int>(threadIdx.x) / kWarpSize;
  for (int64_t segment = blockIdx.x; segment < segments; segment += gridDim.x) {
    double sums[kStatistics] = {};
    for (int64_t part = threadIdx.x; part < parts; part += blockDim.x) {
      const double* const row = partial + ((segment / inner * parts + part) * inner + segment % inner) * kStatistics;
#pragma unroll
      for (int s = 0; s < kStatistics; ++s) {
        sums[s] = s != kLargest ? sums[s] + row[s] : (sums[s] > row[s] ? sums[s] : row[s]);
      }
    }
#pragma unroll
    for (int s = 0; s < kStatistics; ++s) {
      for (int away = kWarpSize / 2; away > 0; away /= 2) {
        const double other = __shfl_xor_sync(kFullWarp, sums[s], away);
        sums[s] = s != kLargest ? sums[s] + other : (sums[s] > other ? sums[s] : other);
      }
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < kStatistics; ++s) {
      if (lane == 0) slots[warp][s] = sums[s];
    }
    __syncthreads();
    if (threadIdx.x < kStatistics) {
      const int s = static_cast<int>(threadIdx.x);
      double sum = slots[0][s];
      for (int other = 1; other < static_cast<int>(blockDim.x) / kWarpSize; ++other) {
        const double next = slots[other][s];
        sum = s != kLargest ? sum + next : (sum > next ? sum : next);
      }
      statistics[segment * kStatistics + s] = sum;
    }
  }
}

}  // namespace

const char* launch_quantize(const QuantizeParams& p, Stream stream) {
  if (runs_flat(p)) return launch_flat(p, stream);
  unsigned blocks = 0;
  const char* const error = p.inner == 1 ? launch_strips(p, &blocks, stream) : launch_columns(p, &blocks, stream);
  if (error != nullptr) return error;
  if (p.granularity != Granularity::kTensor && p.granularity != Granularity::kRow) return nullptr;
  const bool rows = p.granularity == Granularity::kRow;
  const int64_t inner = rows ? p.inner : 1;
  const int64_t segments = rows ? p.lines() * inner : 1;
  const int64_t parts = rows ? pieces_of_line(p) : blocks;
  const dim3 threads(parts > kWarpSize ? kThreads : kWarpSize);
  return LSFAST_LAUNCH(combine_kernel, dim3(grid_size(segments, 1, 1 << 16)), threads, 0, stream, p.partial, segments,
                       parts, inner, p.statistics);
}

}  // namespace lsfast::quantization
