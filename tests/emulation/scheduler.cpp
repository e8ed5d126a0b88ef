// The fiber scheduler of the CUDA emulation: see scheduler.h.
#include "scheduler.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <numeric>
#include <queue>
#include <string>
#include <vector>

#include "fiber.h"

// The linker's names for the ends of the section that holds every __shared__ array; null where there is none.
extern "C" {
extern unsigned char __start_lsfast_shared[] __attribute__((weak, visibility("hidden")));
extern unsigned char __stop_lsfast_shared[] __attribute__((weak, visibility("hidden")));
}

namespace lsfast::emulation {

Dim3 thread_index;
Dim3 block_index;
Dim3 block_size;
Dim3 grid_size;

namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kMaxThreads = 1024;
constexpr std::size_t kMaxDynamicShared = 48 * 1024;
constexpr std::size_t kCanaryBytes = 4096;
constexpr unsigned char kCanary = 0xc5;

enum class State { kReady, kAtBarrier, kAtWarp, kExited };

struct Thread {
  explicit Thread(void (*entry)()) : fiber(entry) {}

  Fiber fiber;
  unsigned number = 0;  // within the block
  Dim3 index;
  State state = State::kExited;
  const char* file = "";  // of the meeting it waits at
  int line = 0;
  WarpRequest request{};
  std::uint64_t received = 0;
};

// Thrown in the threads of a launch that has failed, to unwind them.
struct Abandoned {};

enum class Order { kAscending = 0, kDescending = 1, kRandom = 2 };

// SplitMix64 (Steele, Lea, Flood 2014).
struct Generator {
  std::uint64_t state = 0;
  std::uint64_t operator()() {
    std::uint64_t z = (state += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
};

class Scheduler {
 public:
  std::mutex mutex;

  void set_order(Order order, std::uint64_t seed) {
    order_ = order;
    seed_ = seed;
  }

  const char* run(const char* kernel, Dim3 grid, Dim3 block, std::size_t shared_bytes,
                  const std::function<void()>& body) {
    const std::uint64_t threads = std::uint64_t{block.x} * block.y * block.z;
    const bool valid = threads >= 1 && threads <= kMaxThreads && block.z <= 64 && grid.x >= 1 &&
                       grid.x <= 0x7fffffffu && grid.y >= 1 && grid.y <= 65535 && grid.z >= 1 && grid.z <= 65535;
    if (!valid) return "invalid configuration argument";
    if (shared_bytes > kMaxDynamicShared) return "invalid argument";
    kernel_ = kernel;
    body_ = &body;
    grid_size = grid;
    block_size = block;
    random_.state = seed_ * 4 + static_cast<std::uint64_t>(order_);
    shared_bytes_ = shared_bytes;
    error_.clear();
    make_threads(static_cast<unsigned>(threads));

    const std::uint64_t blocks = std::uint64_t{grid.x} * grid.y * grid.z;
    std::vector<std::uint64_t> numbers(order_ == Order::kRandom ? blocks : 0);
    std::iota(numbers.begin(), numbers.end(), 0);
    for (std::uint64_t i = numbers.size(); i > 1; --i) std::swap(numbers[i - 1], numbers[random_() % i]);
    for (std::uint64_t i = 0; i < blocks && error_.empty(); ++i) {
      const std::uint64_t number = order_ == Order::kAscending    ? i
                                   : order_ == Order::kDescending ? blocks - 1 - i
                                                                  : numbers[i];
      block_index = Dim3(static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                         static_cast<unsigned>(number / grid.x / grid.y));
      run_block();
    }
    return error_.empty() ? nullptr : error_.c_str();
  }

  // ---- called by the running thread ----

  void meet_block(const char* file, int line) { wait(State::kAtBarrier, file, line); }

  std::uint64_t meet_warp(const WarpRequest& request) {
    Thread& self = *current_;
    self.request = request;
    self.state = State::kAtWarp;
    const unsigned lane = self.number % kWarp;
    if ((request.mask >> lane & 1u) == 0) {
      fail("divergent shuffle: " + place(self) + " calls " + text(request) + ", which does not name its lane");
    } else {
      exchange_if_complete(self.number - lane, request);
    }
    wait(self.state, request.file, request.line);
    return self.received;
  }

  void* dynamic_shared() { return shared_; }

 private:
  void make_threads(unsigned count) {
    while (threads_.size() < count) {
      threads_.push_back(std::make_unique<Thread>(&Scheduler::fiber));
      threads_.back()->number = static_cast<unsigned>(threads_.size() - 1);
    }
    threads_in_block_ = count;
  }

  // A fiber lives on: it runs one thread after another, of this launch and the next.
  static void fiber();

  void run_block() {
    fill_shared_memory();
    for (unsigned i = 0; i < threads_in_block_; ++i) {
      Thread& thread = *threads_[i];
      thread.index = Dim3(i % block_size.x, i / block_size.x % block_size.y, i / block_size.x / block_size.y);
      make_ready(thread);
    }
    unsigned live = threads_in_block_;
    while (live > 0 && error_.empty()) {
      while (!ready_.empty() && error_.empty()) {
        Thread& thread = *threads_[ready_.top().second];
        ready_.pop();
        resume(thread);
        live -= thread.state == State::kExited;
      }
      if (live > 0 && error_.empty()) open_barrier();
    }
    ready_ = {};
    // Whatever still waits is unwound: it wakes, finds the error and leaves.
    for (unsigned i = 0; i < threads_in_block_; ++i) {
      if (threads_[i]->state != State::kExited) resume(*threads_[i]);
    }
    if (error_.empty()) check_canary();
  }

  void make_ready(Thread& thread) {
    thread.state = State::kReady;
    const std::uint64_t urgency = order_ == Order::kAscending    ? kMaxThreads - thread.number
                                  : order_ == Order::kDescending ? thread.number
                                                                 : random_();
    ready_.emplace(urgency, thread.number);
  }

  void resume(Thread& thread) {
    current_ = &thread;
    thread_index = thread.index;
    thread.fiber.resume();
  }

  void wait(State state, const char* file, int line) {
    Thread& self = *current_;
    self.state = state;
    self.file = file;
    self.line = line;
    self.fiber.leave();
    if (!error_.empty()) throw Abandoned{};
  }

  // Nobody can run. Either all wait at one barrier, or they wait for what never comes.
  void open_barrier() {
    const Thread* first = nullptr;
    for (unsigned i = 0; i < threads_in_block_; ++i) {
      const Thread& thread = *threads_[i];
      if (thread.state == State::kAtWarp) return report_divergent_warp(thread);
      if (thread.state != State::kAtBarrier) continue;
      if (first == nullptr) first = &thread;
      if (thread.line != first->line || std::strcmp(thread.file, first->file) != 0) {
        return fail("divergent barrier: " + place(*first) + ", and " + place(thread));
      }
    }
    for (unsigned i = 0; i < threads_in_block_; ++i) {
      if (threads_[i]->state == State::kAtBarrier) make_ready(*threads_[i]);
    }
  }

  void report_divergent_warp(const Thread& waiting) {
    const unsigned first = waiting.number / kWarp * kWarp;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if ((waiting.request.mask >> lane & 1u) == 0) continue;
      const std::string wanted = "divergent shuffle: " + place(waiting) + " in " + text(waiting.request) + ", but ";
      if (first + lane >= threads_in_block_) {
        return fail(wanted + "the block has no thread " + std::to_string(first + lane));
      }
      const Thread& other = *threads_[first + lane];
      if (other.state != State::kAtWarp) return fail(wanted + place(other));
      if (!same_meeting(other.request, waiting.request))
        return fail(wanted + place(other) + " in " + text(other.request));
    }
  }

  static bool same_meeting(const WarpRequest& a, const WarpRequest& b) {
    return a.exchange == b.exchange && a.mask == b.mask && a.width == b.width && a.size == b.size && a.line == b.line &&
           std::strcmp(a.name, b.name) == 0 && std::strcmp(a.file, b.file) == 0;
  }

  // If every lane of the mask has come, gives each what it receives. `first` is the thread that is lane 0.
  void exchange_if_complete(unsigned first, const WarpRequest& request) {
    Thread* lanes[kWarp] = {};
    unsigned ballot = 0;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if ((request.mask >> lane & 1u) == 0) continue;
      if (first + lane >= threads_in_block_) return;
      Thread* const thread = threads_[first + lane].get();
      if (thread->state != State::kAtWarp || !same_meeting(thread->request, request)) return;
      lanes[lane] = thread;
      ballot |= static_cast<unsigned>(thread->request.argument != 0) << lane;
    }
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      if (lanes[lane] == nullptr) continue;
      if (request.exchange == Exchange::kSync || request.exchange == Exchange::kBallot) {
        lanes[lane]->received = ballot;
      } else {
        const Thread* const source = lanes[source_lane(lane, lanes[lane]->request)];
        if (source == nullptr) {
          return fail("divergent shuffle: " + place(*lanes[lane]) + " in " + text(request) +
                      ", which reads a lane that takes no part");
        }
        lanes[lane]->received = source->request.value;
      }
    }
    for (Thread* const thread : lanes) {
      if (thread != nullptr) make_ready(*thread);
    }
  }

