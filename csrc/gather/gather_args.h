// Checks that keep gathering inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "gather.h"

namespace pyops::gather {

inline void check_like(const Tensor& t, const Tensor& other, const char* name) {
  PYOPS_CHECK(t.is_cuda() == other.is_cuda() && t.get_device() == other.get_device(), name,
              " must be on the device of the values or of the gradient");
}

inline void check_indices(const Tensor& indices, const Tensor& rows, int64_t axes) {
  PYOPS_CHECK(indices.dim() == axes && indices.size(0) == rows.size(0) && indices.scalar_type() == ScalarType::Long,
              "indices must be int64 with the batch of the values or of the gradient");
  check_like(indices, rows, "indices");
}

inline Problem checked(const Problem& p) {
  PYOPS_CHECK(p.points >= 0 && p.points < int64_t(1) << 31, "points must be from 0 to 2^31 - 1");
  PYOPS_CHECK(p.entries() < int64_t(1) << 31, "indices of a cloud must be fewer than 2^31");
  return p;
}

inline Problem check(const Tensor& values, const Tensor& indices) {
  PYOPS_CHECK(values.dim() == 3 && is_floating(values), "values must be floating point [B, N, C]");
  check_indices(indices, values, 2);
  return checked({values.size(0), values.size(1), values.size(2), indices.size(1), 1});
}

inline Problem check_gradient(const Tensor& grad, const Tensor& indices, int64_t points) {
  PYOPS_CHECK(grad.dim() == 3 && is_floating(grad), "grad must be floating point [B, K, C]");
  check_indices(indices, grad, 2);
  PYOPS_CHECK(indices.size(1) == grad.size(1), "grad must have a row for each of the indices");
  return checked({grad.size(0), points, grad.size(2), indices.size(1), 1});
}

inline Problem check_blend(const Tensor& values, const Tensor& indices, const Tensor& weights) {
  PYOPS_CHECK(values.dim() == 3 && is_floating(values), "values must be floating point [B, N, C]");
  check_indices(indices, values, 3);
  PYOPS_CHECK(weights.dim() == 3 && sizes_of(weights) == sizes_of(indices), "weights must have the shape of indices");
  const auto dtype = weights.scalar_type(), of_values = values.scalar_type();
  PYOPS_CHECK(dtype == of_values || (dtype == ScalarType::Float && of_values != ScalarType::Double),
              "weights must have the dtype of values, or be float32 for halves");
  check_like(weights, values, "weights");
  return checked({values.size(0), values.size(1), values.size(2), indices.size(1), indices.size(2)});
}

inline Problem check_blend_gradient(const Tensor& grad, const Tensor& values, const Tensor& indices,
                                    const Tensor& weights) {
  const Problem p = check_blend(values, indices, weights);
  PYOPS_CHECK(sizes_of(grad) == (std::vector<int64_t>{p.batch, p.queries, p.channels}) &&
                  grad.scalar_type() == values.scalar_type(),
              "grad must have the shape and the dtype of the result");
  check_like(grad, values, "grad");
  return p;
}

// Rows [B, N] of C neighbouring numbers; a tensor where they are no neighbours is copied first.
template <class T>
struct Rows {
  Tensor holder;
  T* data;
  int64_t batch, row;  // strides in elements

  explicit Rows(const Tensor& t)
      : holder(t.size(2) <= 1 || t.stride(2) == 1 ? t : torch::stable::contiguous(t)),
        data(static_cast<T*>(const_cast<void*>(holder.const_data_ptr()))),
        batch(holder.stride(0)),
        row(holder.stride(1)) {}
};

}  // namespace pyops::gather
