// Checks that keep group-wise correlation inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "groupwise.h"

namespace pyops::groupwise {

struct Problem {
  int64_t batch, channels, height, width;
  int64_t groups, disparities;
  bool normalize;

  int64_t each() const { return channels / groups; }  // channels of a group
  int64_t rows() const { return batch * groups * height; }
  double scale() const { return normalize ? 1. : 1. / double(each()); }
  std::vector<int64_t> volume() const { return {batch, groups, disparities, height, width}; }
};

inline Problem check(const Tensor& left, const Tensor& right, int64_t max_disparity, int64_t groups, bool normalize) {
  PYOPS_CHECK(left.dim() == 4 && left.size(1) > 0 && left.size(2) > 0 && left.size(3) > 0,
              "left must be [B, C, H, W] with C, H and W above 0");
  PYOPS_CHECK(is_floating(left), "left must be floating point");
  PYOPS_CHECK(right.scalar_type() == left.scalar_type(), "right must have the dtype of left");
  PYOPS_CHECK(right.dim() == 4 && sizes_of(right) == sizes_of(left), "right must have the shape of left");
  PYOPS_CHECK(right.is_cuda() == left.is_cuda() && right.get_device() == left.get_device(),
              "right must be on the same device as left");
  PYOPS_CHECK(groups >= 1 && left.size(1) % groups == 0, "groups must divide the channels");
  PYOPS_CHECK(max_disparity >= 1 && max_disparity <= left.size(3), "max_disparity must be from 1 to W");
  PYOPS_CHECK(left.size(3) < int64_t(1) << 30, "W must be below 2^30");
  return {left.size(0), left.size(1), left.size(2), left.size(3), groups, max_disparity, normalize};
}

inline Problem check_gradient(const Tensor& grad, const Tensor& left, const Tensor& right, bool normalize) {
  PYOPS_CHECK(grad.dim() == 5, "grad must be [B, groups, max_disparity, H, W]");
  const Problem p = check(left, right, grad.size(2), grad.size(1), normalize);
  PYOPS_CHECK(sizes_of(grad) == p.volume() && grad.scalar_type() == left.scalar_type(),
              "grad must have the shape and the dtype of the result");
  PYOPS_CHECK(grad.is_cuda() == left.is_cuda() && grad.get_device() == left.get_device(),
              "grad must be on the same device as left");
  return p;
}

// A volume [B, groups, disparities, H, W] of any strides.
template <class T>
struct Volume {
  T* data;
  int64_t batch, group, disparity, row, column;  // strides in elements
};

template <class T>
Volume<T> volume_of(const Tensor& t) {
  return {static_cast<T*>(const_cast<void*>(t.const_data_ptr())),
          t.stride(0),
          t.stride(1),
          t.stride(2),
          t.stride(3),
          t.stride(4)};
}

}  // namespace pyops::groupwise
