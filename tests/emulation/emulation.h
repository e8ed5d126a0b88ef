// The words of CUDA that kernels are written in, for a C++ compiler: csrc/platform/launch.h includes this in place of
// the CUDA runtime when LSFAST_EMULATION is defined. How threads run is in scheduler.h.
//
// A warp operation needs every lane that its mask names, and a lane that has exited cannot come: stricter than CUDA,
// where its value is undefined. A barrier waits for the threads that have not exited, as CUDA's does. Kernels lie in
// anonymous namespaces (a linker section holds their shared memory, and templates of external linkage cannot be there).
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "scheduler.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __shared__ static __attribute__((section("lsfast_shared")))
#define LSFAST_DYNAMIC_SHARED(type, name) type* name = static_cast<type*>(::lsfast::emulation::dynamic_shared())

// The arguments are copied once, and again for each thread: as on a GPU, a kernel may change its own.
#define LSFAST_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
  ::lsfast::emulation::launch(#kernel, kernel, (grid), (block), (shared_bytes), (stream)__VA_OPT__(, ) __VA_ARGS__)

namespace lsfast::emulation {

template <class... Parameters, class... Arguments>
const char* launch(const char* name, void (*kernel)(Parameters...), Dim3 grid, Dim3 block, std::size_t shared_bytes,
                   void*, const Arguments&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied as bytes");
  static_assert((!std::is_reference_v<Parameters> && ...), "a kernel cannot refer to the host's memory");
  const std::tuple<Parameters...> copies(static_cast<Parameters>(arguments)...);
  return run(name, grid, block, shared_bytes, [&] { std::apply(kernel, copies); });
}

template <class T>
T exchange(Exchange kind, const char* name, const char* file, int line, unsigned mask, T value, int argument,
           int width) {
  static_assert(std::is_arithmetic_v<T> && sizeof(T) <= 8, "a shuffle moves a number of up to 64 bits");
  WarpRequest request{kind, name, file, line, mask, width, argument, sizeof(T), 0};
  std::memcpy(&request.value, &value, sizeof(T));
  const std::uint64_t received = meet_warp(request);
  std::memcpy(&value, &received, sizeof(T));
  return value;
}

// The lanes of `mask` whose predicate holds.
inline unsigned vote(const char* name, const char* file, int line, unsigned mask, int predicate) {
  return static_cast<unsigned>(meet_warp({Exchange::kBallot, name, file, line, mask, 32, predicate != 0, 0, 0}));
}

}  // namespace lsfast::emulation

using dim3 = lsfast::emulation::Dim3;
inline constexpr const dim3& threadIdx = lsfast::emulation::thread_index;
inline constexpr const dim3& blockIdx = lsfast::emulation::block_index;
inline constexpr const dim3& blockDim = lsfast::emulation::block_size;
inline constexpr const dim3& gridDim = lsfast::emulation::grid_size;

// Meeting points. The place of the call tells apart barriers that CUDA forbids to mix.
#define LSFAST_HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()

inline void __syncthreads(LSFAST_HERE) { lsfast::emulation::meet_block(file, line); }
inline void __syncwarp(unsigned mask = 0xffffffffu, LSFAST_HERE) {
  lsfast::emulation::meet_warp({lsfast::emulation::Exchange::kSync, "__syncwarp", file, line, mask, 32, 0, 0, 0});
}
inline unsigned __ballot_sync(unsigned mask, int predicate, LSFAST_HERE) {
  return lsfast::emulation::vote("__ballot_sync", file, line, mask, predicate);
}
inline int __any_sync(unsigned mask, int predicate, LSFAST_HERE) {
  return lsfast::emulation::vote("__any_sync", file, line, mask, predicate) != 0;
}
inline int __all_sync(unsigned mask, int predicate, LSFAST_HERE) {
  return lsfast::emulation::vote("__all_sync", file, line, mask, predicate) == mask;
}
template <class T>
T __shfl_sync(unsigned mask, T value, int lane, int width = 32, LSFAST_HERE) {
  using lsfast::emulation::Exchange;
  return lsfast::emulation::exchange(Exchange::kFromLane, "__shfl_sync", file, line, mask, value, lane, width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, LSFAST_HERE) {
  using lsfast::emulation::Exchange;
  return lsfast::emulation::exchange(Exchange::kDown, "__shfl_down_sync", file, line, mask, value,
                                     static_cast<int>(delta), width);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, LSFAST_HERE) {
  using lsfast::emulation::Exchange;
  return lsfast::emulation::exchange(Exchange::kUp, "__shfl_up_sync", file, line, mask, value, static_cast<int>(delta),
                                     width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, LSFAST_HERE) {
  using lsfast::emulation::Exchange;
  return lsfast::emulation::exchange(Exchange::kXor, "__shfl_xor_sync", file, line, mask, value, lane_mask, width);
}
#undef LSFAST_HERE

// Atomics: fibers change only at meeting points, so a plain read and write is one step. The second argument takes no
// part in the deduction of T, as CUDA's overloads convert it.
template <class T, class Function>
T lsfast_atomic(T* address, const Function& function) {
  const T old = *address;
  *address = function(old);
  return old;
}
template <class T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return lsfast_atomic(address, [&](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return lsfast_atomic(address, [&](T old) { return old < value ? value : old; });
}
template <class T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return lsfast_atomic(address, [&](T old) { return value < old ? value : old; });
}
template <class T>
T atomicOr(T* address, std::type_identity_t<T> value) {
  return lsfast_atomic(address, [&](T old) { return old | value; });
}
template <class T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return lsfast_atomic(address, [&](T) { return value; });
}
template <class T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return lsfast_atomic(address, [&](T old) { return old == expected ? value : old; });
}

// Scalar functions that CUDA has and <cmath> has not.
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return static_cast<T>(std::fmin(static_cast<T>(a), static_cast<T>(b)));
  return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
  using T = std::common_type_t<A, B>;
  if constexpr (std::is_floating_point_v<T>) return static_cast<T>(std::fmax(static_cast<T>(a), static_cast<T>(b)));
  return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}
template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

template <class To, class From>
To lsfast_bits(From value) {
  static_assert(sizeof(To) == sizeof(From));
  To result;
  std::memcpy(&result, &value, sizeof(To));
  return result;
}
inline unsigned __float_as_uint(float x) { return lsfast_bits<unsigned>(x); }
inline int __float_as_int(float x) { return lsfast_bits<int>(x); }
inline float __uint_as_float(unsigned x) { return lsfast_bits<float>(x); }
inline float __int_as_float(int x) { return lsfast_bits<float>(x); }
inline long long __double_as_longlong(double x) { return lsfast_bits<long long>(x); }
inline double __longlong_as_double(long long x) { return lsfast_bits<double>(x); }
