// Checks that keep chains of patches inside their memory, once for every backend, and the sizes they establish.
#pragma once

#include <cmath>
#include <limits>

#include "../common/tensor.h"
#include "tpatches.h"

namespace pyops::tpatches {

using OptionalTensor = std::optional<Tensor>;

inline Problem check(const Tensor& points, const Tensor& queries, int64_t k, int64_t forward,
                     const OptionalTensor& noise, const OptionalTensor& lengths, double radius) {
  const auto there = [&](const Tensor& t) {
    return t.is_cuda() == points.is_cuda() && t.get_device() == points.get_device();
  };
  PYOPS_CHECK(points.dim() == 4 && points.size(3) == 3, "points must be [B, T, N, 3]");
  PYOPS_CHECK(is_floating(points), "points must be floating point");
  PYOPS_CHECK(points.size(2) < knn::kMostPoints - 1024, "points must be fewer than 2^31 - 1024 a frame");
  PYOPS_CHECK(queries.dim() == 2 && queries.size(0) == points.size(0) && queries.scalar_type() == ScalarType::Long &&
                  there(queries),
              "query_indices must be int64 [B, M] on the device of points");
  const Problem p{points.size(0), points.size(1), points.size(2), queries.size(1), k, forward, radius};
  PYOPS_CHECK(k >= 1, "k must be at least 1");
  PYOPS_CHECK(forward >= 0 && forward <= p.queries, "forward must be from 0 to the number of queries");
  PYOPS_CHECK(radius >= 0, "max_radius must be at least 0");
  PYOPS_CHECK(!noise || (sizes_of(*noise) == std::vector<int64_t>{p.batch, p.frames, p.queries, 3} &&
                         noise->scalar_type() == points.scalar_type() && there(*noise)),
              "noise must be [B, T, M, 3] of the dtype and on the device of points");
  PYOPS_CHECK(!lengths || (sizes_of(*lengths) == std::vector<int64_t>{p.batch, p.frames} &&
                           lengths->scalar_type() == ScalarType::Long && there(*lengths)),
              "lengths must be int64 [B, T] on the device of points");
  return p;
}

struct Results {
  Tensor indices, distances, centers;

  Results(const Problem& p, const Tensor& points)
      : indices(new_tensor(points, {p.batch, p.frames, p.queries, p.k}, ScalarType::Long)),
        distances(new_tensor(points, {p.batch, p.frames, p.queries, p.k}, points.scalar_type())),
        centers(new_tensor(points, {p.batch, p.frames, p.queries, 3}, points.scalar_type())) {}

  bool empty() const { return centers.numel() == 0; }
  std::tuple<Tensor, Tensor, Tensor> tuple() const { return {indices, distances, centers}; }
};

// Rows of 3 numbers, or single ones, of any strides: [B][T][N][3], [B][T][M][3], [B][T], [B][M].
template <class T>
struct Rows {
  const T* data;
  int64_t batch, frame, row, column;  // strides in elements

  PYOPS_HD bool any() const { return data != nullptr; }
  PYOPS_HD const T* at(int64_t b, int64_t t, int64_t i) const { return data + b * batch + t * frame + i * row; }
};

template <class T>
Rows<T> rows_of(const OptionalTensor& t) {
  if (!t) return {nullptr, 0, 0, 0, 0};
  const auto* data = static_cast<const T*>(t->const_data_ptr());
  const auto stride = [&](int64_t axis) { return axis < t->dim() ? t->stride(axis) : 0; };
  return {data, stride(0), stride(1), stride(2), stride(3)};
}

// How many points of a frame count.
PYOPS_HD int64_t count_of(const Rows<int64_t>& lengths, int64_t b, int64_t t, int64_t all) {
  if (!lengths.any()) return all;
  const int64_t n = *lengths.at(b, t, 0);
  return n < 0 ? 0 : (n < all ? n : all);
}

}  // namespace pyops::tpatches
