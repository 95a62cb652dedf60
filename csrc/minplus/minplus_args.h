// Checks that keep min-plus products and shortest paths inside their memory, once for every backend, and the sizes they
// establish.
#pragma once

#include "../common/tensor.h"
#include "minplus.h"

namespace pyops::minplus {

constexpr int64_t kMost = int64_t(1) << 31;  // of an axis: indices are kept in 32 bits

struct Problem {
  int64_t batch, rows, inner, columns;

  std::vector<int64_t> product() const { return {batch, rows, columns}; }
};

// Matrices [B, rows, columns] of any strides.
template <class T>
struct Matrices {
  T* data;
  int64_t batch, row, column;  // strides in elements
};

template <class T>
Matrices<T> matrices_of(const Tensor& t) {
  return {static_cast<T*>(const_cast<void*>(t.const_data_ptr())), t.stride(0), t.stride(1), t.stride(2)};
}

inline void check_place(const Tensor& t, const Tensor& like, const char* message) {
  PYOPS_CHECK(t.is_cuda() == like.is_cuda() && t.get_device() == like.get_device(), message);
}

inline Problem check(const Tensor& a, const Tensor& b) {
  PYOPS_CHECK(a.dim() == 3, "a must be [B, M, K]");
  PYOPS_CHECK(is_floating(a), "a must be floating point");
  PYOPS_CHECK(b.scalar_type() == a.scalar_type(), "b must have the dtype of a");
  PYOPS_CHECK(b.dim() == 3 && b.size(0) == a.size(0) && b.size(1) == a.size(2), "b must be [B, K, N] like a");
  check_place(b, a, "b must be on the same device as a");
  PYOPS_CHECK(a.size(1) < kMost && a.size(2) < kMost && b.size(2) < kMost, "M, K and N must be below 2^31");
  return {a.size(0), a.size(1), a.size(2), b.size(2)};
}

inline Problem check_gradient(const Tensor& grad, const Tensor& a, const Tensor& b) {
  const Problem p = check(a, b);
  PYOPS_CHECK(grad.dim() == 3 && sizes_of(grad) == p.product() && grad.scalar_type() == a.scalar_type(),
              "grad must have the shape and the dtype of the result");
  check_place(grad, a, "grad must be on the same device as a");
  return p;
}

// Of graphs: all axes but the first are nodes.
inline Problem check_graphs(const Tensor& weights) {
  PYOPS_CHECK(weights.dim() == 3 && weights.size(1) == weights.size(2), "weights must be [B, N, N]");
  PYOPS_CHECK(is_floating(weights), "weights must be floating point");
  PYOPS_CHECK(weights.size(1) < kMost, "N must be below 2^31");
  return {weights.size(0), weights.size(1), weights.size(1), weights.size(1)};
}

inline Problem check_graph_gradient(const Tensor& grad, const Tensor& weights, const Tensor& distances) {
  const Problem p = check_graphs(weights);
  for (const Tensor* t : {&grad, &distances}) {
    PYOPS_CHECK(t->dim() == 3 && sizes_of(*t) == p.product() && t->scalar_type() == weights.scalar_type(),
                "grad and distances must have the shape and the dtype of weights");
    check_place(*t, weights, "grad and distances must be on the same device as weights");
  }
  return p;
}

}  // namespace pyops::minplus
