// CPU kernels of normalization.
#include "curvature/channel_norm_cpu.inl"
#include "curvature/row_norm_cpu.inl"

namespace lsfast::curvature::LSFAST_ISA {

template <class F>
void part_sums_range(const PartSumParams& p, int64_t begin, int64_t end) {
  for (int64_t outer = begin; outer < end; ++outer) {
    const F* const partial = static_cast<const F*>(p.partial) + outer * p.parts * p.inner;
    double* const sums = p.sums + outer * p.inner;
    for (int64_t i = 0; i < p.inner; ++i) sums[i] = 0.0;
    for (int64_t part = 0; part < p.parts; ++part) {
      for (int64_t i = 0; i < p.inner; ++i) sums[i] += static_cast<double>(partial[part * p.inner + i]);
    }
  }
}

void part_sums(const PartSumParams& p, int64_t begin, int64_t end) {
  LSFAST_DISPATCH_REAL(p.kind, part_sums_range<scalar_t>(p, begin, end));
}

constexpr NormalizationKernels kNormalizationKernels = {row_norm_jvp, row_norm_vjp, channel_norm_sums,
                                                        channel_norm_linear, part_sums};

}  // namespace lsfast::curvature::LSFAST_ISA
