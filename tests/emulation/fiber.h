// A stack of its own and the change to and from it, over ucontext, in a way that AddressSanitizer follows.
#pragma once

#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include <cstddef>
#include <new>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace lsfast::emulation {

// A fiber never ends: `entry` calls begin(), then works and calls leave() in turn.
class Fiber {
 public:
  // The stack lies between two pages that nobody may touch, so that an overflow stops at once.
  explicit Fiber(void (*entry)()) {
    const std::size_t page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
    void* const memory =
        mmap(nullptr, kStackBytes + 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) throw std::bad_alloc();
    stack_ = static_cast<char*>(memory) + page;
    if (mprotect(stack_, kStackBytes, PROT_READ | PROT_WRITE) != 0) throw std::bad_alloc();
    getcontext(&own_);
    own_.uc_stack.ss_sp = stack_;
    own_.uc_stack.ss_size = kStackBytes;
    makecontext(&own_, entry, 0);
  }
  Fiber(const Fiber&) = delete;

  // Runs the fiber until it leaves. Called by the one who is not a fiber.
  void resume() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, stack_, kStackBytes);
    swapcontext(&caller_, &own_);
    __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#else
    swapcontext(&caller_, &own_);
#endif
  }

  // Called by the fiber: first of all, and whenever it has nothing to do until it is resumed.
  void begin() {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &caller_stack_, &caller_stack_bytes_);
#endif
  }
  void leave() {
#if defined(__SANITIZE_ADDRESS__)
    void* fake_stack = nullptr;
    __sanitizer_start_switch_fiber(&fake_stack, caller_stack_, caller_stack_bytes_);
    swapcontext(&own_, &caller_);
    __sanitizer_finish_switch_fiber(fake_stack, &caller_stack_, &caller_stack_bytes_);
#else
    swapcontext(&own_, &caller_);
#endif
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr std::size_t kStackBytes = 256 * 1024;
  const void* caller_stack_ = nullptr;
  std::size_t caller_stack_bytes_ = 0;
#else
  static constexpr std::size_t kStackBytes = 64 * 1024;
#endif
  char* stack_;
  ucontext_t own_{};
  ucontext_t caller_{};
};

}  // namespace lsfast::emulation
