// The CPU kernels compiled for baseline: see dispatch.h.
#include "platform/dispatch.h"
#include "platform/standard_headers.h"

#define LSFAST_ISA baseline
#define LSFAST_ISA_NAME "baseline"
#if defined(__SSE2__)
#define LSFAST_VECTOR_BITS 128
#else
#define LSFAST_VECTOR_BITS 0
#endif
#include "platform/kernel_table.inl"

const lsfast::KernelTable* lsfast::baseline_kernels() { return &lsfast::baseline::kTable; }
