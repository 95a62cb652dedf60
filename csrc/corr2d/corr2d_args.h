// Checks that keep all-pairs correlation of images inside its memory, once for every backend, and the sizes they
// establish.
#pragma once

#include "../common/tensor.h"
#include "corr2d.h"

namespace pyops::corr2d {

template <class T>
T* data_of(const Tensor& t) {
  return static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
}

inline void check_same(const Tensor& t, const Tensor& other, const char* names) {
  PYOPS_CHECK(t.scalar_type() == other.scalar_type(), names, " must have one dtype");
  PYOPS_CHECK(t.is_cuda() == other.is_cuda() && t.get_device() == other.get_device(), names, " must be on one device");
}

// ---- the levels of a pyramid ----------------------------------------------------------------------------------------

inline Planes check_planes(const Tensor& t, int64_t levels) {
  PYOPS_CHECK(t.dim() >= 2 && is_floating(t), "the volume must be floating point");
  PYOPS_CHECK(levels >= 1 && levels <= kMostLevels, "levels must be from 1 to 16");
  const int64_t rows = t.size(t.dim() - 2), columns = t.size(t.dim() - 1);
  PYOPS_CHECK(rows >> (levels - 1) > 0 && columns >> (levels - 1) > 0, "the last level must have an entry");
  return {t.numel() / (rows * columns), rows, columns, levels};
}

inline std::vector<int64_t> level_sizes(const Tensor& t, int64_t level) {
  std::vector<int64_t> sizes = sizes_of(t);
  sizes.end()[-1] >>= level, sizes.end()[-2] >>= level;
  return sizes;
}

// The planes of gradients to all levels, of which the first has the shape of the volume.
inline Planes check_levels(const std::vector<Tensor>& grads) {
  PYOPS_CHECK(!grads.empty(), "there must be a gradient to level 0");
  const Planes planes = check_planes(grads[0], int64_t(grads.size()));
  for (size_t l = 1; l < grads.size(); ++l) {
    PYOPS_CHECK(grads[l].dim() == grads[0].dim() && sizes_of(grads[l]) == level_sizes(grads[0], int64_t(l)),
                "a level must have half the rows and columns of the one before");
    check_same(grads[l], grads[0], "levels");
  }
  return planes;
}

// Levels 1 and on, uninitialised.
inline std::vector<Tensor> new_pooled(const Tensor& volume, int64_t levels, ScalarType dtype) {
  std::vector<Tensor> pooled;
  for (int64_t l = 1; l < levels; ++l) pooled.push_back(new_tensor(volume, level_sizes(volume, l), dtype));
  return pooled;
}

// ---- lookups --------------------------------------------------------------------------------------------------------

// One level of the planes of all pixels, contiguous.
template <class T>
struct Level {
  T* data;
  int64_t rows, columns;
  int64_t entries;  // of all planes
};

// Lookups at coords [B, 2, H, W] in levels [B, H, W, U, V].
struct Problem {
  int64_t batch, height, width, levels;
  int radius;
  std::vector<Tensor> pyramid;  // contiguous

