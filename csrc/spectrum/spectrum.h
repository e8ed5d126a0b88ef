// The spectrum room: blocks of vectors against a basis, the Lanczos recurrence and the tridiagonal
// eigensolver, one family a header.
#pragma once

#include "spectrum/block.h"
#include "spectrum/recurrence.h"
#include "spectrum/tridiagonal.h"

namespace lsfast::spectrum {

struct CpuKernels {
  BlockKernels block;
  RecurrenceKernels recurrence;
  TridiagonalKernels tridiagonal;
};

}  // namespace lsfast::spectrum
