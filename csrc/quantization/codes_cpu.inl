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
  int i = 0;
  for (; bits == 6 && i + 4 <= count; i += 4, bytes += 3) {
    const uint32_t four = codes[i] | codes[i + 1] << 6 | codes[i + 2] << 12 | codes[i + 3] << 18;
    bytes[0] = static_cast<uint8_t>(four);
    bytes[1] = static_cast<uint8_t>(four >> 8);
    bytes[2] = static_cast<uint8_t>(four >> 16);
  }
  uint64_t pending = 0;
  int held = 0;
  for (; i < count; ++i) {
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
  int i = 0;
  for (; bits == 6 && i + 4 <= count; i += 4, bytes += 3) {
    const uint32_t four = bytes[0] | static_cast<uint32_t>(bytes[1]) << 8 | static_cast<uint32_t>(bytes[2]) << 16;
    for (int k = 0; k < 4; ++k) codes[i + k] = (four >> (6 * k)) & 63u;
  }
  uint64_t pending = 0;
  int held = 0;
  for (; i < count; ++i) {
    for (; held < width; held += 8) pending |= static_cast<uint64_t>(*bytes++) << held;
    codes[i] = static_cast<uint32_t>(pending & mask);
    pending >>= width;
    held -= width;
  }
}

// The numbers of codes of at most 8 bits: of every byte of two 4-bit codes both, of every other code itself.
struct DecodeTable {
  float pairs[256][2];

  explicit DecodeTable(const QuantScheme& scheme) {
    const int bits = scheme.code_bits();
    for (uint32_t byte = 0; byte < 256u && bits <= 8; ++byte) {
      const bool known = byte >> bits == 0u;
      pairs[byte][0] = bits == 4 ? decode_code(byte & 15u, scheme) : (known ? decode_code(byte, scheme) : 0.0f);
      pairs[byte][1] = bits == 4 ? decode_code(byte >> 4, scheme) : 0.0f;
    }
  }
};

// values[i] = the number of code i of `bytes`, for at most kRowTile.
inline void decode_values(const uint8_t* __restrict bytes, int count, const QuantScheme& scheme,
                          const DecodeTable& table, float* __restrict values) {
  const int bits = scheme.code_bits();
  if (bits == 4) {
    for (int i = 0; i < count / 2; ++i) std::memcpy(values + 2 * i, table.pairs[bytes[i]], 2 * sizeof(float));
    if (count % 2 == 1) values[count - 1] = table.pairs[bytes[count / 2]][0];
    return;
  }
  if (bits == 8) {
    for (int i = 0; i < count; ++i) values[i] = table.pairs[bytes[i]][0];
    return;
  }
  uint32_t codes[kRowTile];
  unpack_codes(bytes, count, bits, codes);
  for (int i = 0; i < count; ++i) values[i] = bits <= 8 ? table.pairs[codes[i]][0] : decode_code(codes[i], scheme);
}

template <class T>
void dequantize_range(const DequantizeParams& p, int64_t begin, int64_t end) {
  const int width = p.scheme.stored_bits();
  const ScaleRule rule = p.scheme.rule;
  const float amax = p.amax_bits == nullptr ? 0.0f : bit_cast<float>(*p.amax_bits);
  const TensorScale tensor = make_tensor_scale(amax, p.scheme.tensor_scale, p.scheme.compat);
  const DecodeTable table(p.scheme);
  float factor_of_byte[256];
  const bool bytes = scale_is_byte(rule);
  for (uint32_t code = 0; code < 256u && bytes; ++code) {
    factor_of_byte[code] = stored_factor(rule, code, tensor, p.scheme.compat);
  }
  const auto factor_at = [&](int64_t block) {
    if (rule == ScaleRule::kNone) return 1.0f;
    if (bytes) return factor_of_byte[static_cast<const uint8_t*>(p.scales)[block]];
    return static_cast<const float*>(p.scales)[p.scheme.per_tensor ? 0 : block];
  };
  const int64_t length_blocks = p.length_blocks();
  alignas(64) float values[kRowTile];
  for (int64_t line = begin; line < end; ++line) {
    const int64_t band = line / p.height * p.height_blocks() + line % p.height / p.block_height;
    T* const y = static_cast<T*>(p.y) + line * p.length;
    for (int64_t first = 0; first < p.length; first += kRowTile) {
      const int count = static_cast<int>(std::min<int64_t>(kRowTile, p.length - first));
      decode_values(p.codes + line * p.line_bytes + first * width / 8, count, p.scheme, table, values);
      int64_t block = first / p.block_length;
      for (int i = 0; i < count; ++block) {
        const int last = static_cast<int>(std::min<int64_t>(count, (block + 1) * p.block_length - first));
        const float factor = factor_at(band * length_blocks + block);
        for (; i < last; ++i) y[first + i] = from_float<T>(values[i] * factor);
      }
    }
  }
}

void dequantize(const DequantizeParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH(p.kind, dequantize_range<scalar_t>(p, begin, end));
}

}  // namespace lsfast::quantization::LSFAST_ISA
