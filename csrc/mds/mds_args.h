// Checks that keep products with centred matrices inside their memory, once for every backend, and their sizes.
#pragma once

#include "../common/tensor.h"
#include "mds.h"

namespace pyops::mds {

struct Problem {
  int64_t batch, points, columns;
};

// [B, rows, columns] of any strides.
template <class T>
struct Matrices {
  T* data;
  int64_t batch, row, column;  // strides in elements
};

template <class T>
Matrices<T> matrices_of(const Tensor& t) {
  return {static_cast<T*>(const_cast<void*>(t.const_data_ptr())), t.stride(0), t.stride(1), t.stride(2)};
}

inline Problem check(const Tensor& distances, const Tensor& vectors) {
  PYOPS_CHECK(distances.dim() == 3 && distances.size(1) == distances.size(2), "distances must be [B, N, N]");
  PYOPS_CHECK(is_floating(distances), "distances must be floating point");
  PYOPS_CHECK(vectors.scalar_type() == distances.scalar_type(), "vectors must have the dtype of distances");
  PYOPS_CHECK(vectors.dim() == 3 && vectors.size(0) == distances.size(0) && vectors.size(1) == distances.size(1),
              "vectors must be [B, N, K] like distances");
  PYOPS_CHECK(vectors.is_cuda() == distances.is_cuda() && vectors.get_device() == distances.get_device(),
              "vectors must be on the same device as distances");
  return {distances.size(0), distances.size(1), vectors.size(2)};
}

}  // namespace pyops::mds
