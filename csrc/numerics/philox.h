// Philox4x32-10, the counter-based generator of every random draw in lsfast.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
// Key = seed; counter = (index >> 2, stream), 64 bits each; an index takes word (index & 3). A draw depends on
// (seed, stream, index) alone, so it is the same for any tiling, thread count or device.
#pragma once

#include "numerics/macros.h"

namespace lsfast {

struct PhiloxWords {
  uint32_t word[4];
};

LSFAST_HD PhiloxWords philox4x32(uint64_t seed, uint64_t counter_low, uint64_t counter_high) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  uint32_t c0 = static_cast<uint32_t>(counter_low);
  uint32_t c1 = static_cast<uint32_t>(counter_low >> 32);
  uint32_t c2 = static_cast<uint32_t>(counter_high);
  uint32_t c3 = static_cast<uint32_t>(counter_high >> 32);
#if defined(__CUDACC__)
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t product1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ key0;
    c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ key1;
    c1 = static_cast<uint32_t>(product1);
    c3 = static_cast<uint32_t>(product0);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// The 32 random bits of one element.
LSFAST_HD uint32_t philox_word(uint64_t seed, uint64_t stream, uint64_t index) {
  const PhiloxWords four = philox4x32(seed, index >> 2, stream);
  // Selected, not indexed: an indexed register array lives in memory on a GPU.
  const uint32_t low = (index & 1) == 0 ? four.word[0] : four.word[1];
  const uint32_t high = (index & 1) == 0 ? four.word[2] : four.word[3];
  return (index & 2) == 0 ? low : high;
}

}  // namespace lsfast
