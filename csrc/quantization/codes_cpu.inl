// Packed codes: of a tile's rounded numbers, and from codes and scales back to values.
#pragma once

#include "quantization/tile_cpu.inl"

namespace lsfast::quantization::LSFAST_ISA {

// codes[i] = the code of a rounded number; each kind of element in a loop of its own.
template <class F>
void encode_values(const F* __restrict values, int count, const QuantScheme& scheme, uint32_t* __restrict codes) {
  const ElementFormat element = scheme.element;
  if (element.special == Special::kTable) {
    for (int i = 0; i < count; ++i) codes[i] = encode_normal_float(static_cast<float>(values[i]));
  } else if (is_integer(element.special)) {
    for (int i = 0; i < count; ++i) codes[i] = encode_integer(static_cast<float>(values[i]), element);
  } else {
    for (int i = 0; i < count; ++i) codes[i] = encode_float(static_cast<float>(values[i]), element);
  }
}

// Packs `count` codes of `bits` bits, each in its own word, from the lowest bit of `bytes` up; 9 to 16 bits take two
// bytes and wider codes four.
inline void pack_codes(const uint32_t* __restrict codes, int count, int bits, uint8_t* __restrict bytes) {
  if (bits == 4) {
    for (int i = 0; i < count / 2; ++i) bytes[i] = static_cast<uint8_t>(codes[2 * i] | codes[2 * i + 1] << 4);
    if (count % 2 == 1) bytes[count / 2] = static_cast<uint8_t>(codes[count - 1]);
    return;
  }
  if (bits == 8) {
    for (int i = 0; i < count; ++i) bytes[i] = static_cast<uint8_t>(codes[i]);
    return;
  }
  const int width = bits < 8 ? bits : (bits <= 16 ? 16 : 32);
  uint64_t pending = 0;
  int held = 0;
  for (int i = 0; i < count; ++i) {
    pending |= static_cast<uint64_t>(codes[i]) << held;
    for (held += width; held >= 8; held -= 8, pending >>= 8) *bytes++ = static_cast<uint8_t>(pending);
  }
  if (held > 0) *bytes = static_cast<uint8_t>(pending);
}

inline void unpack_codes(const uint8_t* __restrict bytes, int count, int bits, uint32_t* __restrict codes) {
  if (bits == 4) {
    for (int i = 0; i < count / 2; ++i) {
      codes[2 * i] = bytes[i] & 15u;
      codes[2 * i + 1] = bytes[i] >> 4;
    }
    if (count % 2 == 1) codes[count - 1] = bytes[count / 2] & 15u;
    return;
  }
  if (bits == 8) {
    for (int i = 0; i < count; ++i) codes[i] = bytes[i];
    return;
  }
  const int width = bits < 8 ? bits : (bits <= 16 ? 16 : 32);
  const uint64_t mask = (uint64_t{1} << width) - 1u;
  uint64_t pending = 0;
  int held = 0;
  for (int i = 0; i < count; ++i) {
    for (; held < width; held += 8) pending |= static_cast<uint64_t>(*bytes++) << held;
    codes[i] = static_cast<uint32_t>(pending & mask);
    pending >>= width;
    held -= width;
  }
}

template <class T>
void dequantize_range(const DequantizeParams& p, int64_t begin, int64_t end) {
  const int bits = p.scheme.code_bits();
  const int width = bits <= 8 ? bits : (bits <= 16 ? 16 : 32);
  const ScaleRule rule = p.scheme.rule;
  const float amax = p.amax_bits == nullptr ? 0.0f : bit_cast<float>(*p.amax_bits);
  const TensorScale tensor = make_tensor_scale(amax, p.scheme.tensor_scale, p.scheme.compat);
  float table[256];
  for (uint32_t code = 0; code < 256u && bits <= 8; ++code) {
    table[code] = code >> bits == 0u ? decode_code(code, p.scheme) : 0.0f;
  }
  const auto factor_at = [&](int64_t block) {
    const bool bytes = is_e8m0(rule) || rule == ScaleRule::kE4m3;
    if (rule == ScaleRule::kNone) return 1.0f;
    if (p.scheme.per_tensor) return static_cast<const float*>(p.scales)[0];
    if (!bytes) return static_cast<const float*>(p.scales)[block];
    return stored_factor(rule, static_cast<const uint8_t*>(p.scales)[block], tensor, p.scheme.compat);
  };
  const int64_t step = std::min<int64_t>(p.block_length, kRowTile);
  uint32_t codes[kRowTile];
  for (int64_t line = begin; line < end; ++line) {
    const int64_t band = line / p.height * p.height_blocks() + line % p.height / p.block_height;
    T* const y = static_cast<T*>(p.y) + line * p.length;
    for (int64_t first = 0; first < p.length; first += kRowTile) {
      const int count = static_cast<int>(std::min<int64_t>(kRowTile, p.length - first));
      unpack_codes(p.codes + line * p.line_bytes + first * width / 8, count, bits, codes);
      for (int i = 0; i < count;) {
        const int64_t position = first + i;
        const int64_t block = position / p.block_length;
        const int last = static_cast<int>(std::min<int64_t>(count, i + step - position % step));
        const float factor = factor_at(band * p.length_blocks() + block);
        for (; i < last; ++i) {
          const float number = bits <= 8 ? table[codes[i]] : decode_code(codes[i], p.scheme);
          y[first + i] = from_float<T>(number * factor);
        }
      }
    }
  }
}

void dequantize(const DequantizeParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, dequantize_range<scalar_t>(p, begin, end));
}

}  // namespace lsfast::quantization::LSFAST_ISA
