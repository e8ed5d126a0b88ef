// CPU kernels of the quantization room: load a tile as float32, scale and round it in registers, store it.
// Compiled once per instruction set (platform/dispatch.h); loops are plain so that the compiler vectorizes them.
#include "numerics/philox.h"
#include "numerics/scaling.h"
#include "platform/stream_store.h"
#include "quantization/quantization.h"

namespace lsfast::quantization::LSFAST_ISA {

// Asks for what lies `kAhead` bytes beyond a piece of x: the processor's own prefetcher stops at the end of a page.
template <class T>
LSFAST_HD void prefetch_ahead(const T* x, int64_t count) {
  constexpr int64_t kAhead = 8192;
  const char* const first = reinterpret_cast<const char*>(x) + kAhead;
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(first + byte);
}

// ---- amax ----------------------------------------------------------------------------------------------------------

template <class T>
void amax_range(const AmaxParams& p, int64_t begin, int64_t end) {
  const int64_t chunks = p.chunks();
  const int32_t limit = p.finite_only ? 0x7f7fffff : 0x7fffffff;
  for (int64_t unit = begin; unit < end; ++unit) {
    const int64_t tensor = unit / chunks;
    const int64_t first = (unit % chunks) * AmaxParams::kChunk;
    const int64_t count = std::min(AmaxParams::kChunk, p.per_tensor - first);
    const T* x = static_cast<const T*>(p.x) + tensor * p.per_tensor + first;
    // Magnitudes of floats order as their bits: an integer maximum is exact, and the same in any order.
    constexpr int kLanes = 64;
    int32_t lane[kLanes] = {};
    const auto include = [&](int l, T value) {
      const int32_t bits = bit_cast<int32_t>(to_float(value)) & 0x7fffffff;
      const int32_t kept = bits <= limit ? bits : 0;
      lane[l] = lane[l] > kept ? lane[l] : kept;
    };
    int64_t i = 0;
    for (; i + kLanes <= count; i += kLanes) {
      prefetch_ahead(x + i, kLanes);
      for (int l = 0; l < kLanes; ++l) include(l, x[i + l]);
    }
    for (; i < count; ++i) include(0, x[i]);
    p.amax_bits[unit] = static_cast<uint32_t>(*std::max_element(lane, lane + kLanes));
  }
}

void amax(const AmaxParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, amax_range<scalar_t>(p, begin, end));
}

// ---- random words --------------------------------------------------------------------------------------------------

// words[i] = the word of element first + i.
LSFAST_HD void fill_words(uint64_t seed, uint64_t stream, int64_t first, int64_t count, uint32_t* words) {
  int64_t i = 0;
  for (; i < count && ((first + i) & 3) != 0; ++i) words[i] = philox_word(seed, stream, first + i);
  const uint64_t counter = static_cast<uint64_t>(first + i) >> 2;
  const int64_t quads = (count - i) / 4;
  for (int64_t quad = 0; quad < quads; ++quad) {
    const PhiloxWords four = philox4x32(seed, counter + static_cast<uint64_t>(quad), stream);
    for (int k = 0; k < 4; ++k) words[i + quad * 4 + k] = four.word[k];
  }
  for (i += quads * 4; i < count; ++i) words[i] = philox_word(seed, stream, first + i);
}

// ---- unscaled and per tensor ---------------------------------------------------------------------------------------

