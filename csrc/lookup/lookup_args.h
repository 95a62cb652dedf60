// Checks that keep lookups inside their memory, once for every backend, and the lines of costs that they establish.
#pragma once

#include "../common/tensor.h"
#include "lookup.h"

namespace pyops::lookup {

// The costs of one level: `channels` lines for every pixel.
template <class T>
struct Lines {
  T* data;
  int64_t batch, channel, pixel, tap;  // strides in elements
  int64_t channels, taps;
  int64_t out;     // the first of the channels of the result that these lines fill
  double inverse;  // 2^-level, taps a unit of position
  bool mirrored;   // the place is column - position, not position

  // d place / d position
  PYOPS_HD double slope() const { return mirrored ? -inverse : inverse; }
  template <class A>
  PYOPS_HD Place<A> place(A position, int64_t column, int radius) const {
    return {(mirrored ? A(column) - position : position) * A(inverse), radius};
  }
};

// Lookups of positions [B, H, W] in volumes [B, C, D, H, W], and of columns - positions in a pyramid [B, H, W, D]; of
// positions themselves where there are no volumes.
struct Problem {
  int64_t batch, height, width, channels;  // channels of a volume, 0 without volumes
  int64_t levels;
  int radius;
  std::vector<Tensor> volumes, pyramid;  // contiguous

  int64_t pixels() const { return height * width; }
  int64_t window() const { return 2 * radius + 1; }
  int64_t lines() const { return levels * (channels + 1); }
  std::vector<int64_t> result() const { return {batch, lines() * window(), height, width}; }
};

inline void check_level(const Tensor& t, const Tensor& first, const char* name) {
  PYOPS_CHECK(t.scalar_type() == first.scalar_type(), name, " must have one dtype");
  PYOPS_CHECK(t.is_cuda() == first.is_cuda() && t.get_device() == first.get_device(), name, " must be on one device");
}

inline Problem check(const std::vector<Tensor>& volumes, const std::vector<Tensor>& pyramid, const Tensor& position,
                     int64_t radius) {
  PYOPS_CHECK(!pyramid.empty() && pyramid.size() <= kMostLevels, "pyramid must have from 1 to 16 levels");
  PYOPS_CHECK(volumes.empty() || volumes.size() == pyramid.size(), "volumes and pyramid must have as many levels");
  PYOPS_CHECK(radius >= 0 && radius <= kMostRadius, "radius must be from 0 to 65536");
  PYOPS_CHECK(position.dim() == 3 && is_floating(position), "the position must be [B, H, W], floating point");
  PYOPS_CHECK(is_floating(pyramid[0]), "pyramid must be floating point");
  PYOPS_CHECK(position.is_cuda() == pyramid[0].is_cuda() && position.get_device() == pyramid[0].get_device(),
              "the position must be on the device of pyramid");
  Problem p{position.size(0), position.size(1), position.size(2), 0, int64_t(pyramid.size()), int(radius), {}, {}};
  for (const Tensor& level : pyramid) {
    check_level(level, pyramid[0], "pyramid");
    PYOPS_CHECK(level.dim() == 4 && level.size(0) == p.batch && level.size(1) == p.height && level.size(2) == p.width &&
                    level.size(3) > 0 && level.size(3) < kFar,
                "a level of pyramid must be [B, H, W, D] with D above 0");
    p.pyramid.push_back(in_order(level));
  }
  for (const Tensor& volume : volumes) {
    check_level(volume, pyramid[0], "volumes and pyramid");
    PYOPS_CHECK(volume.dim() == 5 && volume.size(0) == p.batch && volume.size(1) == volumes[0].size(1) &&
                    volume.size(1) > 0 && volume.size(2) > 0 && volume.size(2) < kFar && volume.size(3) == p.height &&
                    volume.size(4) == p.width,
                "a level of volumes must be [B, C, D, H, W] with C and D above 0");
    p.channels = volume.size(1);
    p.volumes.push_back(in_order(volume));
  }
  return p;
}

inline void check_gradient(const Problem& p, const Tensor& grad) {
  PYOPS_CHECK(sizes_of(grad) == p.result() && grad.scalar_type() == p.pyramid[0].scalar_type(),
              "grad must have the shape and the dtype of the result");
  check_level(grad, p.pyramid[0], "grad and pyramid");
}

// Buffers that gradients to volumes and pyramid are added to.
inline void check_buffers(const std::vector<Tensor>& buffers, const std::vector<Tensor>& costs) {
  PYOPS_CHECK(buffers.size() == costs.size(), "there must be a buffer for every level");
  for (size_t i = 0; i < costs.size(); ++i) {
    PYOPS_CHECK(sizes_of(buffers[i]) == sizes_of(costs[i]) && buffers[i].is_contiguous(),
                "a buffer must be contiguous and have the shape of its level");
    PYOPS_CHECK(buffers[i].scalar_type() == costs[i].scalar_type(), "a buffer must have the dtype of its level");
    check_level(buffers[i], costs[i], "buffers");
  }
}

// All lines, level by level; in the memory of `volumes` and `pyramid`, which are contiguous.
template <class T>
std::vector<Lines<T>> lines_of(const Problem& p, const std::vector<Tensor>& volumes,
                               const std::vector<Tensor>& pyramid) {
  std::vector<Lines<T>> all;
  const int64_t n = p.pixels();
  int64_t out = 0;
  double inverse = 1;
  const auto add = [&](const Tensor& t, int64_t channels, int64_t taps, bool mirrored) {
    T* const data = static_cast<T*>(const_cast<void*>(t.const_data_ptr()));
    if (t.dim() == 5)
      all.push_back({data, channels * taps * n, taps * n, 1, n, channels, taps, out, inverse, mirrored});
    else all.push_back({data, taps * n, 0, taps, 1, channels, taps, out, inverse, mirrored});
    out += channels * p.window();
  };
  for (int64_t i = 0; i < p.levels; ++i, inverse /= 2) {
    if (!volumes.empty()) add(volumes[i], p.channels, volumes[i].size(2), false);
    add(pyramid[i], 1, pyramid[i].size(3), !volumes.empty());
  }
  return all;
}

}  // namespace pyops::lookup
