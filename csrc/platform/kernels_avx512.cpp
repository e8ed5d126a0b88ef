// The CPU kernels compiled for avx512: see dispatch.h.
#include "platform/dispatch.h"
#include "platform/standard_headers.h"

#if defined(__x86_64__)
#pragma GCC push_options
// The compiler's own header of AVX-512 leaves operands undefined on purpose (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi2")
#define LSFAST_ISA avx512
#define LSFAST_ISA_NAME "avx512"
#define LSFAST_VECTOR_BITS 512
#include "platform/kernel_table.inl"
#pragma GCC pop_options

const lsfast::KernelTable* lsfast::avx512_kernels() { return &lsfast::avx512::kTable; }
#else
const lsfast::KernelTable* lsfast::avx512_kernels() { return nullptr; }
#endif
