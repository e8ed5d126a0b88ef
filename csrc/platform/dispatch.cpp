// Chooses the instruction set of the CPU kernels: see dispatch.h.
#include "platform/dispatch.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace lsfast {
namespace {

bool processor_has(const std::string& name) {
#if defined(__x86_64__)
  if (name == "avx512") {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }
  if (name == "avx2") return __builtin_cpu_supports("avx2");
#endif
  return name == "baseline";
}

const KernelTable* choose() {
  const KernelTable* const best_first[] = {avx512_kernels(), avx2_kernels(), baseline_kernels()};
  const char* const wanted = std::getenv("LSFAST_CPU_CAPABILITY");
  if (wanted == nullptr || *wanted == '\0') {
    for (const KernelTable* table : best_first) {
      if (table != nullptr && processor_has(table->name)) return table;
    }
  } else {
    for (const KernelTable* table : best_first) {
      if (table == nullptr || std::string(wanted) != table->name) continue;
      if (processor_has(table->name)) return table;
      throw std::runtime_error("lsfast: LSFAST_CPU_CAPABILITY=" + std::string(wanted) +
                               " was asked for, but this processor lacks it");
    }
    throw std::runtime_error("lsfast: LSFAST_CPU_CAPABILITY must be baseline, avx2 or avx512, got " +
                             std::string(wanted));
  }
  return baseline_kernels();
}

}  // namespace

const KernelTable& kernels() {
  static const KernelTable* const chosen = choose();
  return *chosen;
}

}  // namespace lsfast
