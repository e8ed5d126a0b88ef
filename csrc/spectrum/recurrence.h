// One step of the Lanczos recurrence for k probes in lockstep, in three parts: `begin` turns the inner product u'Au
// into the factors of the step, `pass` reads what the vectors are made orthogonal to, once, and `end` closes the step.
//
// The vector u that A was applied to still lacks its last correction: its projections c on the rows R, of the order of
// rounding, are known from the pass before. So the pass makes q = (u - R'c) / rho orthogonal, takes what the correction
// does to the product from A R' = R'T + beta q e' instead of from another product, subtracts the three-term recurrence,
// and projects the new vector on the rows while they are in cache: the c of the next step.
#pragma once

#include "numerics/macros.h"
#include "platform/scalar_type.h"
#include "platform/stream.h"

namespace lsfast::spectrum {

// Vectors are cut into units; a unit's sums are made by one thread (CPU), and units are combined in their order: sums
// depend on n and dtype alone.
constexpr int64_t kUnitBytes = 32768;

// Row-wise inner products, in float64.
struct DotsParams {
  const void* x;    // [k, n] of `kind`
  const void* y;    // [k, n] of `kind`
  double* partial;  // [k, parts] scratch
  double* dots;     // [k]
  int64_t k;
  int64_t n;
  int64_t parts;  // units on the CPU, blocks on CUDA
  ScalarKind kind;
};

// What `begin` leaves for a probe, before its 2 count coefficients.
struct Factors {
  double scale;     // 1 / rho; 0: the probe has ended
  double current;   // of q in the new vector
  double previous;  // of the vector before, beta_{j-1}
  double alpha;     // first estimate of alpha_j, which is what the new vector has been freed of
  static constexpr int64_t kCount = 4;
};

struct BeginParams {
  const double* dots;    // [k] u'Au
  const double* defect;  // [k, capacity]: projections of u on the rows
  const double* alpha;   // [k, m]
  const double* beta;    // [k, m]
  const double* ritz;    // [k, count]: the rows are Ritz vectors with these values; null: they are the vectors before
  double* factors;       // [k, kCount + 2 count]: Factors, of each row in q, of each row in the new vector
  int64_t k;
  int64_t m;
  int64_t count;
  int64_t capacity;
  int64_t step;
  LSFAST_HD double* of(int64_t probe) const { return factors + probe * (Factors::kCount + 2 * count); }
};

struct PassParams {
  void* current;          // [k, n] of `kind`: u; on return q
  const void* product;    // [k, n] of `kind`: A u
  const void* previous;   // [k, n] of `kind`: q of the step before; null: there is none
  void* next;             // [k, n] of `kind`: the new vector, not normalized
  const void* rows;       // [count, k, n] of `rows_kind`
  void* stored;           // [k, n] of `rows_kind`: where q is kept besides `current`; null: nowhere
  const double* factors;  // [k, kCount + 2 count]
  double* partial;        // [k, outputs, parts] scratch
  double* sums;           // [k, outputs]: projections of the new vector on the rows and on q, its squared norm
  int64_t k;
  int64_t n;
  int64_t count;
  int64_t parts;          // units on the CPU, blocks on CUDA
  int64_t vector_stride;  // elements between the probes of a vector
  int64_t row_stride;     // elements between rows
  int64_t probe_stride;   // elements between the probes of a row and of `stored`
  ScalarKind kind;
  ScalarKind rows_kind;

  LSFAST_HD int64_t outputs() const { return count + 2; }
  LSFAST_HD const double* of(int64_t probe) const { return factors + probe * (Factors::kCount + 2 * count); }
};

struct EndParams {
  const double* factors;  // [k, kCount + 2 count]
  const double* sums;     // [k, count + 2]
  void* next;             // [k, n] of `kind`: on return of length 1, or 0 where the probe ended
  double* alpha;          // [k, m]: column `step` is written
  double* beta;           // [k, m]: column `step` is written, step - 1 read
  double* scale;          // [k, m] running estimate of |T|: column `step` is written, step - 1 read
  int64_t* steps;         // [k] steps taken so far
  double* defect;         // [k, capacity]: projections of the next u on the rows, and on q if `append`
  double* norm_factor;    // [k] scratch: 1 / |new vector|
  int64_t k;
  int64_t n;
  int64_t m;
  int64_t count;
  int64_t capacity;
  int64_t step;
  double tolerance;
  bool append;  // q becomes a row: full reorthogonalization
  bool last;    // `next` is left as it is: the residual
  ScalarKind kind;
};

constexpr int64_t kScaleBlock = 8192;  // elements of a vector that the CPU normalizes in one piece

// Each works on a range, which may run on any thread.
struct RecurrenceKernels {
  void (*dots)(const DotsParams&, int64_t begin, int64_t end);  // over k * parts, fills `partial`
  void (*pass)(const PassParams&, int64_t begin, int64_t end);  // over k * parts, fills `partial`
  void (*scale)(const EndParams&, int64_t begin, int64_t end);  // over k * blocks of kScaleBlock
};

const char* launch_dots(const DotsParams& params, Stream stream);
const char* launch_begin(const BeginParams& params, Stream stream);
const char* launch_pass(const PassParams& params, Stream stream);
const char* launch_end(const EndParams& params, Stream stream);

}  // namespace lsfast::spectrum
