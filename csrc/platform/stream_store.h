// Storing a tile past the cache: a large output that is not read again soon would first be read into the cache, then
// evicted; a streaming store writes it once. Falls back to a copy where the target has none. (LSFAST_VECTOR_BITS is set
// by kernels_*.cpp: the compiler reads a whole file before it acts on a target pragma, so __AVX512F__ says nothing
// here.)
#pragma once

#include "platform/standard_headers.h"

namespace lsfast {

constexpr int64_t kStreamingBytes = int64_t{1} << 22;  // below this an output is left in the cache for its reader

template <class T>
LSFAST_HD bool may_stream(const T* y, int64_t bytes) {
  return bytes >= kStreamingBytes && reinterpret_cast<uintptr_t>(y) % 64 == 0;
}

// `count` is a multiple of 16, y is 64-byte aligned.
LSFAST_HD void stream_store(float* y, const float* values, int64_t count) {
#if LSFAST_VECTOR_BITS == 512
  for (int64_t i = 0; i < count; i += 16) _mm512_stream_ps(y + i, _mm512_loadu_ps(values + i));
#elif LSFAST_VECTOR_BITS == 256
  for (int64_t i = 0; i < count; i += 8) _mm256_stream_ps(y + i, _mm256_loadu_ps(values + i));
#elif LSFAST_VECTOR_BITS == 128
  for (int64_t i = 0; i < count; i += 4) _mm_stream_ps(y + i, _mm_loadu_ps(values + i));
#else
  std::memcpy(y, values, static_cast<size_t>(count) * sizeof(float));
#endif
}

LSFAST_HD void stream_store(double* y, const double* values, int64_t count) {
#if LSFAST_VECTOR_BITS == 512
  for (int64_t i = 0; i < count; i += 8) _mm512_stream_pd(y + i, _mm512_loadu_pd(values + i));
#elif LSFAST_VECTOR_BITS == 256
  for (int64_t i = 0; i < count; i += 4) _mm256_stream_pd(y + i, _mm256_loadu_pd(values + i));
#elif LSFAST_VECTOR_BITS == 128
  for (int64_t i = 0; i < count; i += 2) _mm_stream_pd(y + i, _mm_loadu_pd(values + i));
#else
  std::memcpy(y, values, static_cast<size_t>(count) * sizeof(double));
#endif
}

// Makes streamed stores visible to other threads before the kernel returns.
LSFAST_HD void stream_fence() {
#if LSFAST_VECTOR_BITS > 0
  _mm_sfence();
#endif
}

}  // namespace lsfast
