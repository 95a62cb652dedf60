// Checks that keep all-pairs correlation inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "../lookup/lookup.h"
#include "corr1d.h"

namespace pyops::corr1d {

// Lines of `columns` entries, and levels of columns >> l entries made of them.
struct Pairs {
  int64_t lines, columns, levels;
};

inline Pairs check_pairs(const Tensor& t, int64_t levels) {
  PYOPS_CHECK(t.dim() >= 1 && is_floating(t), "the volume must be floating point");
  PYOPS_CHECK(levels >= 1 && levels <= kMostLevels, "levels must be from 1 to 16");
  const int64_t columns = t.size(t.dim() - 1);
  PYOPS_CHECK(columns >> (levels - 1) > 0, "the last level must have an entry");
  return {t.numel() / columns, columns, levels};
}

inline std::vector<int64_t> level_sizes(const Tensor& t, int64_t level) {
  std::vector<int64_t> sizes = sizes_of(t);
  sizes.back() >>= level;
  return sizes;
}

// The lines of gradients to all levels, of which the first has the shape of the volume.
inline Pairs check_levels(const std::vector<Tensor>& grads) {
  PYOPS_CHECK(!grads.empty(), "there must be a gradient to level 0");
  const Pairs pairs = check_pairs(grads[0], int64_t(grads.size()));
  for (size_t l = 1; l < grads.size(); ++l) {
    PYOPS_CHECK(grads[l].dim() == grads[0].dim() && sizes_of(grads[l]) == level_sizes(grads[0], int64_t(l)),
                "a level must be half as wide as the one before");
    PYOPS_CHECK(grads[l].scalar_type() == grads[0].scalar_type() && grads[l].is_cuda() == grads[0].is_cuda() &&
                    grads[l].get_device() == grads[0].get_device(),
                "levels must have one dtype and one device");
  }
  return pairs;
}

// Lookups at x [B, H, W] in what the pyramid of left [B, C, H, W] and right [B, C, H, V] would be.
struct Problem {
  int64_t batch, channels, height, width, columns, levels;
  int radius;
  double scale;

  int64_t window() const { return 2 * radius + 1; }
  std::vector<int64_t> result() const { return {batch, levels * window(), height, width}; }
};

inline Problem check(const Tensor& left, const Tensor& right, const Tensor& x, int64_t radius, int64_t levels,
                     std::optional<double> scale) {
  PYOPS_CHECK(left.dim() == 4 && right.dim() == 4 && is_floating(left),
              "left and right must be [B, C, H, W], floating");
  PYOPS_CHECK(right.scalar_type() == left.scalar_type(), "right must have the dtype of left");
  PYOPS_CHECK(left.size(1) > 0 && left.size(2) > 0 && left.size(3) > 0 && right.size(3) > 0, "sizes must be above 0");
  PYOPS_CHECK(right.size(0) == left.size(0) && right.size(1) == left.size(1) && right.size(2) == left.size(2),
              "right must have B, C and H of left");
  PYOPS_CHECK(x.dim() == 3 && x.size(0) == left.size(0) && x.size(1) == left.size(2) && x.size(2) == left.size(3) &&
                  is_floating(x),
              "x must be [B, H, W], floating point");
  for (const Tensor& t : {right, x})
    PYOPS_CHECK(t.is_cuda() == left.is_cuda() && t.get_device() == left.get_device(),
                "all tensors must be on one device");
  PYOPS_CHECK(radius >= 0 && radius <= lookup::kMostRadius, "radius must be from 0 to 65536");
  PYOPS_CHECK(levels >= 1 && levels <= kMostLevels && right.size(3) >> (levels - 1) > 0,
              "levels must be from 1 to 16, and the last must have an entry");
  PYOPS_CHECK(right.size(3) < int64_t(lookup::kFar), "right must be narrower than 2^30");
  return {left.size(0),  left.size(1), left.size(2), left.size(3),
          right.size(3), levels,       int(radius),  scale ? *scale : 1 / std::sqrt(double(left.size(1)))};
}

inline void check_gradient(const Problem& p, const Tensor& grad, const Tensor& left) {
  PYOPS_CHECK(sizes_of(grad) == p.result() && grad.scalar_type() == left.scalar_type(),
              "grad must have the shape and the dtype of the result");
  PYOPS_CHECK(grad.is_cuda() == left.is_cuda() && grad.get_device() == left.get_device(),
              "grad must be on the device of left");
}

}  // namespace pyops::corr1d
