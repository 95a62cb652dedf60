// Checks that keep both operators inside their memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "motif.h"

namespace pyops::motif {

constexpr int64_t kMaxSize = int64_t(1) << 30;  // pixels an axis

inline void check_features(const Tensor& features) {
  PYOPS_CHECK(is_floating(features), "features must be floating point");
  PYOPS_CHECK(features.dim() == 4 && features.size(1) > 0 && features.size(2) > 0 && features.size(3) > 0,
              "features must be [B, C, H, W] with C, H and W above 0");
  PYOPS_CHECK(features.size(1) <= kMaxSize && features.size(2) <= kMaxSize && features.size(3) <= kMaxSize,
              "an axis of features must have at most 2^30 elements");
}

// Uninitialised, in the layout of `like`.
inline Tensor new_like(const Tensor& like) {
  return new_tensor(like, sizes_of(like), like.scalar_type(), is_channels_last(like));
}

struct Problem {
  int64_t batch, motifs, channels, height, width;

  int64_t pixels() const { return batch * height * width; }
};

inline Problem check(const Tensor& motif, const Tensor& features, const Tensor& kernel) {
  check_features(features);
  const int64_t batch = features.size(0), height = features.size(2), width = features.size(3);
  PYOPS_CHECK(motif.dim() == 4 && motif.size(1) > 0 && motif.size(1) <= kMaxSize, "motif must be [B, S, H, W]");
  const int64_t motifs = motif.size(1);
  PYOPS_CHECK(sizes_of(motif) == (std::vector<int64_t>{batch, motifs, height, width}),
              "motif must be [B, S, H, W] with the B, H and W of features");
  PYOPS_CHECK(sizes_of(kernel) == (std::vector<int64_t>{motifs, 3, 3, 3}), "kernel must be [S, 3, 3, 3]");
  PYOPS_CHECK(motif.scalar_type() == features.scalar_type(), "motif must have the dtype of features");
  PYOPS_CHECK(kernel.scalar_type() == features.scalar_type(), "kernel must have the dtype of features");
  for (const Tensor* t : {&motif, &kernel})
    PYOPS_CHECK(t->is_cuda() == features.is_cuda() && t->get_device() == features.get_device(),
                "motif and kernel must be on the device of features");
  return {batch, motifs, features.size(1), height, width};
}

inline void check_gradient(const Tensor& grad, const Tensor& features) {
  PYOPS_CHECK(grad.scalar_type() == features.scalar_type() && sizes_of(grad) == sizes_of(features),
              "grad must have the dtype and the shape of features");
  PYOPS_CHECK(grad.is_cuda() == features.is_cuda() && grad.get_device() == features.get_device(),
              "grad must be on the device of features");
}

}  // namespace pyops::motif
