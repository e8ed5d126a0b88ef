// Sums in an order fixed by their length alone: 16 partial sums, element i in partial sum i % 16, then added by halves.
// So every instruction set, thread count and chunking gives the same bits, and the additions vectorize.
#pragma once

#include "numerics/macros.h"

namespace lsfast {

constexpr int kSumLanes = 16;

// term(0) + ... + term(count - 1) in F. At most count / 16 + 4 additions lie behind each term.
template <class F, class Term>
LSFAST_HD F ordered_sum(int64_t count, const Term& term) {
  F lane[kSumLanes] = {};
  const int64_t full = count / kSumLanes * kSumLanes;
  for (int64_t i = 0; i < full; i += kSumLanes) {
    for (int k = 0; k < kSumLanes; ++k) lane[k] += term(i + k);
  }
  for (int64_t i = full; i < count; ++i) lane[i - full] += term(i);
  for (int half = kSumLanes / 2; half > 0; half /= 2) {
    for (int k = 0; k < half; ++k) lane[k] += lane[k + half];
  }
  return lane[0];
}

// N sums of one length in one pass, each in the order of ordered_sum: term(i, terms) gives the i-th term of each.
template <class F, int N, class Term>
LSFAST_HD void ordered_sums(int64_t count, F* sums, const Term& term) {
  F lane[N][kSumLanes] = {};
  const int64_t full = count / kSumLanes * kSumLanes;
  for (int64_t i = 0; i < full; i += kSumLanes) {
    for (int k = 0; k < kSumLanes; ++k) {
      F terms[N];
      term(i + k, terms);
      for (int s = 0; s < N; ++s) lane[s][k] += terms[s];
    }
  }
  for (int64_t i = full; i < count; ++i) {
    F terms[N];
    term(i, terms);
    for (int s = 0; s < N; ++s) lane[s][i - full] += terms[s];
  }
  for (int s = 0; s < N; ++s) {
    for (int half = kSumLanes / 2; half > 0; half /= 2) {
      for (int k = 0; k < half; ++k) lane[s][k] += lane[s][k + half];
    }
    sums[s] = lane[s][0];
  }
}

}  // namespace lsfast