  // The CUDA programming guide, "Warp Shuffle Functions": a source outside the segment of `width` lanes is the lane
  // itself, but for __shfl_sync, where it wraps around, and __shfl_xor_sync, which may reach earlier segments.
  static unsigned source_lane(unsigned lane, const WarpRequest& request) {
    const int width = request.width;
    const int own = static_cast<int>(lane);
    const int begin = own / width * width;
    int source = own;
    switch (request.exchange) {
      case Exchange::kFromLane:
        return static_cast<unsigned>(begin + (request.argument & (width - 1)));
      case Exchange::kDown:
        source = own + request.argument;
        return static_cast<unsigned>(source < begin + width ? source : own);
      case Exchange::kUp:
        source = own - request.argument;
        return static_cast<unsigned>(source >= begin ? source : own);
      default:
        source = own ^ request.argument;
        return static_cast<unsigned>(source < begin + width ? source : own);
    }
  }

  // ---- shared memory ----

  void fill_shared_memory() {
    // AddressSanitizer guards the arrays of the section; the gaps between them may be filled too.
    fill(__start_lsfast_shared, static_cast<std::size_t>(__stop_lsfast_shared - __start_lsfast_shared));
    fill(shared_, shared_bytes_);
    std::memset(shared_ + shared_bytes_, kCanary, kCanaryBytes);
  }