  int64_t pixels() const { return height * width; }
  int64_t window() const { return 2 * radius + 1; }
  int64_t channels() const { return levels * window() * window(); }
  std::vector<int64_t> result() const { return {batch, channels(), height, width}; }
};

inline void check_coords(const Tensor& coords, const Tensor& other, int64_t batch, int64_t height, int64_t width,
                         int64_t radius) {
  PYOPS_CHECK(coords.dim() == 4 && coords.size(0) == batch && coords.size(1) == 2 && coords.size(2) == height &&
                  coords.size(3) == width && is_floating(coords),
              "coords must be [B, 2, H, W], floating point");
  PYOPS_CHECK(coords.is_cuda() == other.is_cuda() && coords.get_device() == other.get_device(),
              "all tensors must be on one device");
  PYOPS_CHECK(radius >= 0 && radius <= kMostRadius, "radius must be from 0 to 1024");
}

inline Problem check(const std::vector<Tensor>& pyramid, const Tensor& coords, int64_t radius) {
  PYOPS_CHECK(!pyramid.empty() && pyramid.size() <= kMostLevels, "pyramid must have from 1 to 16 levels");
  PYOPS_CHECK(pyramid[0].dim() == 5 && is_floating(pyramid[0]), "pyramid must be [B, H, W, U, V], floating point");
  Problem p{pyramid[0].size(0), pyramid[0].size(1), pyramid[0].size(2), int64_t(pyramid.size()), int(radius), {}};
  check_coords(coords, pyramid[0], p.batch, p.height, p.width, radius);
  for (const Tensor& level : pyramid) {
    check_same(level, pyramid[0], "the levels of pyramid");
    PYOPS_CHECK(level.dim() == 5 && level.size(0) == p.batch && level.size(1) == p.height && level.size(2) == p.width &&
                    level.size(3) > 0 && level.size(3) < lookup::kFar && level.size(4) > 0 &&
                    level.size(4) < lookup::kFar,
                "a level of pyramid must be [B, H, W, U, V] with U and V above 0");
    p.pyramid.push_back(in_order(level));
  }
  return p;
}

inline void check_gradient(const std::vector<int64_t>& result, const Tensor& grad, const Tensor& like) {
  PYOPS_CHECK(sizes_of(grad) == result, "grad must have the shape of the result");
  check_same(grad, like, "grad and the result");
}

// Buffers that gradients to the levels are added to.
inline void check_buffers(const std::vector<Tensor>& buffers, const std::vector<Tensor>& levels) {
  PYOPS_CHECK(buffers.size() == levels.size(), "there must be a buffer for every level");
  for (size_t i = 0; i < levels.size(); ++i) {
    PYOPS_CHECK(sizes_of(buffers[i]) == sizes_of(levels[i]) && buffers[i].is_contiguous(),
                "a buffer must be contiguous and have the shape of its level");
    check_same(buffers[i], levels[i], "a buffer and its level");
  }
}

template <class T>
std::vector<Level<T>> levels_of(const std::vector<Tensor>& pyramid) {
  std::vector<Level<T>> all;
  for (const Tensor& t : pyramid) all.push_back({data_of<T>(t), t.size(3), t.size(4), t.numel()});
  return all;
}

// ---- lookups on demand ----------------------------------------------------------------------------------------------

// Lookups at coords [B, 2, H, W] in what the pyramid of first [B, C, H, W] and second [B, C, U, V] would be.
struct OnDemand {
  int64_t batch, channels, height, width, rows, columns, levels;
  int radius;
  double scale;

  int64_t pixels() const { return height * width; }
  int64_t window() const { return 2 * radius + 1; }
  std::vector<int64_t> result() const { return {batch, levels * window() * window(), height, width}; }
};

inline OnDemand check(const Tensor& first, const Tensor& second, const Tensor& coords, int64_t radius, int64_t levels,
                      std::optional<double> scale) {
  PYOPS_CHECK(first.dim() == 4 && second.dim() == 4 && is_floating(first),
              "first and second must be [B, C, H, W], floating");
  check_same(second, first, "first and second");
  for (int i = 1; i < 4; ++i) PYOPS_CHECK(first.size(i) > 0 && second.size(i) > 0, "sizes must be above 0");
  PYOPS_CHECK(second.size(0) == first.size(0) && second.size(1) == first.size(1), "second must have B and C of first");
  check_coords(coords, first, first.size(0), first.size(2), first.size(3), radius);
  check_planes(second, levels);
  PYOPS_CHECK(second.size(2) < lookup::kFar && second.size(3) < lookup::kFar, "second must be smaller than 2^30");
  return {first.size(0), first.size(1),  first.size(2),
          first.size(3), second.size(2), second.size(3),
          levels,        int(radius),    scale ? *scale : 1 / std::sqrt(double(first.size(1)))};
}

}  // namespace pyops::corr2d
