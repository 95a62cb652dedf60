// Checks that keep farthest point sampling inside its memory, once for every backend, and the sizes they establish.
#pragma once

#include "../common/tensor.h"
#include "fps.h"

namespace pyops::fps {

// Points [B, N, D] of any strides.
template <class T>
struct Points {
  const T* data;
  int64_t batch, point, axis;  // strides in elements
};

template <class T>
Points<T> points_of(const Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2)};
}

// One number for each cloud, or the same for all.
struct Numbers {
  const int64_t* data;
  int64_t stride, otherwise;

  PYOPS_HD int64_t at(int64_t b) const { return data ? data[b * stride] : otherwise; }
};

struct Problem {
  int64_t batch, points, dims, samples;
  Numbers lengths, start;

  PYOPS_HD int64_t length(int64_t b) const {
    const int64_t n = lengths.at(b);
    return n < 0 ? 0 : (n < points ? n : points);
  }
};

inline Numbers numbers_of(const std::optional<Tensor>& t, const Tensor& points, int64_t otherwise, const char* name) {
  if (!t) return {nullptr, 0, otherwise};
  PYOPS_CHECK(t->dim() == 1 && t->size(0) == points.size(0) && t->scalar_type() == ScalarType::Long, name,
              " must be int64 [B]");
  PYOPS_CHECK(t->is_cuda() == points.is_cuda() && t->get_device() == points.get_device(), name,
              " must be on the same device as points");
  return {static_cast<const int64_t*>(t->const_data_ptr()), t->stride(0), otherwise};
}

inline Problem check(const Tensor& points, int64_t m, const std::optional<Tensor>& lengths,
                     const std::optional<Tensor>& start) {
  PYOPS_CHECK(points.dim() == 3 && is_floating(points), "points must be floating point [B, N, D]");
  PYOPS_CHECK(points.size(2) >= 1 && points.size(2) <= kMostDims, "D of points must be from 1 to 64");
  PYOPS_CHECK(points.size(1) < int64_t(1) << 31, "N of points must be below 2^31");
  PYOPS_CHECK(m >= 0, "m must not be negative");
  return {points.size(0),
          points.size(1),
          points.size(2),
          m,
          numbers_of(lengths, points, points.size(1), "lengths"),
          numbers_of(start, points, 0, "start")};
}

}  // namespace pyops::fps
