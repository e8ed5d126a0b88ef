// The tridiagonal eigensolver on the CPU; compiled once per instruction set (platform/dispatch.h).
#include "spectrum/ql.h"

namespace lsfast::spectrum::LSFAST_ISA {

void solve(const TridiagonalParams& p, int64_t begin, int64_t end) {
  constexpr int64_t kTurns = 8;  // matrices a thread works on by turns: enough to hide the latency of a rotation
  TridiagonalQl<DenseArray> turn[kTurns];
  int64_t next = begin;
  int64_t busy = 0;
  const auto take = [&](TridiagonalQl<DenseArray>& ql) {
    while (next < end) {
      ql.matrix = next++;
      ql.d.data = p.scratch + ql.matrix * p.m;
      ql.e.data = p.scratch + (p.k + ql.matrix) * p.m;
      ql.z.data = p.scratch + (2 * p.k + ql.matrix) * p.m;
      ql.start(p);
      if (ql.next_rotation()) return true;
      ql.finish(p);
    }
    return false;
  };
  while (busy < kTurns && take(turn[busy])) ++busy;
  while (busy > 0) {
    for (int64_t t = 0; t < busy; ++t) {
      turn[t].rotate();
      if (turn[t].next_rotation()) continue;
      turn[t].finish(p);
      if (!take(turn[t])) turn[t--] = turn[--busy];
    }
  }
}

constexpr TridiagonalKernels kTridiagonalKernels = {solve};

}  // namespace lsfast::spectrum::LSFAST_ISA
