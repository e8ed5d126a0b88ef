// The CPU kernels compiled for baseline: see dispatch.h.
#include "platform/dispatch.h"
#include "platform/standard_headers.h"

#define LSFAST_ISA baseline
#define LSFAST_ISA_NAME "baseline"
#include "platform/kernel_table.inl"

const lsfast::KernelTable* lsfast::baseline_kernels() { return &lsfast::baseline::kTable; }
