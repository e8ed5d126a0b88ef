// How a kernel is written and launched, for nvcc and for the emulation of tests/emulation alike.
//
// A .cu file includes this and nothing else of CUDA. LSFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, args...)
// launches and returns null, or the text of the launch error. Dynamic shared memory is reached through
// LSFAST_DYNAMIC_SHARED(type, name); static shared memory is written `__shared__ type name[count];` as always.
#pragma once

#include <cstdint>

#if defined(LSFAST_EMULATION)
#include "emulation.h"
#else
#include <cuda_runtime.h>

namespace lsfast {
inline const char* launch_error() {
  const cudaError_t error = cudaGetLastError();
  return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}
}  // namespace lsfast

#define LSFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)                           \
  (kernel<<<(grid), (block), (shared_bytes), static_cast<cudaStream_t>(stream)>>>(__VA_ARGS__), \
   ::lsfast::launch_error())

#define LSFAST_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char lsfast_shared[]; \
  type* name = reinterpret_cast<type*>(lsfast_shared)
#endif

namespace lsfast {

constexpr int kWarpSize = 32;
constexpr unsigned kFullWarp = 0xffffffffu;

// Blocks for `items` with `per_block` each, at most `limit`: kernels stride over what is left.
inline unsigned grid_size(int64_t items, int64_t per_block, int64_t limit = 1 << 20) {
  const int64_t blocks = (items + per_block - 1) / per_block;
  return static_cast<unsigned>(blocks < 1 ? 1 : (blocks < limit ? blocks : limit));
}

// kCount neighbouring elements, moved in one access: 16 bytes unless said otherwise.
template <class T, int count = 16 / static_cast<int>(sizeof(T))>
struct alignas(sizeof(T) * count) Pack {
  static constexpr int kCount = count;
  T element[kCount];
};

// Bytes of dynamic shared memory a kernel may have, at most `wanted`: 48 KiB, and more where the device gives more.
template <class Kernel>
int64_t shared_memory_for([[maybe_unused]] Kernel kernel, int64_t wanted) {
  constexpr int64_t kAlways = 48 * 1024;
#if !defined(LSFAST_EMULATION)
  int device = 0;
  int most = 0;
  if (wanted > kAlways && cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device) == cudaSuccess) {
    const int bytes = static_cast<int>(wanted < most ? wanted : most);
    if (cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes) == cudaSuccess) return bytes;
    cudaGetLastError();
  }
#endif
  return wanted < kAlways ? wanted : kAlways;
}

inline bool aligned_to_16(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; }

// The sum over a warp: a butterfly, so that every lane ends with the same bits.
template <class F>
__device__ __forceinline__ F warp_sum(F value) {
  for (int offset = kWarpSize / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kFullWarp, value, offset);
  return value;
}

}  // namespace lsfast
