// What is done to each region of a tensor, tile by tile: of numbers that lie in memory, or of points that are formed as
// they are read.
#pragma once

#include "quantization/codes_cpu.inl"
#include "quantization/plan.h"
#include "quantization/statistics_cpu.inl"
#include "quantization/tile_cpu.inl"

namespace lsfast::quantization::LSFAST_ISA {

// Everything a thread needs to quantize regions of one tensor.
template <class T, class F>
class Quantizer {
 public:
  Quantizer(const QuantizeParams& params, int64_t tensor)
      : p_(params),
        plan_(make_plan(params)),
        in_one_(rounds_in_one<F>(params.scheme) && !params.derivative &&
                (params.granularity == Granularity::kNone || params.granularity == Granularity::kTensor)),
        blocked_(params.scheme.blocked()) {
    std::fill(one_, one_ + kScales, 1.0f);
    turn_to(tensor);
  }

  // From now on the tensor is another one.
  void turn_to(int64_t tensor) {
    const int64_t first = tensor * p_.per_tensor();
    if (p_.formed()) {
      form_ = p_.points.template point<T>(tensor);
    } else {
      x_ = static_cast<const T*>(p_.x) + first;
    }
    y_ = p_.y == nullptr ? nullptr : static_cast<T*>(p_.y) + first;
    const float amax = p_.amax_bits == nullptr ? 0.0f : bit_cast<float>(p_.amax_bits[tensor]);
    tensor_scale_ = make_tensor_scale(amax, p_.scheme.tensor_scale, p_.scheme.compat);
    const int64_t written = p_.per_tensor() * (p_.formed() ? p_.tensors : 1) * static_cast<int64_t>(sizeof(T));
    streaming_ = !plan_.columns && y_ != nullptr && may_stream(y_, written) && plan_.length % kGroup == 0;
    if (blocked_ || (filled_ && p_.amax_bits == nullptr)) return;
    for (uint32_t& bits : tile_.amax) bits = bit_cast<uint32_t>(amax);
    fill_scales(p_.scheme, tensor_scale_, kScales, tile_);
    filled_ = true;
  }

  // Of the tensor, added up over all regions since the last call.
  Sums take_sums() {
    const Sums sums = sums_;
    sums_ = Sums();
    return sums;
  }

  const Plan& plan() const { return plan_; }

  void quantize(int64_t id) {
    const Region region = region_at(plan_, id);
    const int64_t tiles = divided_up(region.length, plan_.tile_length);
    if (p_.scheme.per_tensor && p_.scales != nullptr && id == 0) static_cast<float*>(p_.scales)[0] = tile_.factor[0];
    const bool single = region.lines == 1 && tiles == 1;
    if (blocked_) {
      const int blocks =
          static_cast<int>(divided_up(region.length, plan_.block_length)) * (plan_.columns ? pitch() : 1);
      blocks_ = blocks;
      std::fill(tile_.amax, tile_.amax + blocks, 0u);
      for_tiles(region, tiles,
                [&](const TilePlace& at, int64_t, int64_t) { include_amax(loaded(at), at, tile_.amax); });
      fill_scales(p_.scheme, tensor_scale_, blocks, tile_);
      if (p_.scales != nullptr) store_scales(region, blocks);
    }
    for_tiles(region, tiles, [&](const TilePlace& at, int64_t line, int64_t position) {
      finish(at, blocked_ && single ? kept_ : loaded(at), region, line, position);
    });
  }

  // The largest magnitude, as bits, after the transform.
  uint32_t amax(int64_t id) {
    const Region region = region_at(plan_, id);
    const int32_t limit = p_.finite_amax() ? kLargestFinite : 0x7fffffff;
    uint32_t largest = 0;
    for_tiles(region, divided_up(region.length, plan_.tile_length), [&](const TilePlace& at, int64_t, int64_t) {
      largest = std::max(largest, largest_within(loaded(at), at.groups() * kGroup, limit));
    });
    return largest;
  }

 private:
  int pitch() const { return plan_.tile_columns; }

  template <class Function>
  void for_tiles(const Region& region, int64_t tiles, const Function& function) {
    const bool whole = plan_.region_length != plan_.tile_length || plan_.block_length > plan_.tile_length;
    for (int64_t line = region.first_line; line < region.first_line + region.lines; ++line) {
      for (int64_t t = 0; t < tiles; ++t) {
        const int64_t position = region.position + t * plan_.tile_length;
        const int64_t left = region.position + region.length - position;
        const int count = static_cast<int>(std::min(plan_.tile_length, left));
        TilePlace at;
        at.first = (line * plan_.length + position) * plan_.inner + region.column;
        at.stride = plan_.inner;
        at.rows = plan_.columns ? count : 1;
        at.columns = plan_.columns ? region.columns : count;
        at.pitch = plan_.columns ? pitch() : 0;
        at.rows_per_block = !plan_.columns ? 0 : (whole ? kCapacity : static_cast<int>(plan_.block_length));
        at.groups_shift = whole || plan_.block_length % kGroup != 0 ? 31 : shift_of(plan_.block_length / kGroup);
        function(at, line, position);
      }
    }
  }

  static int shift_of(int64_t power) {
    int shift = 0;
    while ((int64_t{1} << shift) < power) ++shift;
    return shift;
  }

  // Never inlined: what reads from memory is then as small as if nothing was formed.
  __attribute__((noinline)) const T* formed(const TilePlace& at) {
    form_numbers(form_, at.first, at.columns, formed_);
    return formed_;
  }

