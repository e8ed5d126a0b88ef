// The steps of quantization on one tile: a few hundred elements in the first-level cache, as float32 (float64 for
// unscaled float64). Each step is a plain loop that the compiler vectorizes; which step runs is a scheme's business.
//
// A tile has `rows` rows of `columns` elements that are neighbours in memory, `pitch` apart in the tile. Where the
// blocks run along memory a tile is one row, and groups of 16 share a scale; where they run across it (the block axis
// is not the last), a row is one position along the axis and each column has a scale of its own.
#pragma once

#include "platform/stream_store.h"
#include "quantization/plan.h"
#include "quantization/words_cpu.inl"

namespace lsfast::quantization::LSFAST_ISA {

constexpr int kScales = kCapacity / kGroup;

template <class F>
struct Tile {
  alignas(64) F x[kCapacity];
  alignas(64) F values[kCapacity];
  alignas(64) uint32_t words[kCapacity];
  alignas(64) float multiplier[kScales];
  alignas(64) float factor[kScales];
  alignas(64) uint32_t amax[kScales];
  uint32_t codes[kScales];
};

struct TilePlace {
  int64_t first;   // of the tensor's elements
  int64_t stride;  // between rows in memory
  int rows;
  int columns;
  int pitch;
  int rows_per_block;  // 0 where groups of a row share a scale
  int groups_shift;    // log2 of groups per block; 31 where all groups share one

