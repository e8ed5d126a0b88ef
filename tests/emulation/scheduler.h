// Runs the threads of a kernel launch on the CPU: what emulation.h writes CUDA's words with.
//
// The threads of a block are fibers, and blocks run one after the other. A thread runs until it meets others (a
// barrier, a warp operation) or ends; which thread runs next is the schedule's choice. So every order of threads
// between meeting points is one that a GPU may take, and a kernel whose result depends on it is wrong. Shared memory is
// filled before each block with bytes that the schedule draws, so that reading it too early shows as well.
// Not seen: an update that two threads interleave within themselves (x += 1 without an atomic).
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace lsfast::emulation {

struct Dim3 {
  unsigned x = 1;
  unsigned y = 1;
  unsigned z = 1;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// The indices of the running thread.
extern Dim3 thread_index;
extern Dim3 block_index;
extern Dim3 block_size;
extern Dim3 grid_size;

enum class Exchange { kSync, kBallot, kFromLane, kDown, kUp, kXor };

// What a lane brings to a meeting of its warp. The lanes of a meeting must agree on all but `value` and `argument`.
struct WarpRequest {
  Exchange exchange;
  const char* name;  // as the kernel wrote it
  const char* file;  // where
  int line;          //
  unsigned mask;     // the lanes that take part
  int width;         // lanes that exchange values: a power of two
  int argument;      // the lane, the distance or the lane mask of a shuffle; the predicate of a ballot
  std::size_t size;  // bytes of the value
  std::uint64_t value;
};

// Return when all of the meeting have come; end the launch with an error when they cannot.
std::uint64_t meet_warp(const WarpRequest& request);
void meet_block(const char* file, int line);

// Shared memory of the launch, 16-byte aligned.
void* dynamic_shared();

// Runs `thread` once for every thread of the grid. Returns null or what went wrong, in words.
const char* run(const char* kernel, Dim3 grid, Dim3 block, std::size_t shared_bytes,
                const std::function<void()>& thread);

}  // namespace lsfast::emulation

// kind: 0 ascending, 1 descending, 2 random from `seed`. Holds for all later launches.
extern "C" __attribute__((visibility("default"))) void lsfast_emulation_schedule(int kind, unsigned long long seed);
