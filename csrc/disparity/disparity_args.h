// Checks that keep both operators inside their memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "disparity.h"

namespace pyops::disparity {

constexpr int64_t kMaxSize = int64_t(1) << 30;   // pixels an axis of the fine image
constexpr int64_t kMaxWidth = int64_t(1) << 24;  // pixels of a warped row: every column is a float

inline bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }

// For backends that compute in float32 alone.
inline void check_no_double(bool as_double) { PYOPS_CHECK(!as_double, "float64 is for CPU tensors"); }

// ---- context_upsample ------------------------------------------------------------------------------------------------

struct Upsampling {
  int64_t batch;
  int height, width, scale;  // of the coarse image
  bool as_double;            // arithmetic

  PYOPS_HD int64_t rows() const { return int64_t(height) * scale; }
  PYOPS_HD int64_t columns() const { return int64_t(width) * scale; }
};

inline Upsampling check_upsample(const Tensor& disparity, const Tensor& weights) {
  PYOPS_CHECK(is_floating(disparity) && is_floating(weights), "disparity and weights must be floating point");
  PYOPS_CHECK(disparity.dim() == 4 && disparity.size(1) == 1 && disparity.size(2) > 0 && disparity.size(3) > 0,
              "disparity must be [B, 1, h, w] with h and w above 0");
  PYOPS_CHECK(weights.dim() == 4 && weights.size(0) == disparity.size(0) && weights.size(1) == kNeighbours,
              "weights must be [B, 9, s * h, s * w] with disparity's B");
  const int64_t scale = weights.size(2) / disparity.size(2);
  PYOPS_CHECK(
      scale >= 1 && weights.size(2) == scale * disparity.size(2) && weights.size(3) == scale * disparity.size(3),
      "weights must be [B, 9, s * h, s * w] for one integer s of at least 1");
  PYOPS_CHECK(weights.size(2) <= kMaxSize && weights.size(3) <= kMaxSize,
              "an axis of weights must have at most 2^30 elements");
  check_same_device(weights, disparity, "weights");
  return {disparity.size(0), int(disparity.size(2)), int(disparity.size(3)), int(scale),
          is_double(disparity) || is_double(weights)};
}

// The result, uninitialised.
inline Tensor new_upsampled(const Upsampling& p, const Tensor& disparity) {
  return new_tensor(disparity, {p.batch, 1, p.rows(), p.columns()}, disparity.scalar_type());
}

inline void check_gradient(const Upsampling& p, const Tensor& grad, const Tensor& disparity) {
  PYOPS_CHECK(is_floating(grad) && sizes_of(grad) == (std::vector<int64_t>{p.batch, 1, p.rows(), p.columns()}),
              "grad must be floating point and have the shape of the result");
  check_same_device(grad, disparity, "grad");
}

// ---- disparity_warp --------------------------------------------------------------------------------------------------

struct Warping {
  int64_t batch, channels, height;
  int width;
  bool as_double;
};

inline Warping check_warp(const Tensor& image, const Tensor& disparity) {
  PYOPS_CHECK(image.dim() == 4 && image.size(1) > 0 && image.size(2) > 0 && image.size(3) > 0,
              "image must be [B, C, H, W] with C, H and W above 0");
  PYOPS_CHECK(
      is_floating(image) || image.scalar_type() == ScalarType::Byte || image.scalar_type() == ScalarType::UInt16,
      "image must be floating point, uint8 or uint16");
  PYOPS_CHECK(is_floating(disparity), "disparity must be floating point");
  PYOPS_CHECK(sizes_of(disparity) == (std::vector<int64_t>{image.size(0), 1, image.size(2), image.size(3)}),
              "disparity must be [B, 1, H, W] with image's B, H and W");
  PYOPS_CHECK(image.size(3) <= kMaxWidth, "a row of image must have at most 2^24 pixels");
  check_same_device(disparity, image, "disparity");
  return {image.size(0), image.size(1), image.size(2), int(image.size(3)), is_double(image) || is_double(disparity)};
}

inline Tensor new_warped(const Tensor& image) {
  return new_tensor(image, sizes_of(image), image.scalar_type(), is_channels_last(image));
}

inline void check_gradient(const Tensor& grad, const Tensor& image, bool need_image) {
  PYOPS_CHECK(is_floating(image) || !need_image, "image must be floating point to have gradients");
  PYOPS_CHECK(is_floating(grad) && sizes_of(grad) == sizes_of(image),
              "grad must be floating point and have the shape of the result");
  check_same_device(grad, image, "grad");
}

}  // namespace pyops::disparity
