// The random words of consecutive elements: Philox4x32-10 in vector registers, eight counters at a time on AVX-512,
// four on AVX2, two on SSE2. The same words as numerics/philox.h gives one by one.
#pragma once

#include "numerics/philox.h"
#include "platform/standard_headers.h"

namespace lsfast::quantization::LSFAST_ISA {

// A vector of 64-bit lanes, each holding one 32-bit number below bits that do not matter: the multiplication reads
// only the low half of a lane. `counters` is the order of counters in which interleaving needs no permutation.
#if LSFAST_VECTOR_BITS == 512
#define LSFAST_PHILOX_LANES 8
struct WordLanes {
  using Vector = __m512i;
  static Vector set(uint64_t value) { return _mm512_set1_epi64(static_cast<int64_t>(value)); }
  static Vector counters() { return _mm512_set_epi64(7, 3, 6, 2, 5, 1, 4, 0); }
  static Vector add(Vector a, Vector b) { return _mm512_add_epi64(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm512_mul_epu32(a, b); }
  static Vector high(Vector a) { return _mm512_srli_epi64(a, 32); }
  static Vector exclusive(Vector a, Vector b, Vector c) { return _mm512_ternarylogic_epi64(a, b, c, 0x96); }
  static Vector join(Vector a, Vector b) { return _mm512_mask_shuffle_epi32(a, 0xaaaa, b, _MM_PERM_CCAA); }
  static void store(uint32_t* words, Vector a, Vector b) {
    _mm512_storeu_si512(words, _mm512_unpacklo_epi64(a, b));
    _mm512_storeu_si512(words + 16, _mm512_unpackhi_epi64(a, b));
  }
};
#elif LSFAST_VECTOR_BITS == 256
#define LSFAST_PHILOX_LANES 4
struct WordLanes {
  using Vector = __m256i;
  static Vector set(uint64_t value) { return _mm256_set1_epi64x(static_cast<int64_t>(value)); }
  static Vector counters() { return _mm256_set_epi64x(3, 1, 2, 0); }
  static Vector add(Vector a, Vector b) { return _mm256_add_epi64(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm256_mul_epu32(a, b); }
  static Vector high(Vector a) { return _mm256_srli_epi64(a, 32); }
  static Vector exclusive(Vector a, Vector b, Vector c) { return _mm256_xor_si256(_mm256_xor_si256(a, b), c); }
  static Vector join(Vector a, Vector b) { return _mm256_blend_epi32(a, _mm256_slli_epi64(b, 32), 0xaa); }
  static void store(uint32_t* words, Vector a, Vector b) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), _mm256_unpacklo_epi64(a, b));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(words + 8), _mm256_unpackhi_epi64(a, b));
  }
};
#elif LSFAST_VECTOR_BITS == 128
#define LSFAST_PHILOX_LANES 2
struct WordLanes {
  using Vector = __m128i;
  static Vector set(uint64_t value) { return _mm_set1_epi64x(static_cast<int64_t>(value)); }
  static Vector counters() { return _mm_set_epi64x(1, 0); }
  static Vector add(Vector a, Vector b) { return _mm_add_epi64(a, b); }
  static Vector multiply(Vector a, Vector b) { return _mm_mul_epu32(a, b); }
  static Vector high(Vector a) { return _mm_srli_epi64(a, 32); }
  static Vector exclusive(Vector a, Vector b, Vector c) { return _mm_xor_si128(_mm_xor_si128(a, b), c); }
  static Vector join(Vector a, Vector b) {
    return _mm_or_si128(_mm_and_si128(a, _mm_set1_epi64x(0xffffffff)), _mm_slli_epi64(b, 32));
  }
  static void store(uint32_t* words, Vector a, Vector b) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words), _mm_unpacklo_epi64(a, b));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(words + 4), _mm_unpackhi_epi64(a, b));
  }
};
#endif

#if defined(LSFAST_PHILOX_LANES)
struct RoundKeys {
  uint64_t key[20];

  explicit RoundKeys(uint64_t seed) {
    for (uint32_t round = 0; round < 10; ++round) {
      key[2 * round] = static_cast<uint32_t>(seed) + round * 0x9E3779B9u;
      key[2 * round + 1] = static_cast<uint32_t>(seed >> 32) + round * 0xBB67AE85u;
    }
  }
};

// The words of LSFAST_PHILOX_LANES counters from `counter` on.
inline void fill_counters(const RoundKeys& keys, uint64_t counter, uint64_t stream, uint32_t* words) {
  using V = WordLanes;
  const V::Vector multiplier0 = V::set(0xD2511F53u);
  const V::Vector multiplier1 = V::set(0xCD9E8D57u);
  V::Vector c0 = V::add(V::set(counter), V::counters());
  V::Vector c1 = V::high(c0);
  V::Vector c2 = V::set(stream);
  V::Vector c3 = V::high(c2);
#pragma GCC unroll 10
  for (int round = 0; round < 10; ++round) {
    const V::Vector product0 = V::multiply(multiplier0, c0);
    const V::Vector product1 = V::multiply(multiplier1, c2);
    c0 = V::exclusive(V::high(product1), c1, V::set(keys.key[2 * round]));
    c2 = V::exclusive(V::high(product0), c3, V::set(keys.key[2 * round + 1]));
    c1 = product1;
    c3 = product0;
  }
  V::store(words, V::join(c0, c1), V::join(c2, c3));
}
#endif

// words[i] = the word of element first + i.
inline void fill_words(uint64_t seed, uint64_t stream, int64_t first, int64_t count, uint32_t* words) {
  int64_t i = 0;
#if defined(LSFAST_PHILOX_LANES)
  constexpr int64_t kWords = 4 * LSFAST_PHILOX_LANES;
  const RoundKeys keys(seed);
  for (; i < count && ((first + i) & 3) != 0; ++i) {
    words[i] = philox_word(seed, stream, static_cast<uint64_t>(first + i));
  }
  for (; i + kWords <= count; i += kWords)
    fill_counters(keys, static_cast<uint64_t>(first + i) >> 2, stream, words + i);
  if (i < count) {
    uint32_t tail[kWords];
    fill_counters(keys, static_cast<uint64_t>(first + i) >> 2, stream, tail);
    for (int64_t k = 0; i < count; ++i, ++k) words[i] = tail[k];
  }
#endif
  for (; i < count; ++i) words[i] = philox_word(seed, stream, static_cast<uint64_t>(first + i));
}

#undef LSFAST_PHILOX_LANES

}  // namespace lsfast::quantization::LSFAST_ISA
