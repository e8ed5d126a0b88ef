// Operators of the landscape room: schema, checks, allocation, device and threads. Kernels: cpu.inl, cuda.cu.
#include "landscape/landscape.h"

#include <algorithm>

#include "platform/check_points.h"

namespace lsfast::landscape {
namespace {

using torch::headeronly::ScalarType;

// ---- points --------------------------------------------------------------------------------------------------------

void parameter_points_out(const Tensor& theta, const Tensor& directions, const Tensor& coordinates, const Tensor& out) {
  check_points("parameter_points", theta, directions, coordinates);
  check_points_out("parameter_points", theta, coordinates, out);
  if (out.numel() == 0) return;

  const Tensor dense[] = {torch::stable::contiguous(theta), torch::stable::contiguous(directions),
                          torch::stable::contiguous(coordinates)};
  const PointsParams params{point_set(dense[0], dense[1], dense[2]), out.mutable_data_ptr(), coordinates.size(0),
                            scalar_kind(theta)};
  if (runs_cuda_kernels(theta)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(theta);
      check_launch("parameter_points", launch_points(params, scope.stream()));
    }
    return;
  }
  const int64_t tiles = (theta.size(0) + kPointsTile - 1) / kPointsTile;
  const int64_t grain = std::max<int64_t>(1, 32 / params.g);
  torch::stable::parallel_for(0, tiles, grain,
                              [&](int64_t begin, int64_t end) { kernels().landscape.points(params, begin, end); });
}

Tensor parameter_points(const Tensor& theta, const Tensor& directions, const Tensor& coordinates) {
  check_points("parameter_points", theta, directions, coordinates);
  Tensor out = torch::stable::new_empty(theta, {coordinates.size(0), theta.size(0)});
  parameter_points_out(theta, directions, coordinates, out);
  return out;
}

// ---- segments ------------------------------------------------------------------------------------------------------

Segments check_segments(const char* op, const Tensor& x, const Tensor& offsets) {
  check_real(op, "x", x);
  STD_TORCH_CHECK(x.dim() == 2, op, ": x must have shape [c, n], got ", shape_text(x));
  STD_TORCH_CHECK(offsets.scalar_type() == ScalarType::Long && offsets.dim() == 1 && offsets.size(0) >= 1, op,
                  ": offsets must be int64 of shape [s + 1], got torch.",
                  torch::headeronly::toString(offsets.scalar_type()), " ", shape_text(offsets));
  STD_TORCH_CHECK(x.is_cuda() == offsets.is_cuda() && x.get_device_index() == offsets.get_device_index(), op,
                  ": offsets must be on the device of x");
  STD_TORCH_CHECK(offsets.is_contiguous(), op, ": offsets must be contiguous, got strides that are not");
  const Segments segments{static_cast<const int64_t*>(offsets.const_data_ptr()), x.size(0), x.size(1),
                          offsets.size(0) - 1};
  if (x.is_cuda()) return segments;  // reading them would wait for the device; its kernels stay inside the rows
  int64_t last = 0;
  for (int64_t i = 0; i <= segments.s; ++i) {
    STD_TORCH_CHECK(last <= segments.offsets[i] && segments.offsets[i] <= segments.n, op,
                    ": offsets must ascend in 0 .. ", segments.n, ", got ", segments.offsets[i], " at ", i);
    last = segments.offsets[i];
  }
  return segments;
}

Tensor dots_of(const char* op, const Tensor& x, const Tensor& y, const Tensor& offsets, bool root) {
  const Segments segments = check_segments(op, x, offsets);
  const Tensor dense_x = torch::stable::contiguous(x);
  const Tensor dense_y = torch::stable::contiguous(y);
  Tensor result = torch::stable::new_empty(x, {segments.rows, segments.s}, ScalarType::Double);
  if (result.numel() == 0) return result;
  Tensor partial = torch::stable::new_empty(x, {segments.rows, segments.units()}, ScalarType::Double);
  const DotsParams params{segments,
                          dense_x.const_data_ptr(),
                          dense_y.const_data_ptr(),
                          static_cast<double*>(partial.mutable_data_ptr()),
                          static_cast<double*>(result.mutable_data_ptr()),
                          root,
                          scalar_kind(x)};
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      check_launch(op, launch_dots(params, scope.stream()));
    }
    return result;
  }
  torch::stable::parallel_for(0, segments.rows * segments.units(), 32,
                              [&](int64_t begin, int64_t end) { kernels().landscape.dots(params, begin, end); });
  torch::stable::parallel_for(0, segments.rows * segments.s, 4096,
                              [&](int64_t begin, int64_t end) { kernels().landscape.combine(params, begin, end); });
  return result;
}

