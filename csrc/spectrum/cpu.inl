// The CPU kernels of the spectrum room, compiled once per instruction set (platform/dispatch.h).
#include "spectrum/block_cpu.inl"
#include "spectrum/recurrence_cpu.inl"
#include "spectrum/spectrum.h"
#include "spectrum/tridiagonal_cpu.inl"

namespace lsfast::spectrum::LSFAST_ISA {

constexpr CpuKernels kKernels = {kBlockKernels, kRecurrenceKernels, kTridiagonalKernels};

}  // namespace lsfast::spectrum::LSFAST_ISA
