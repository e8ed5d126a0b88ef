// The CPU kernels compiled for avx2: see dispatch.h.
#include "platform/dispatch.h"
#include "platform/standard_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,bmi2")
#define LSFAST_ISA avx2
#define LSFAST_ISA_NAME "avx2"
#define LSFAST_VECTOR_BITS 256
#include "platform/kernel_table.inl"
#pragma GCC pop_options

const lsfast::KernelTable* lsfast::avx2_kernels() { return &lsfast::avx2::kTable; }
#else
const lsfast::KernelTable* lsfast::avx2_kernels() { return nullptr; }
#endif