// full_range: the format has 8 exponent bits. Known to the compiler, so that the loop has one way through it.
template <class T, class F, bool full_range, Rounding rounding>
void elements_range(const FakeQuantizeParams& p, int64_t tensor, int64_t begin, int64_t end) {
  ElementFormat element = p.element;
  element.exponent_bits = full_range ? 8 : std::min(p.element.exponent_bits, 7);
  const Overflow overflow = p.overflow;
  const int64_t total = p.per_tensor();
  const T* const x = static_cast<const T*>(p.x) + tensor * total;
  T* const y = static_cast<T*>(p.y) + tensor * total;
  const bool scaled = p.scaling == Scaling::kTensor;
  const float scale = scaled ? tensor_scale(element.largest, bit_cast<float>(p.amax_bits[tensor])) : 1.0f;
  const float inverse = 1.0f / scale;
  const bool streaming =
      std::is_same_v<T, float> && may_stream(y + begin * kElementChunk, total * static_cast<int64_t>(sizeof(T)));
  alignas(64) F values[kElementChunk];
  alignas(64) uint32_t words[rounding == Rounding::kStochastic ? kElementChunk : 1];
  for (int64_t chunk = begin; chunk < end; ++chunk) {
    const int64_t first = chunk * kElementChunk;
    const int64_t count = std::min(kElementChunk, total - first);
    prefetch_ahead(x + first, count);
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (std::is_same_v<F, double>) {
        values[i] = x[first + i];
      } else {
        values[i] = to_float(x[first + i]) * scale;
      }
    }
    if constexpr (rounding == Rounding::kStochastic) fill_words(p.seed, p.stream, first, count, words);
    if (p.derivative) {
      for (int64_t i = 0; i < count; ++i) {
        values[i] = std::abs(values[i]) > static_cast<F>(element.largest) ? F(0) : F(1);
      }
    } else {
      for (int64_t i = 0; i < count; ++i) {
        const uint32_t word = rounding == Rounding::kStochastic ? words[i] : 0u;
        values[i] =
            round_to_element<F>(values[i], element, rounding, overflow, word, p.random_bits) * static_cast<F>(inverse);
      }
    }
    if constexpr (std::is_same_v<T, float>) {
      if (streaming && count == kElementChunk) {
        stream_store(y + first, values, count);
        continue;
      }
    }
    for (int64_t i = 0; i < count; ++i) {
      if constexpr (std::is_same_v<F, double>) {
        y[first + i] = values[i];
      } else {
        y[first + i] = from_float<T>(values[i]);
      }
    }
  }
  if (streaming) stream_fence();
}

// ---- NVFP4 ---------------------------------------------------------------------------------------------------------

// Block `id` of a tensor: its first element and how many it has; its elements lie `inner` apart.
struct BlockPlace {
  int64_t first;
  int64_t count;
};

LSFAST_HD BlockPlace place_of_block(const FakeQuantizeParams& p, int64_t id) {
  const int64_t column = id % p.inner;
  const int64_t row = id / p.inner;
  const int64_t position = row % p.blocks_per_line() * kNvfp4Block;
  const int64_t line = row / p.blocks_per_line();
  return {(line * p.length + position) * p.inner + column, std::min<int64_t>(kNvfp4Block, p.length - position)};
}

// values = x quantized and dequantized, kTileBlocks blocks of 16.
template <Rounding rounding>
LSFAST_HD void quantize_tile(const float* __restrict x, float* __restrict values, const uint32_t* __restrict words,
                             const Nvfp4TensorScale& tensor, int random_bits, bool derivative) {
  uint32_t block_amax[kTileBlocks];
  float multiplier[kTileBlocks];
  float factor[kTileBlocks];
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    uint32_t largest = 0u;
    for (int i = 0; i < kNvfp4Block; ++i) {
      const uint32_t bits = bit_cast<uint32_t>(x[b * kNvfp4Block + i]) & 0x7fffffffu;
      largest = largest > bits ? largest : bits;
    }
    block_amax[b] = largest;
  }
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    const Nvfp4BlockScale scale = nvfp4_block_scale(bit_cast<float>(block_amax[b]), tensor);
    multiplier[b] = scale.multiplier;
    factor[b] = scale.factor;
  }
  if (derivative) {
    for (int64_t i = 0; i < kTileBlocks * kNvfp4Block; ++i) {
      values[i] = std::abs(x[i] * multiplier[i / kNvfp4Block]) > 6.0f ? 0.0f : 1.0f;
    }
    return;
  }
  for (int64_t b = 0; b < kTileBlocks; ++b) {
    for (int i = 0; i < kNvfp4Block; ++i) {
      const int64_t at = b * kNvfp4Block + i;
      const float scaled = x[at] * multiplier[b];
      if constexpr (rounding == Rounding::kNearest) {
        // A NaN is in a block whose factor is NaN, so what becomes of it here does not matter.
        values[at] = round_number_nearest(scaled, e2m1_format()) * factor[b];
      } else {
        const uint32_t word = rounding == Rounding::kStochastic ? words[at] : 0u;
        values[at] = round_to_element<float>(scaled, e2m1_format(), rounding, Overflow::kSaturate, word, random_bits) *
                     factor[b];
      }
    }
  }
}

