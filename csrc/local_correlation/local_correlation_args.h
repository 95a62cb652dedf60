// Checks that keep local correlation inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include <algorithm>

#include "../common/tensor.h"
#include "local_correlation.h"

namespace pyops::local_correlation {

struct Problem {
  int64_t batch, channels, height, width;
  int64_t radius, dilation;  // a dilation that leaves the image is cut to one that just does

  int64_t side() const { return 2 * radius + 1; }
  int64_t reach(int64_t size) const { return std::min(radius, (size - 1) / dilation); }  // steps that may stay inside
  int64_t parts(int64_t size) const { return std::min(dilation, size); }
  std::vector<int64_t> volume() const { return {batch, side() * side(), height, width}; }
};

inline Problem check(const Tensor& first, const Tensor& second, int64_t radius, int64_t dilation) {
  PYOPS_CHECK(first.dim() == 4 && first.size(1) > 0 && first.size(2) > 0 && first.size(3) > 0,
              "first must be [B, C, H, W] with C, H and W above 0");
  PYOPS_CHECK(is_floating(first), "first must be floating point");
  PYOPS_CHECK(second.scalar_type() == first.scalar_type(), "second must have the dtype of first");
  PYOPS_CHECK(second.dim() == 4 && sizes_of(second) == sizes_of(first), "second must have the shape of first");
  PYOPS_CHECK(second.is_cuda() == first.is_cuda() && second.get_device() == first.get_device(),
              "second must be on the same device as first");
  PYOPS_CHECK(first.size(2) < int64_t(1) << 30 && first.size(3) < int64_t(1) << 30, "H and W must be below 2^30");
  PYOPS_CHECK(radius >= 0 && radius <= int64_t(1) << 15, "radius must be from 0 to 2^15");
  PYOPS_CHECK(dilation >= 1, "dilation must be at least 1");
  dilation = std::min(dilation, std::max(first.size(2), first.size(3)));
  return {first.size(0), first.size(1), first.size(2), first.size(3), radius, dilation};
}

inline Problem check_gradient(const Tensor& grad, const Tensor& first, const Tensor& second, int64_t radius,
                              int64_t dilation) {
  const Problem p = check(first, second, radius, dilation);
  PYOPS_CHECK(grad.dim() == 4 && sizes_of(grad) == p.volume() && grad.scalar_type() == first.scalar_type(),
              "grad must have the shape and the dtype of the result");
  PYOPS_CHECK(grad.is_cuda() == first.is_cuda() && grad.get_device() == first.get_device(),
              "grad must be on the same device as first");
  return p;
}

}  // namespace pyops::local_correlation
