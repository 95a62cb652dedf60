// Checks that keep nearest neighbours inside their memory, once for every backend, and the sizes they establish.
#pragma once

#include <algorithm>

#include "../common/tensor.h"
#include "knn.h"

namespace pyops::knn {

struct Problem {
  int64_t batch, queries, points, dims, k;
};

inline void check_lengths(const std::optional<Tensor>& lengths, const Tensor& cloud, const char* name) {
  if (!lengths) return;
  PYOPS_CHECK(lengths->scalar_type() == ScalarType::Long && lengths->dim() == 1 && lengths->size(0) == cloud.size(0),
              name, " must be int64 [B]");
  PYOPS_CHECK(lengths->is_cuda() == cloud.is_cuda() && lengths->get_device() == cloud.get_device(), name,
              " must be on the same device as query");
}

inline Problem check_clouds(const Tensor& query, const Tensor& points, int64_t k) {
  PYOPS_CHECK(query.dim() == 3 && query.size(2) > 0, "query must be [B, M, D] with D above 0");
  PYOPS_CHECK(is_floating(query), "query must be floating point");
  PYOPS_CHECK(points.scalar_type() == query.scalar_type(), "points must have the dtype of query");
  PYOPS_CHECK(points.dim() == 3 && points.size(0) == query.size(0) && points.size(2) == query.size(2),
              "points must have the batch and the dimensions of query");
  PYOPS_CHECK(points.is_cuda() == query.is_cuda() && points.get_device() == query.get_device(),
              "points must be on the same device as query");
  PYOPS_CHECK(points.size(1) < kMostPoints - 1024, "points must be fewer than 2^31 - 1024 a cloud");
  PYOPS_CHECK(k >= 1 && k <= kMostNeighbours, "k must be from 1 to 1024");
  return {query.size(0), query.size(1), points.size(1), query.size(2), k};
}

inline Problem check(const Tensor& query, const Tensor& points, int64_t k, const std::optional<Tensor>& query_lengths,
                     const std::optional<Tensor>& lengths) {
  const Problem p = check_clouds(query, points, k);
  check_lengths(query_lengths, query, "query_lengths");
  check_lengths(lengths, points, "lengths");
  return p;
}

inline Problem check_gradient(const Tensor& grad, const Tensor& query, const Tensor& points, const Tensor& indices) {
  PYOPS_CHECK(grad.dim() == 3, "grad must be [B, M, k]");
  const Problem p = check_clouds(query, points, std::max<int64_t>(1, grad.size(2)));
  PYOPS_CHECK(grad.scalar_type() == query.scalar_type(), "grad must have the dtype of query");
  PYOPS_CHECK(grad.size(0) == p.batch && grad.size(1) == p.queries && grad.size(2) == p.k,
              "grad must be [B, M, k] like query");
  PYOPS_CHECK(indices.scalar_type() == ScalarType::Long && indices.dim() == 3 && sizes_of(indices) == sizes_of(grad),
              "indices must be int64 of the shape of grad");
  for (const Tensor* t : {&grad, &indices})
    PYOPS_CHECK(t->is_cuda() == query.is_cuda() && t->get_device() == query.get_device(),
                "grad and indices must be on the same device as query");
  return p;
}

// A cloud [B, N, D] of any strides.
template <class T>
struct Cloud {
  T* data;
  int64_t batch, point, dim;  // strides in elements
};

template <class T>
Cloud<T> cloud_of(const Tensor& t) {
  return {static_cast<T*>(const_cast<void*>(t.const_data_ptr())), t.stride(0), t.stride(1), t.stride(2)};
}

// How many points of a cloud count: lengths, or all.
struct Counts {
  const int64_t* lengths;
  int64_t step, all;

  PYOPS_HD int64_t of(int64_t b) const {
    if (!lengths) return all;
    const int64_t n = lengths[b * step];
    return n < 0 ? 0 : (n < all ? n : all);
  }
};

inline Counts counts_of(const std::optional<Tensor>& lengths, int64_t all) {
  if (!lengths) return {nullptr, 0, all};
  return {lengths->const_data_ptr<int64_t>(), lengths->stride(0), all};
}

}  // namespace pyops::knn
