// Checks that keep lut3d inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "lut3d.h"

namespace pyops::lut3d {

struct Problem {
  int64_t batch, pixels;  // pixels an image
  int size;               // vertices an axis
  bool shared_lut, shared_vertices, has_vertices, tetrahedral;

  int64_t cells() const { return int64_t(size) * size * size; }
  // Images that have a table (LUT and vertices) of their own; 1 when all share one.
  int64_t tables() const { return shared_lut && shared_vertices ? 1 : batch; }
};

inline Problem check(const Tensor& image, const Tensor& lut, const std::optional<Tensor>& vertices, bool tetrahedral) {
  PYOPS_CHECK(image.dim() == 4 && image.size(1) == 3, "image must be [B, 3, H, W]");
  PYOPS_CHECK(
      is_floating(image) || image.scalar_type() == ScalarType::Byte || image.scalar_type() == ScalarType::UInt16,
      "image must be floating point, uint8 or uint16");
  PYOPS_CHECK(is_floating(lut), "lut must be floating point");
  PYOPS_CHECK(lut.dim() == 4 || (lut.dim() == 5 && lut.size(0) == image.size(0)),
              "lut must be [3, N, N, N], or [B, 3, N, N, N] with image's B");
  const int64_t axis = lut.dim() - 3, n = lut.size(axis);
  PYOPS_CHECK(lut.size(axis - 1) == 3 && lut.size(axis + 1) == n && lut.size(axis + 2) == n && n >= 2 && n <= kMaxSize,
              "lut must have 3 channels and a cubic lattice of 2 to 129 vertices an axis");
  check_same_device(lut, image, "lut");
  if (vertices) {
    const Tensor& v = *vertices;
    PYOPS_CHECK(is_floating(v), "vertices must be floating point");
    PYOPS_CHECK((v.dim() == 2 || (v.dim() == 3 && v.size(0) == image.size(0))) && v.size(v.dim() - 2) == 3 &&
                    v.size(v.dim() - 1) == n,
                "vertices must be [3, N] or [B, 3, N] with the N of lut");
    check_same_device(v, image, "vertices");
  }
  return {image.size(0),  image.size(2) * image.size(3),     int(n),
          lut.dim() == 4, !vertices || vertices->dim() == 2, vertices.has_value(),
          tetrahedral};
}

inline void check_gradient(const Tensor& grad, const Tensor& image) {
  PYOPS_CHECK(is_floating(image), "image must be floating point to have gradients");
  PYOPS_CHECK(sizes_of(grad) == sizes_of(image) && grad.scalar_type() == image.scalar_type(),
              "grad must have the shape and dtype of image");
  check_same_device(grad, image, "grad");
}

// The results of lut3d_backward: uninitialised where wanted, of shape [0] where not.
class Gradients {
 public:
  Gradients(const Tensor& image, const Tensor& lut, const std::optional<Tensor>& vertices, bool need_image,
            bool need_lut, bool need_vertices)
      : need_image_(need_image),
        need_lut_(need_lut),
        need_vertices_(need_vertices && vertices),
        image_(allocate(image, need_image_, need_image && is_channels_last(image))),
        lut_(allocate(lut, need_lut_, false)),
        vertices_(allocate(vertices ? *vertices : lut, need_vertices_, false)) {}

  const Tensor* image_or_null() const { return need_image_ ? &image_ : nullptr; }
  const Tensor* lut_or_null() const { return need_lut_ ? &lut_ : nullptr; }
  const Tensor* vertices_or_null() const { return need_vertices_ ? &vertices_ : nullptr; }
  bool vertices_wanted() const { return need_vertices_; }
  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {image_, lut_, vertices_}; }

  // No pixels, no gradient: true when there is nothing left to compute.
  bool zero_if_empty(const Tensor& image) {
    if (image.numel() != 0) return false;
    torch::stable::zero_(lut_), torch::stable::zero_(vertices_);
    return true;
  }

 private:
  static Tensor allocate(const Tensor& like, bool need, bool channels_last) {
    return need ? new_tensor(like, sizes_of(like), like.scalar_type(), channels_last)
                : new_tensor(like, {0}, like.scalar_type());
  }

  bool need_image_, need_lut_, need_vertices_;
  Tensor image_, lut_, vertices_;
};

inline bool computes_in_double(const Tensor& image, const Tensor& lut, const std::optional<Tensor>& vertices) {
  return image.scalar_type() == ScalarType::Double || lut.scalar_type() == ScalarType::Double ||
         (vertices && vertices->scalar_type() == ScalarType::Double);
}

}  // namespace pyops::lut3d
