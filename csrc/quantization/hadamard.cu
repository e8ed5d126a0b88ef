// CUDA kernels of the Hadamard transform on its own, along memory and across it.
#include <type_traits>

#include "quantization/tile_cuda.inl"

namespace lsfast::quantization {
namespace {

// Lines along memory: a thread has 8 neighbours (16 bytes and more). Grid: any. Bytes: reads x once, writes y once.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) lines_kernel(HadamardParams p, bool aligned) {
  constexpr int kUnit = 8;
  const int64_t units = p.outer * p.length / kUnit;
  // Every lane of a warp runs the same number of rounds, so that all take part in the shuffles.
  for (int64_t base = static_cast<int64_t>(blockIdx.x) * kThreads; base < units;
       base += static_cast<int64_t>(gridDim.x) * kThreads) {
    const int64_t i = base + threadIdx.x;
    const int count = i < units ? kUnit : 0;
    F values[kUnit];
    load_line(static_cast<const T*>(p.x) + i * kUnit, count, aligned, values);
    transform_line(values, p.transform, p.inverse);
    store_line(values, count, aligned, static_cast<T*>(p.y) + i * kUnit);
  }
}

// Lines across memory: a CUDA block has a tile of 128 positions of 32 columns. Grid: any. Bytes: reads x once, writes y
// once.
template <class T, class F>
__global__ void __launch_bounds__(kThreads, sizeof(F) == 8 ? 1 : 3) columns_kernel(HadamardParams p) {
  __shared__ F tile[kTileLength * kWarpSize];
  const int64_t of_line = (p.length + kTileLength - 1) / kTileLength;
  const int64_t chunks = (p.inner + kWarpSize - 1) / kWarpSize;
  for (int64_t id = blockIdx.x; id < p.outer * of_line * chunks; id += gridDim.x) {
    const int64_t column = id % chunks * kWarpSize + threadIdx.x % kWarpSize;
    const int64_t position = id / chunks % of_line * kTileLength + threadIdx.x / kWarpSize * kColumnRows;
    const int64_t first = (id / chunks / of_line * p.length + position) * p.inner + column;
    const int count = column_count(position, p.length, column < p.inner);
    F values[kColumnRows];
    load_column(static_cast<const T*>(p.x) + first, p.inner, count, values);
    transform_columns(values, p.transform, p.inverse, tile);
    store_column(values, p.inner, count, static_cast<T*>(p.y) + first);
  }
}

template <class T>
const char* launch_typed(const HadamardParams& p, Stream stream) {
  using F = std::conditional_t<sizeof(T) == sizeof(double), double, float>;
  if (p.inner > 1) {
    const int64_t tiles = p.outer * ((p.length + kTileLength - 1) / kTileLength) * ((p.inner + 31) / kWarpSize);
    return LSFAST_LAUNCH((columns_kernel<T, F>), dim3(grid_size(tiles, 1)), dim3(kThreads), 0, stream, p);
  }
  const dim3 blocks(grid_size(p.outer * p.length, kThreads * 8));
  const bool aligned = aligned_to_16(p.x) && aligned_to_16(p.y);
  return LSFAST_LAUNCH((lines_kernel<T, F>), blocks, dim3(kThreads), 0, stream, p, aligned);
}

}  // namespace

const char* launch_hadamard(const HadamardParams& p, Stream stream) {
  LSFAST_DISPATCH(p.kind, return launch_typed<scalar_t>(p, stream));
  return "hadamard: unknown element type";
}

}  // namespace lsfast::quantization
