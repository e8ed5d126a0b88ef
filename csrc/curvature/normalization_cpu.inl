// CPU kernels of layer, RMS, group and batch normalization.
#include "curvature/normalization.h"
#include "platform/reduction.h"

namespace lsfast::curvature::LSFAST_ISA {

constexpr NormalizationKernels kNormalizationKernels = {};

}  // namespace lsfast::curvature::LSFAST_ISA