template <class T, Rounding rounding>
void nvfp4_range(const FakeQuantizeParams& p, int64_t tensor, int64_t begin, int64_t end) {
  constexpr int64_t kTile = kTileBlocks * kNvfp4Block;
  const int64_t total = p.per_tensor();
  const int64_t blocks = p.outer * p.blocks_per_line() * p.inner;
  const bool flat = p.inner == 1 && p.length % kNvfp4Block == 0;
  const T* const x = static_cast<const T*>(p.x) + tensor * total;
  T* const y = static_cast<T*>(p.y) + tensor * total;
  const Nvfp4TensorScale scale = nvfp4_tensor_scale(bit_cast<float>(p.amax_bits[tensor]));
  const bool streaming =
      flat && std::is_same_v<T, float> && may_stream(y + begin * kTile, total * static_cast<int64_t>(sizeof(T)));
  alignas(64) float loaded[kTile];
  alignas(64) float values[kTile];
  alignas(64) uint32_t words[kTile];
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first_block = tile * kTileBlocks;
    const int64_t tile_blocks = std::min(kTileBlocks, blocks - first_block);
    if (flat && tile_blocks == kTileBlocks) {
      const int64_t first = first_block * kNvfp4Block;
      prefetch_ahead(x + first, kTile);
      if constexpr (rounding == Rounding::kStochastic) fill_words(p.seed, p.stream, first, kTile, words);
      if constexpr (std::is_same_v<T, float>) {
        quantize_tile<rounding>(x + first, values, words, scale, p.random_bits, p.derivative);
        if (streaming) {
          stream_store(y + first, values, kTile);
          continue;
        }
      } else {
        for (int64_t i = 0; i < kTile; ++i) loaded[i] = to_float(x[first + i]);
        quantize_tile<rounding>(loaded, values, words, scale, p.random_bits, p.derivative);
      }
      for (int64_t i = 0; i < kTile; ++i) y[first + i] = from_float<T>(values[i]);
      continue;
    }
    std::fill(loaded, loaded + kTile, 0.0f);
    for (int64_t b = 0; b < tile_blocks; ++b) {
      const BlockPlace place = place_of_block(p, first_block + b);
      for (int64_t i = 0; i < place.count; ++i) {
        const int64_t index = place.first + i * p.inner;
        loaded[b * kNvfp4Block + i] = to_float(x[index]);
        if constexpr (rounding == Rounding::kStochastic) {
          words[b * kNvfp4Block + i] = philox_word(p.seed, p.stream, static_cast<uint64_t>(index));
        }
      }
    }
    quantize_tile<rounding>(loaded, values, words, scale, p.random_bits, p.derivative);
    for (int64_t b = 0; b < tile_blocks; ++b) {
      const BlockPlace place = place_of_block(p, first_block + b);
      for (int64_t i = 0; i < place.count; ++i) {
        y[place.first + i * p.inner] = from_float<T>(values[b * kNvfp4Block + i]);
      }
    }
  }
  if (streaming) stream_fence();
}

// ---- choice of instance --------------------------------------------------------------------------------------------

#define LSFAST_ROUNDING(KERNEL, ...)                                     \
  switch (p.rounding) {                                                  \
    case Rounding::kNearest:                                             \
      KERNEL<__VA_ARGS__, Rounding::kNearest>(p, tensor, begin, end);    \
      break;                                                             \
    case Rounding::kStochastic:                                          \
      KERNEL<__VA_ARGS__, Rounding::kStochastic>(p, tensor, begin, end); \
      break;                                                             \
    case Rounding::kTowardZero:                                          \
      KERNEL<__VA_ARGS__, Rounding::kTowardZero>(p, tensor, begin, end); \
      break;                                                             \
  }

void quantize_elements(const FakeQuantizeParams& p, int64_t tensor, int64_t begin, int64_t end) {
  const bool full_range = p.element.exponent_bits == 8;
  if (p.kind == ScalarKind::kFloat64 && p.scaling == Scaling::kNone) {
    LSFAST_ROUNDING(elements_range, double, double, true)  // float64 has more range than any format
  } else if (full_range) {
    LSFAST_DISPATCH(p.kind, LSFAST_ROUNDING(elements_range, scalar_t, float, true));
  } else {
    LSFAST_DISPATCH(p.kind, LSFAST_ROUNDING(elements_range, scalar_t, float, false));
  }
}

void quantize_nvfp4(const FakeQuantizeParams& p, int64_t tensor, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, LSFAST_ROUNDING(nvfp4_range, scalar_t));
}

#undef LSFAST_ROUNDING

constexpr CpuKernels kKernels = {amax, quantize_elements, quantize_nvfp4};

}  // namespace lsfast::quantization::LSFAST_ISA
