// Graphs in compressed sparse rows: the checks that keep edges inside their memory, and the mathematics of an edge.
#pragma once

#include "../common/tensor.h"

namespace pyops::knn_graph {

constexpr int64_t kMostPoints = (int64_t(1) << 31) - 1024;

// Points [N, D] and a graph on them: E edges in N rows.
struct Edges {
  int64_t points, dims, count;
};

inline Edges check(const Tensor& x, const Tensor& indptr, const Tensor& indices) {
  PYOPS_CHECK(x.dim() == 2 && x.size(1) > 0, "x must be [N, D] with D above 0");
  PYOPS_CHECK(is_floating(x), "x must be floating point");
  for (const Tensor* t : {&indptr, &indices})
    PYOPS_CHECK(t->scalar_type() == ScalarType::Long && t->dim() == 1 && t->is_cpu() && x.is_cpu(),
                "indptr [N + 1] and indices [E] must be int64, on the device of x");
  const Edges e{x.size(0), x.size(1), indices.size(0)};
  PYOPS_CHECK(indptr.size(0) == e.points + 1, "indptr must be [N + 1]");
  return e;
}

// Where every row begins, checked.
inline void check_rows(const int64_t* indptr, const Edges& e) {
  bool rising = indptr[0] == 0 && indptr[e.points] == e.count;
  for (int64_t i = 0; i < e.points; ++i) rising &= indptr[i] <= indptr[i + 1];
  PYOPS_CHECK(rising, "indptr must rise from 0 to E");
}

// What an edge adds to the gradient of its ends, for each difference of coordinates; 0 where its ends coincide.
template <class A>
PYOPS_HD A slope(A grad, A length) {
  return length > A(0) ? grad / length : A(0);
}

}  // namespace pyops::knn_graph