  // The tile's numbers, transformed: where they lie or were formed if that is possible, else in tile_.x.
  const F* loaded(const TilePlace& at) {
    const T* const from = p_.formed() ? formed(at) : x_ + at.first;
    if (!plan_.columns && !p_.formed()) prefetch_ahead(from, at.columns);
    const Hadamard& hadamard = p_.scheme.hadamard;
    if constexpr (std::is_same_v<T, F>) {
      if (!plan_.columns && at.columns % kGroup == 0) {
        if (hadamard.size == 0) return kept_ = from;
        transform(from, tile_.x, at, hadamard, false);
        return kept_ = tile_.x;
      }
    }
    load(from, at, tile_.x);
    if (hadamard.size > 0) transform(tile_.x, tile_.x, at, hadamard, false);
    return kept_ = tile_.x;
  }

  // From numbers to values or codes: multiply, round, multiply, store.
  void finish(const TilePlace& at, const F* x, const Region& region, int64_t line, int64_t position) {
    const QuantScheme& scheme = p_.scheme;
    const int count = at.groups() * kGroup;
    F* const values = tile_.values;
    if (scheme.rounding == Rounding::kStochastic && !p_.derivative) fill_tile_words(at, line, position);
    if (in_one_ && at.rows_per_block == 0) {
      if (p_.granularity == Granularity::kTensor) {
        sums_.saturated += quantize_tile<true>(x, at, scheme, tile_.factor, tile_);
        include_rounded<T>(x, values, count, sums_);
        include_largest(x, count, tile_.amax, blocks_, sums_);
      } else {
        quantize_tile<false>(x, at, scheme, p_.codes == nullptr ? tile_.factor : one_, tile_);
      }
      if (p_.codes != nullptr) {
        store_codes(at, line, position);
      } else {
        store(values, at, streaming_, y_);
      }
      return;
    }
    if (divides(scheme.compat)) {
      scale_values<true>(x, at, tile_.multiplier, values);
    } else if (scheme.rule == ScaleRule::kNone) {
      std::copy(x, x + count, values);
    } else {
      scale_values<false>(x, at, tile_.multiplier, values);
    }
    if (p_.derivative) {
      for (int i = 0; i < count; ++i) values[i] = saturates(values[i], scheme.element) ? F(0) : F(1);
      store(values, at, streaming_, y_);
      return;
    }
    const Segments segments{p_.statistics, p_.granularity == Granularity::kRow, line, position, region.column,
                            region.band};
    const bool in_segments = p_.granularity == Granularity::kRow || p_.granularity == Granularity::kBlock;
    if (p_.granularity == Granularity::kTensor) sums_.saturated += count_saturated(values, count, scheme.element);
    if (in_segments) segments_before(plan_, segments, at, values, scheme.element);
    round_tile(scheme, count, tile_.words, values);
    if (p_.codes != nullptr) {
      store_codes(at, line, position);
      return;
    }
    if (scheme.rule != ScaleRule::kNone) multiply_values(values, at, tile_.factor);
    if (p_.granularity == Granularity::kTensor) {
      include_rounded<T>(x, values, count, sums_);
      include_largest(x, count, tile_.amax, blocks_, sums_);
    }
    if (in_segments) segments_after<T>(plan_, segments, at, x, values);
    store(values, at, streaming_, y_);
  }

  void fill_tile_words(const TilePlace& at, int64_t line, int64_t position) {
    if (p_.word_inner > 1) {  // of a tensor whose block axis was moved to the end
      const int64_t outer = line / p_.height;
      const int64_t row = outer / p_.word_inner * p_.height + line % p_.height;
      const int64_t first = (row * plan_.length + position) * p_.word_inner + outer % p_.word_inner;
      for (int i = 0; i < at.columns; ++i) {
        tile_.words[i] = philox_word(p_.seed, p_.stream, static_cast<uint64_t>(first + i * p_.word_inner));
      }
      return;
    }
    for (int row = 0; row < at.rows; ++row) {
      fill_words(p_.seed, p_.stream, at.first + row * at.stride, at.columns, tile_.words + row * at.pitch);
    }
  }

  void store_codes(const TilePlace& at, int64_t line, int64_t position) {
    encode_values(tile_.values, at.columns, p_.scheme, tile_.words);
    const int bits = p_.scheme.code_bits();
    // A plan that runs on through the ends of lines has one line of whole bytes.
    const int64_t line_start = plan_.length == p_.length ? line * p_.line_bytes : 0;
    pack_codes(tile_.words, at.columns, bits, p_.codes + line_start + position * p_.scheme.stored_bits() / 8);
  }

  void store_scales(const Region& region, int blocks) {
    const int64_t first = region.band * plan_.length_blocks() + region.position / plan_.block_length;
    const ScaleRule rule = p_.scheme.rule;
    if (scale_is_byte(rule)) {
      uint8_t* const bytes = static_cast<uint8_t*>(p_.scales) + first;
      for (int b = 0; b < blocks; ++b) bytes[b] = static_cast<uint8_t>(stored_code(rule, {0.0f, 0.0f, tile_.codes[b]}));
    } else {
      std::copy(tile_.factor, tile_.factor + blocks, static_cast<float*>(p_.scales) + first);
    }
  }

  const QuantizeParams& p_;
  const Plan plan_;
  const T* x_ = nullptr;
  T* y_ = nullptr;
  PointForm<T> form_{};
  const bool in_one_;
  const bool blocked_;
  bool streaming_;
  bool filled_ = false;  // are the scales those of a tensor without blocks?
  int blocks_ = 0;       // of the region, whose largest magnitudes are in tile_.amax
  const F* kept_ = nullptr;
  TensorScale tensor_scale_;
  Sums sums_;
  float one_[kScales];
  Tile<F> tile_;
  alignas(64) T formed_[kRowTile];
};

}  // namespace lsfast::quantization::LSFAST_ISA