  LSFAST_HD int size() const { return rows == 1 ? columns : rows * pitch; }
  LSFAST_HD int groups() const { return (size() + kGroup - 1) / kGroup; }
};

// Asks for what lies `kAhead` bytes beyond a piece of x: the processor's own prefetcher stops at the end of a page.
template <class T>
LSFAST_HD void prefetch_ahead(const T* x, int64_t count) {
  constexpr int64_t kAhead = 8192;
  const char* const first = reinterpret_cast<const char*>(x) + kAhead;
  for (int64_t byte = 0; byte < count * static_cast<int64_t>(sizeof(T)); byte += 64) __builtin_prefetch(first + byte);
}

template <class F, class T>
LSFAST_HD F widen(T x) {
  if constexpr (std::is_same_v<F, double>) {
    return x;
  } else {
    return to_float(x);
  }
}

template <class T, class F>
LSFAST_HD T narrow(F x) {
  if constexpr (std::is_same_v<F, double>) {
    return x;
  } else {
    return from_float<T>(x);
  }
}

// The tile's numbers, of which x is the first, with zeros up to a whole group and in columns that are not there.
template <class T, class F>
void load(const T* x, const TilePlace& at, F* values) {
  for (int row = 0; row < at.rows; ++row) {
    const T* const from = x + row * at.stride;
    F* const to = values + row * at.pitch;
    for (int i = 0; i < at.columns; ++i) to[i] = widen<F>(from[i]);
    if (at.rows > 1) {
      for (int i = at.columns; i < at.pitch; ++i) to[i] = F(0);
    }
  }
  for (int i = at.size(); i < at.groups() * kGroup; ++i) values[i] = F(0);
}

template <class T, class F>
void store(const F* values, const TilePlace& at, bool streaming, T* y) {
  if constexpr (std::is_same_v<T, F>) {
    if (streaming && at.columns == kRowTile) {
      stream_store(y + at.first, values, kRowTile);
      return;
    }
  }
  for (int row = 0; row < at.rows; ++row) {
    T* const to = y + at.first + row * at.stride;
    const F* const from = values + row * at.pitch;
    for (int i = 0; i < at.columns; ++i) to[i] = narrow<T>(from[i]);
  }
}

// ---- transform -----------------------------------------------------------------------------------------------------

// One stage over whole vectors: for stages of 16 and more, and across rows.
template <class F>
LSFAST_HD void butterfly(F* __restrict a, F* __restrict b, int count) {
  for (int i = 0; i < count; ++i) {
    const F sum = a[i] + b[i];
    b[i] = a[i] - b[i];
    a[i] = sum;
  }
}

// The first four stages of many groups of 16, each a permutation of the group added to the group with some signs
// turned: the compiler's own vectors, which it maps to the registers of any instruction set. Group g is multiplied by
// before[g % period] first and by after[g % period] last; a period is 1, 2, 4 or 8.
template <class F>
void transform_groups(const F* from, F* x, int groups, const F* before, const F* after, int period) {
  typedef F Group __attribute__((vector_size(kGroup * sizeof(F))));
#define LSFAST_STAGE(...) group = __builtin_shufflevector(group, group, __VA_ARGS__) + group * turned
  for (int g = 0; g < groups; ++g) {
    Group group, factor;
    std::memcpy(&group, from + g * kGroup, sizeof(group));
    std::memcpy(&factor, before + (g & (period - 1)) * kGroup, sizeof(factor));
    group *= factor;
    Group turned = {1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1, 1, -1};
    LSFAST_STAGE(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    turned = Group{1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1, 1, 1, -1, -1};
    LSFAST_STAGE(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    turned = Group{1, 1, 1, 1, -1, -1, -1, -1, 1, 1, 1, 1, -1, -1, -1, -1};
    LSFAST_STAGE(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    turned = Group{1, 1, 1, 1, 1, 1, 1, 1, -1, -1, -1, -1, -1, -1, -1, -1};
    LSFAST_STAGE(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    std::memcpy(&factor, after + (g & (period - 1)) * kGroup, sizeof(factor));
    group *= factor;
    std::memcpy(x + g * kGroup, &group, sizeof(group));
  }
#undef LSFAST_STAGE
}

// Of each `size` positions of a tile of columns.
template <class F>
void transform_columns(F* x, const TilePlace& at, int size, const F* before, const F* after) {
  const int pitch = at.pitch;
  for (int first = 0; first < at.rows; first += size) {
    F* const values = x + first * pitch;
    for (int i = 0; i < size; ++i) {
      for (int c = 0; c < pitch; ++c) values[i * pitch + c] *= before[i];
    }
    for (int stage = 1; stage < size; stage *= 2) {
      for (int i = 0; i < size; ++i) {
        if ((i & stage) == 0) butterfly(values + i * pitch, values + (i + stage) * pitch, pitch);
      }
    }
    for (int i = 0; i < size; ++i) {
      for (int c = 0; c < pitch; ++c) values[i * pitch + c] *= after[i];
    }
  }
}

// A tile of one row may come from elsewhere, a tile of columns is transformed in place.
template <class F>
void transform(const F* from, F* x, const TilePlace& at, const Hadamard& hadamard, bool inverse) {
  const int size = hadamard.size;
  const F factor = hadamard_factor<F>(size);
  F one[kLargestHadamard], before[kLargestHadamard], after[kLargestHadamard];
  for (int i = 0; i < size; ++i) {
    const F sign = hadamard.negates(i) ? F(-1) : F(1);
    one[i] = F(1);
    before[i] = inverse ? F(1) : sign;
    after[i] = inverse ? factor * sign : factor;
  }
  if (at.rows > 1) return transform_columns(x, at, size, before, after);
  const int period = size / kGroup;
  transform_groups(from, x, at.columns / kGroup, before, period == 1 ? after : one, period);
  if (period == 1) return;
  for (int first = 0; first < at.columns; first += size) {
    F* const values = x + first;
    for (int stage = kGroup; stage < size; stage *= 2) {
      for (int i = 0; i < size; i += 2 * stage) butterfly(values + i, values + i + stage, stage);
    }
    for (int i = 0; i < size; ++i) values[i] *= after[i];
  }
}

// ---- scales --------------------------------------------------------------------------------------------------------

template <class F>
LSFAST_HD int32_t magnitude_bits(F x) {
  return bit_cast<int32_t>(static_cast<float>(x)) & 0x7fffffff;
}

// Magnitudes of 16 numbers, as bits, in the compiler's own vectors; and the largest of 16, by halves.
typedef int32_t GroupBits __attribute__((vector_size(kGroup * sizeof(int32_t))));

template <class F>
LSFAST_HD void group_bits(const F* x, GroupBits& bits) {
  if constexpr (std::is_same_v<F, float>) {
    std::memcpy(&bits, x, sizeof(bits));
    bits &= 0x7fffffff;
  } else {
    for (int i = 0; i < kGroup; ++i) bits[i] = magnitude_bits(x[i]);
  }
}

LSFAST_HD int32_t largest_of_group(GroupBits& bits) {
#define LSFAST_FOLD(...)                                                      \
  {                                                                           \
    const GroupBits other = __builtin_shufflevector(bits, bits, __VA_ARGS__); \
    bits = bits > other ? bits : other;                                       \
  }
  LSFAST_FOLD(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7)
  LSFAST_FOLD(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11)
  LSFAST_FOLD(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13)
  LSFAST_FOLD(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14)
#undef LSFAST_FOLD
  return bits[0];
}

// Includes the tile in the largest magnitude of each of its blocks, as bits: they order as the magnitudes do, so an
// integer maximum is exact, and the same in any order.
template <class F>
void include_amax(const F* __restrict x, const TilePlace& at, uint32_t* __restrict amax) {
  if (at.rows_per_block > 0) {
    for (int row = 0; row < at.rows; ++row) {
      uint32_t* const of = amax + row / at.rows_per_block * at.pitch;
      const F* const values = x + row * at.pitch;
      for (int c = 0; c < at.pitch; ++c) {
        const int32_t bits = magnitude_bits(values[c]);
        const int32_t before = static_cast<int32_t>(of[c]);
        of[c] = static_cast<uint32_t>(before > bits ? before : bits);
      }
    }
    return;
  }
  const int groups = at.groups();
  const int shift = at.groups_shift;
  for (int g = 0; g < groups; ++g) {
    GroupBits bits;
    group_bits(x + g * kGroup, bits);
    const int32_t largest = largest_of_group(bits);
    uint32_t& of = amax[g >> shift];
    of = of > static_cast<uint32_t>(largest) ? of : static_cast<uint32_t>(largest);
  }
}

constexpr int32_t kLargestFinite = 0x7f7fffff;

// Leaves out magnitudes whose bits lie above `limit`.
template <class F>
uint32_t largest_within(const F* x, int count, int32_t limit) {
  GroupBits largest = {};
  for (int g = 0; g < count; g += kGroup) {
    GroupBits bits;
    group_bits(x + g, bits);
    bits = bits <= limit ? bits : GroupBits{};
    largest = largest > bits ? largest : bits;
  }
  return static_cast<uint32_t>(largest_of_group(largest));
}

template <class F>
LSFAST_HD void fill_scales_as(const QuantScheme& scheme, Compat compat, TensorScale tensor, int count, Tile<F>& tile) {
  const ElementFormat element = scheme.element;
  LSFAST_DISPATCH_SCALE(
      scheme.rule, for (int b = 0; b < count; ++b) {
        const BlockScale block = block_scale<rule>(tile.amax[b], element, tensor, compat);
        tile.multiplier[b] = block.multiplier;
        tile.factor[b] = block.factor;
        tile.codes[b] = block.code;
      });
}

template <class F>
void fill_scales(const QuantScheme& scheme, const TensorScale& tensor, int count, Tile<F>& tile) {
  // The default is known to the compiler, so that its loop has one way through it.
  if (scheme.compat == Compat::kDefault) return fill_scales_as(scheme, Compat::kDefault, tensor, count, tile);
  fill_scales_as(scheme, scheme.compat, tensor, count, tile);
}

// values = x times (or over) the scale of each block.
template <bool divide, class F>
void scale_values(const F* __restrict x, const TilePlace& at, const float* __restrict scale, F* __restrict values) {
  const auto scaled = [](F number, F by) { return divide ? number / by : number * by; };
  if (at.rows_per_block > 0) {
    const int pitch = at.pitch;
    for (int row = 0; row < at.rows; ++row) {
      const float* const of = scale + row / at.rows_per_block * pitch;
      for (int c = 0; c < pitch; ++c) values[row * pitch + c] = scaled(x[row * pitch + c], static_cast<F>(of[c]));
    }
    for (int i = at.size(); i < at.groups() * kGroup; ++i) values[i] = F(0);
    return;
  }
  const int groups = at.groups();
  const int shift = at.groups_shift;
  for (int g = 0; g < groups; ++g) {
    const F by = static_cast<F>(scale[g >> shift]);
    for (int i = 0; i < kGroup; ++i) values[g * kGroup + i] = scaled(x[g * kGroup + i], by);
  }
}

template <class F>
void multiply_values(F* __restrict values, const TilePlace& at, const float* __restrict factor) {
  if (at.rows_per_block > 0) {
    const int pitch = at.pitch;
    for (int row = 0; row < at.rows; ++row) {
      const float* const of = factor + row / at.rows_per_block * pitch;
      for (int c = 0; c < pitch; ++c) values[row * pitch + c] *= static_cast<F>(of[c]);
    }
    return;
  }
  const int groups = at.groups();
  const int shift = at.groups_shift;
  for (int g = 0; g < groups; ++g) {
    const F by = static_cast<F>(factor[g >> shift]);
    for (int i = 0; i < kGroup; ++i) values[g * kGroup + i] *= by;
  }
}

// ---- rounding ------------------------------------------------------------------------------------------------------

enum class Carrier { kNarrow, kWide, kTable };  // less range than float32, all of it, a table

template <class F, Carrier carrier, Rounding rounding>
void round_values(const QuantScheme& given, int count, const uint32_t* __restrict words, F* __restrict values) {
  QuantScheme scheme = given;
  // Known to the compiler, so that the loop has one way through it.
  scheme.rounding = rounding;
  scheme.element.exponent_bits = carrier == Carrier::kWide ? 8 : std::min(given.element.exponent_bits, 7);
  if constexpr (carrier == Carrier::kTable) {
    scheme.element.special = Special::kTable;
  } else if (given.element.special == Special::kTable) {
    return;  // never so: it tells the compiler
  }
  for (int i = 0; i < count; ++i) {
    values[i] = round_scaled(values[i], scheme, rounding == Rounding::kStochastic ? words[i] : 0u);
  }
}

template <class F, Carrier carrier>
void round_as(const QuantScheme& scheme, int count, const uint32_t* words, F* values) {
  switch (scheme.rounding) {
    case Rounding::kNearest:
      return round_values<F, carrier, Rounding::kNearest>(scheme, count, words, values);
    case Rounding::kStochastic:
      return round_values<F, carrier, Rounding::kStochastic>(scheme, count, words, values);
    case Rounding::kTowardZero:
      return round_values<F, carrier, Rounding::kTowardZero>(scheme, count, words, values);
  }
}

// Is the scheme one of those that quantize_in_one rounds?
template <class F>
bool rounds_in_one(const QuantScheme& scheme) {
  const bool wide = scheme.element.exponent_bits == 8 && sizeof(F) == sizeof(float);
  return scheme.overflow == Overflow::kSaturate && !wide && !divides(scheme.compat) &&
         scheme.element.special != Special::kTable && scheme.element.special != Special::kFullInteger;
}

// Multiply, round, multiply in one pass: the way of most schemes. Groups of 16 share a scale. Returns how many
// elements saturated, where that is asked for.
template <Rounding rounding, bool counting, class F>
int32_t quantize_in_one(const F* __restrict x, const TilePlace& at, const float* __restrict multiplier,
                        const float* __restrict factor, const uint32_t* __restrict words, const QuantScheme& scheme,
                        F* __restrict values) {
  using Layout = FloatLayout<F>;
  using Bits = typename Layout::Bits;
  ElementFormat element = scheme.element;
  element.exponent_bits = std::min(element.exponent_bits, 7);  // known to the compiler: one way through the loop
  const F zero = is_integer(element.special) ? F(0) : F(-0.0);
  const F largest = static_cast<F>(element.largest);
  const int groups = at.groups();
  const int shift = at.groups_shift;
  const int random_bits = scheme.random_bits;
  int32_t saturated[kGroup] = {};
  for (int g = 0; g < groups; ++g) {
    const F before = static_cast<F>(multiplier[g >> shift]);
    const F after = static_cast<F>(factor[g >> shift]);
    for (int i = 0; i < kGroup; ++i) {
      const F scaled = x[g * kGroup + i] * before;
      const Bits bits = bit_cast<Bits>(scaled);
      const F magnitude = bit_cast<F>(static_cast<Bits>(bits & Layout::kMagnitudeMask));
      const F capped = magnitude < largest ? magnitude : largest;  // the largest is on the grid, and stays there
      const uint32_t word = rounding == Rounding::kStochastic ? words[g * kGroup + i] : 0u;
      const Bits rounded = bit_cast<Bits>(round_magnitude(capped, element, rounding, word, random_bits));
      const F result = bit_cast<F>(static_cast<Bits>(rounded | (bits & ~Layout::kMagnitudeMask))) + zero;
      if constexpr (counting) saturated[i] += magnitude > largest ? 1 : 0;
      values[g * kGroup + i] = (scaled != scaled ? scaled : result) * after;
    }
  }
  int32_t sum = 0;
  for (const int32_t part : saturated) sum += part;
  return sum;
}

// `factor`: the tile's own, or ones where rounded numbers are wanted.
template <bool counting, class F>
int32_t quantize_tile(const F* x, const TilePlace& at, const QuantScheme& scheme, const float* factor, Tile<F>& tile) {
  switch (scheme.rounding) {
    case Rounding::kStochastic:
      return quantize_in_one<Rounding::kStochastic, counting>(x, at, tile.multiplier, factor, tile.words, scheme,
                                                              tile.values);
    case Rounding::kTowardZero:
      return quantize_in_one<Rounding::kTowardZero, counting>(x, at, tile.multiplier, factor, tile.words, scheme,
                                                              tile.values);
    default:
      return quantize_in_one<Rounding::kNearest, counting>(x, at, tile.multiplier, factor, tile.words, scheme,
                                                           tile.values);
  }
}

template <class F>
void round_tile(const QuantScheme& scheme, int count, const uint32_t* words, F* values) {
  if (scheme.element.special == Special::kTable) return round_as<F, Carrier::kTable>(scheme, count, words, values);
  if (scheme.element.exponent_bits == 8 && sizeof(F) == sizeof(float)) {
    return round_as<F, Carrier::kWide>(scheme, count, words, values);
  }
  round_as<F, Carrier::kNarrow>(scheme, count, words, values);
}

}  // namespace lsfast::quantization::LSFAST_ISA
