// The curvature room: tangents and adjoint tangents of the operations worth a kernel of their own, one family a header.
#pragma once

#include "curvature/cross_entropy.h"
#include "curvature/elementwise.h"
#include "curvature/normalization.h"
#include "curvature/softmax.h"

namespace lsfast::curvature {

struct CpuKernels {
  CrossEntropyKernels cross_entropy;
  ElementwiseKernels elementwise;
  NormalizationKernels normalization;
  SoftmaxKernels softmax;
};

}  // namespace lsfast::curvature