  // Bytes that differ among schedules and blocks: 0xff first (NaN, -1), then random.
  __attribute__((no_sanitize_address)) void fill(unsigned char* memory, std::size_t bytes) {
    const unsigned char byte = order_ == Order::kAscending ? 0xff : static_cast<unsigned char>(random_());
    for (volatile unsigned char* p = memory; p != memory + bytes; ++p) *p = byte;
  }

  void check_canary() {
    const unsigned char* const end = shared_ + shared_bytes_;
    const unsigned char* const touched =
        std::find_if(end, end + kCanaryBytes, [](unsigned char byte) { return byte != kCanary; });
    if (touched == end + kCanaryBytes) return;
    fail("write outside of dynamic shared memory: block (" + text(block_index) + ") changed byte " +
         std::to_string(touched - shared_) + " of " + std::to_string(shared_bytes_));
  }

  // ---- errors ----

  void fail(const std::string& what) {
    if (error_.empty()) error_ = what + " (kernel " + kernel_ + ")";
  }

  static std::string text(const Dim3& index) {
    return std::to_string(index.x) + ", " + std::to_string(index.y) + ", " + std::to_string(index.z);
  }

  static std::string text(const WarpRequest& request) {
    constexpr char kDigits[] = "0123456789abcdef";
    std::string mask = "0x";
    for (int shift = 28; shift >= 0; shift -= 4) mask += kDigits[request.mask >> shift & 15u];
    return std::string(request.name) + " with mask " + mask;
  }

  static std::string place(const Thread& thread) {
    const std::string who = "thread (" + text(thread.index) + ") of block (" + text(block_index) + ")";
    if (thread.state == State::kExited) return who + " has exited";
    const WarpRequest& request = thread.request;
    const bool warp = thread.state == State::kAtWarp;
    return who + (warp ? " is at " : " waits at the barrier of ") + (warp ? request.file : thread.file) + ":" +
           std::to_string(warp ? request.line : thread.line);
  }

  Order order_ = Order::kAscending;
  std::uint64_t seed_ = 0;
  Generator random_;
  const char* kernel_ = "";
  const std::function<void()>* body_ = nullptr;
  std::string error_;
  std::vector<std::unique_ptr<Thread>> threads_;  // a fiber does not move
  unsigned threads_in_block_ = 0;
  Thread* current_ = nullptr;
  std::priority_queue<std::pair<std::uint64_t, unsigned>> ready_;  // urgency, number
  std::size_t shared_bytes_ = 0;
  alignas(16) unsigned char shared_[kMaxDynamicShared + kCanaryBytes];
};

Scheduler& scheduler() {
  static Scheduler* const one = new Scheduler;  // never destroyed: its fibers end with the process
  return *one;
}

void Scheduler::fiber() {
  Scheduler& self = scheduler();
  // The thread that is first to run here is this fiber's for good.
  Thread& thread = *self.current_;
  thread.fiber.begin();
  while (true) {
    try {
      if (self.error_.empty()) (*self.body_)();
    } catch (const Abandoned&) {
    }
    thread.state = State::kExited;
    thread.fiber.leave();
  }
}

}  // namespace

std::uint64_t meet_warp(const WarpRequest& request) { return scheduler().meet_warp(request); }
void meet_block(const char* file, int line) { scheduler().meet_block(file, line); }
void* dynamic_shared() { return scheduler().dynamic_shared(); }

const char* run(const char* kernel, Dim3 grid, Dim3 block, std::size_t shared_bytes,
                const std::function<void()>& thread) {
  const std::lock_guard<std::mutex> lock(scheduler().mutex);
  return scheduler().run(kernel, grid, block, shared_bytes, thread);
}

}  // namespace lsfast::emulation

void lsfast_emulation_schedule(int kind, unsigned long long seed) {
  using namespace lsfast::emulation;
  const std::lock_guard<std::mutex> lock(scheduler().mutex);
  scheduler().set_order(static_cast<Order>(kind), seed);
}
