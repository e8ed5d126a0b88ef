// The CPU kernels of every room, one table per instruction set, and the one in use.
//
// A room's cpu.inl is compiled once per instruction set by kernels_{baseline,avx2,avx512}.cpp, in a namespace of its
// own, and ends in a table of function pointers. The table is chosen once, when the library is loaded: the best the
// processor has, or what LSFAST_CPU_CAPABILITY=baseline|avx2|avx512 names. All give the same bits.
#pragma once

#include "curvature/curvature.h"
#include "landscape/activate.h"
#include "landscape/landscape.h"
#include "landscape/sharpness.h"
#include "quantization/quantization.h"
#include "spectrum/spectrum.h"

namespace lsfast {

struct KernelTable {
  const char* name;
  quantization::CpuKernels quantization;
  curvature::CpuKernels curvature;
  spectrum::CpuKernels spectrum;
  landscape::CpuKernels landscape;
  landscape::SharpnessKernels sharpness;
  landscape::ActivateKernels activate;
};

const KernelTable* baseline_kernels();
const KernelTable* avx2_kernels();    // null where not compiled in
const KernelTable* avx512_kernels();  // null where not compiled in

const KernelTable& kernels();

}  // namespace lsfast
