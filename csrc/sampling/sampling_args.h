// Checks that keep sampling inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "sampling.h"

namespace pyops::sampling {

constexpr int64_t kMaxSize = int64_t(1) << 30;  // pixels or samples an axis, so that one more is an int too

struct Problem {
  int64_t batch, channels;
  int columns, rows;  // samples along x and y
  Axis x, y;
  bool antialias;
  bool as_double;  // arithmetic

  ScalarType arithmetic() const { return as_double ? ScalarType::Double : ScalarType::Float; }
};

inline bool is_double(const Tensor& t) { return t.scalar_type() == ScalarType::Double; }

// x and y are coordinates, or with `extra` = 1 the logits of adaptive sampling, one fewer than there are samples.
inline Problem check(const Tensor& image, const Tensor& x, const Tensor& y, bool align_corners, bool border,
                     bool antialias, int extra) {
  PYOPS_CHECK(image.dim() == 4 && image.size(1) > 0 && image.size(2) > 0 && image.size(3) > 0,
              "image must be [B, C, H, W] with C, H and W above 0");
  PYOPS_CHECK(
      is_floating(image) || image.scalar_type() == ScalarType::Byte || image.scalar_type() == ScalarType::UInt16,
      "image must be floating point, uint8 or uint16");
  PYOPS_CHECK(is_floating(x) && is_floating(y), extra ? "x_logits and y_logits" : "x and y", " must be floating point");
  PYOPS_CHECK(x.dim() == 2 && x.size(0) == image.size(0) && x.size(1) >= extra, extra ? "x_logits" : "x",
              " must be [B, Kx] with image's B");
  PYOPS_CHECK(y.dim() == 2 && y.size(0) == image.size(0) && y.size(1) >= extra, extra ? "y_logits" : "y",
              " must be [B, Ky] with image's B");
  PYOPS_CHECK(image.size(2) <= kMaxSize && image.size(3) <= kMaxSize && x.size(1) < kMaxSize && y.size(1) < kMaxSize,
              "an axis of image or grid must have at most 2^30 elements");
  check_same_device(x, image, extra ? "x_logits" : "x");
  check_same_device(y, image, extra ? "y_logits" : "y");
  return {image.size(0),
          image.size(1),
          int(x.size(1)) + extra,
          int(y.size(1)) + extra,
          {int(image.size(3)), align_corners, border},
          {int(image.size(2)), align_corners, border},
          antialias,
          is_double(image) || is_double(x) || is_double(y)};
}

// The result, uninitialised.
inline Tensor new_samples(const Problem& p, const Tensor& image, bool as_float) {
  return new_tensor(image, {p.batch, p.channels, p.rows, p.columns}, as_float ? ScalarType::Float : image.scalar_type(),
                    is_channels_last(image));
}

inline void check_gradient(const Problem& p, const Tensor& grad, const Tensor& image, bool need_image) {
  PYOPS_CHECK(is_floating(image) || !need_image, "image must be floating point to have gradients");
  PYOPS_CHECK(is_floating(grad) && sizes_of(grad) == (std::vector<int64_t>{p.batch, p.channels, p.rows, p.columns}),
              "grad must be floating point and have the shape of the result");
  check_same_device(grad, image, "grad");
}

inline void check_logits(const Tensor& logits) {
  PYOPS_CHECK(is_floating(logits), "logits must be floating point");
  PYOPS_CHECK(logits.dim() >= 1 && logits.size(logits.dim() - 1) >= 1 && logits.size(logits.dim() - 1) < kMaxSize,
              "logits must have at least one element, and less than 2^30, along the last axis");
}

inline std::vector<int64_t> vertex_sizes(const Tensor& logits) {
  std::vector<int64_t> sizes = sizes_of(logits);
  ++sizes.back();
  return sizes;
}

// The gradients of a backward operator: uninitialised where wanted, of shape [0] where not.
struct Gradients {
  Tensor image, x, y;
  bool need_image, need_x, need_y;

  Gradients(const Tensor& image_like, const Tensor& x_like, const Tensor& y_like, bool image, bool x, bool y)
      : image(allocate(image_like, image, image && is_channels_last(image_like))),
        x(allocate(x_like, x, false)),
        y(allocate(y_like, y, false)),
        need_image(image),
        need_x(x),
        need_y(y) {}

  // No samples, no gradient: true when there is nothing left to compute.
  bool zero_if_empty(const Tensor& grad) {
    if (grad.numel() != 0) return false;
    torch::stable::zero_(image), torch::stable::zero_(x), torch::stable::zero_(y);
    return true;
  }

  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {image, x, y}; }

 private:
  static Tensor allocate(const Tensor& like, bool need, bool channels_last) {
    return need ? new_tensor(like, sizes_of(like), like.scalar_type(), channels_last)
                : new_tensor(like, {0}, like.scalar_type());
  }
};

}  // namespace pyops::sampling
