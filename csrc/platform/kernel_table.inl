// The CPU kernels of all rooms, compiled for the instruction set of the including file and put in one table.
// The includer has included the standard headers, set the target and defined LSFAST_ISA.
#include "curvature/cpu.inl"
#include "landscape/activate_cpu.inl"
#include "landscape/cpu.inl"
#include "landscape/sharpness_cpu.inl"
#include "quantization/cpu.inl"
#include "spectrum/cpu.inl"

namespace lsfast::LSFAST_ISA {
static constexpr KernelTable kTable = {LSFAST_ISA_NAME,
                                       quantization::LSFAST_ISA::kKernels,
                                       curvature::LSFAST_ISA::kKernels,
                                       spectrum::LSFAST_ISA::kKernels,
                                       landscape::LSFAST_ISA::kKernels,
                                       landscape::LSFAST_ISA::kSharpnessKernels,
                                       landscape::LSFAST_ISA::kActivateKernels};
}  // namespace lsfast::LSFAST_ISA
