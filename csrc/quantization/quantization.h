// The quantization room: fake-quantization of a tensor. Parameters, CPU kernel table and CUDA launchers, in plain C++.
#pragma once

#include "numerics/element.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::quantization {

enum class Scaling : int32_t {
  kNone = 0,    // x itself is rounded
  kTensor = 1,  // one float32 scale, largest/amax
  kNvfp4 = 2,   // blocks of 16 along the axis with an E4M3 scale, one float32 scale over all
};

// A tensor seen as [tensors, outer, length, inner]: `tensors` independent ones (the vmap axis, else 1), blocks along
// `length`, everything row-major. An element's index for stochastic rounding counts from the start of its own tensor.
struct FakeQuantizeParams {
  const void* x;              // [tensors, outer, length, inner] of `kind`
  void* y;                    // the same shape; may be x
  const uint32_t* amax_bits;  // [tensors] float32 bits of the largest magnitude; null when scaling is kNone
  int64_t tensors;
  int64_t outer;
  int64_t length;
  int64_t inner;
  ElementFormat element;
  Scaling scaling;
  Rounding rounding;
  Overflow overflow;
  int32_t random_bits;
  bool derivative;  // write 0 where the value saturated and 1 elsewhere, in place of the value
  uint64_t seed;
  uint64_t stream;
  ScalarKind kind;

  LSFAST_HD int64_t per_tensor() const { return outer * length * inner; }
  LSFAST_HD int64_t blocks_per_line() const { return (length + 15) / 16; }
};

struct AmaxParams {
  const void* x;        // [tensors, per_tensor] of `kind`
  uint32_t* amax_bits;  // [tensors] for CUDA, zeroed by the caller; [tensors, chunks] partial results for the CPU
  int64_t tensors;
  int64_t per_tensor;
  bool finite_only;  // leave out Inf and NaN (block-scaled schemes); else they sort above every number
  ScalarKind kind;

  static constexpr int64_t kChunk = 16384;
  LSFAST_HD int64_t chunks() const { return (per_tensor + kChunk - 1) / kChunk; }
};

constexpr int64_t kTileBlocks = 16;      // NVFP4 blocks that the CPU kernel scales together
constexpr int64_t kElementChunk = 1024;  // elements that the CPU kernel rounds together

// Each works on a range: of chunks (amax), of element chunks, of tiles of blocks. Ranges may run on any thread.
struct CpuKernels {
  void (*amax)(const AmaxParams&, int64_t begin, int64_t end);  // over tensors * chunks
  void (*quantize_elements)(const FakeQuantizeParams&, int64_t tensor, int64_t begin, int64_t end);
  void (*quantize_nvfp4)(const FakeQuantizeParams&, int64_t tensor, int64_t begin, int64_t end);
};

const char* launch_amax(const AmaxParams& params, Stream stream);
const char* launch_fake_quantize(const FakeQuantizeParams& params, Stream stream);

}  // namespace lsfast::quantization
