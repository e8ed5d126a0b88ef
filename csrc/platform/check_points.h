// The checks of what a set of points is formed from: theta [n], directions [d, n] and coordinates [g, d], into out
// [g, n].
#pragma once

#include "numerics/points.h"
#include "platform/torch_ops.h"

namespace lsfast {

inline void check_points(const char* op, const Tensor& theta, const Tensor& directions, const Tensor& coordinates) {
  check_floating(op, "theta", theta);
  check_same(op, "directions", directions, "theta", theta);
  check_same(op, "coordinates", coordinates, "theta", theta);
  STD_TORCH_CHECK(theta.dim() == 1, op, ": theta must have shape [n], got ", shape_text(theta));
  STD_TORCH_CHECK(directions.dim() == 2 && directions.size(0) >= 1 && directions.size(1) == theta.size(0), op,
                  ": directions must have shape [d, ", theta.size(0), "] with d >= 1, got ", shape_text(directions));
  STD_TORCH_CHECK(coordinates.dim() == 2 && coordinates.size(1) == directions.size(0), op,
                  ": coordinates must have shape [g, ", directions.size(0), "], got ", shape_text(coordinates));
}

inline void check_points_out(const char* op, const Tensor& theta, const Tensor& coordinates, const Tensor& out) {
  check_same(op, "out", out, "theta", theta);
  STD_TORCH_CHECK(out.dim() == 2 && out.size(0) == coordinates.size(0) && out.size(1) == theta.size(0), op,
                  ": out must have shape [", coordinates.size(0), ", ", theta.size(0), "], got ", shape_text(out));
  STD_TORCH_CHECK(out.is_contiguous(), op, ": out must be contiguous, got strides that are not");
}

// Of contiguous tensors.
inline PointSet point_set(const Tensor& theta, const Tensor& directions, const Tensor& coordinates) {
  return {theta.const_data_ptr(), directions.const_data_ptr(), coordinates.const_data_ptr(), theta.size(0),
          directions.size(0)};
}

}  // namespace lsfast