// [c, s] float64: the inner product of each segment of x with the same of y.
Tensor segment_dots(const Tensor& x, const Tensor& y, const Tensor& offsets) {
  check_real("segment_dots", "x", x);
  check_same("segment_dots", "y", y, "x", x);
  STD_TORCH_CHECK(y.dim() == 2 && x.dim() == 2 && x.size(0) == y.size(0) && x.size(1) == y.size(1),
                  "segment_dots: x and y must have one shape [c, n], got ", shape_text(x), " and ", shape_text(y));
  return dots_of("segment_dots", x, y, offsets, false);
}

// [c, s] float64: the Euclidean norm of each segment of x.
Tensor segment_norms(const Tensor& x, const Tensor& offsets) { return dots_of("segment_norms", x, x, offsets, true); }

void scale_segments(const Tensor& x, const Tensor& offsets, const Tensor& factors) {
  const Segments segments = check_segments("scale_segments_", x, offsets);
  STD_TORCH_CHECK(x.is_contiguous(), "scale_segments_: x must be contiguous, got strides that are not");
  STD_TORCH_CHECK(factors.scalar_type() == ScalarType::Double && factors.dim() == 2 &&
                      factors.size(0) == segments.rows && factors.size(1) == segments.s,
                  "scale_segments_: factors must be float64 of shape [", segments.rows, ", ", segments.s,
                  "], got torch.", torch::headeronly::toString(factors.scalar_type()), " ", shape_text(factors));
  STD_TORCH_CHECK(x.is_cuda() == factors.is_cuda() && x.get_device_index() == factors.get_device_index(),
                  "scale_segments_: factors must be on the device of x");
  if (x.numel() == 0 || segments.s == 0) return;
  const Tensor dense = torch::stable::contiguous(factors);
  const ScaleParams params{segments, x.mutable_data_ptr(), static_cast<const double*>(dense.const_data_ptr()),
                           scalar_kind(x)};
  if (runs_cuda_kernels(x)) {
    if constexpr (kHasCudaKernels) {
      const CudaScope scope(x);
      check_launch("scale_segments_", launch_scale(params, scope.stream()));
    }
    return;
  }
  torch::stable::parallel_for(0, segments.rows * segments.units(), 32,
                              [&](int64_t begin, int64_t end) { kernels().landscape.scale(params, begin, end); });
}

STABLE_TORCH_LIBRARY_FRAGMENT(LSFAST_LIBRARY, m) {
  m.def("parameter_points(Tensor theta, Tensor directions, Tensor coordinates) -> Tensor");
  m.def("parameter_points_out(Tensor theta, Tensor directions, Tensor coordinates, Tensor(a!) out) -> ()");
  m.def("segment_dots(Tensor x, Tensor y, Tensor offsets) -> Tensor");
  m.def("segment_norms(Tensor x, Tensor offsets) -> Tensor");
  m.def("scale_segments_(Tensor(a!) x, Tensor offsets, Tensor factors) -> ()");
}

LSFAST_IMPLEMENT(m) {
  m.impl("parameter_points", TORCH_BOX(&parameter_points));
  m.impl("parameter_points_out", TORCH_BOX(&parameter_points_out));
  m.impl("segment_dots", TORCH_BOX(&segment_dots));
  m.impl("segment_norms", TORCH_BOX(&segment_norms));
  m.impl("scale_segments_", TORCH_BOX(&scale_segments));
}

}  // namespace
}  // namespace lsfast::landscape
