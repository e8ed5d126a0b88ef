// The CPU kernels of the curvature room, compiled once per instruction set (platform/dispatch.h), a family a file.
#include "curvature/cross_entropy_cpu.inl"
#include "curvature/elementwise_cpu.inl"
#include "curvature/normalization_cpu.inl"
#include "curvature/softmax_cpu.inl"

namespace lsfast::curvature::LSFAST_ISA {

constexpr CpuKernels kKernels = {kCrossEntropyKernels, kElementwiseKernels, kNormalizationKernels, kSoftmaxKernels};

}  // namespace lsfast::curvature::LSFAST_ISA
