// The emulated library has no CPU kernels, so that it cannot run one in place of a CUDA kernel unnoticed.
#include <stdexcept>

#include "platform/dispatch.h"

const lsfast::KernelTable& lsfast::kernels() {
  throw std::logic_error("the emulated library was asked for a CPU kernel");
}
