// Layer, RMS, group and batch normalization: parameters, CPU kernels, CUDA launchers.
#pragma once

#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::curvature {

struct NormalizationKernels {};

}  // namespace lsfast::curvature
