// The tridiagonal eigensolver on CUDA.
#include "platform/launch.h"
#include "spectrum/ql.h"

namespace lsfast::spectrum {
namespace {

// A thread solves one matrix; its arrays are interleaved with its neighbours', so that a warp in step reads whole
// lines.
__global__ void __launch_bounds__(kWarpSize) tridiagonal_kernel(TridiagonalParams p) {
  const int64_t matrix = static_cast<int64_t>(blockIdx.x) * kWarpSize + threadIdx.x;
  if (matrix >= p.k) return;
  TridiagonalQl<StridedArray> ql;
  ql.matrix = matrix;
  ql.d = {p.scratch + matrix, p.k};
  ql.e = {p.scratch + p.m * p.k + matrix, p.k};
  ql.z = {p.scratch + 2 * p.m * p.k + matrix, p.k};
  ql.start(p);
  while (ql.next_rotation()) ql.rotate();
  ql.finish(p);
}

}  // namespace

const char* launch_tridiagonal(const TridiagonalParams& p, Stream stream) {
  return LSFAST_LAUNCH(tridiagonal_kernel, dim3(grid_size(p.k, kWarpSize, INT32_MAX)), dim3(kWarpSize), 0, stream, p);
}

}  // namespace lsfast::spectrum
