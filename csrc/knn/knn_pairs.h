// Distances of one point to some others that lie anywhere, on a CPU, in the order of operations of the definition.
#pragma once

#include "../common/simd.h"
#include "knn.h"

namespace pyops::knn {

template <class A>
PYOPS_HD simd::Vector<A> distances_to_rows(const A* query, const A* const (&rows)[simd::kLanes<A>], int64_t dims) {
  using V = simd::Vector<A>;
  constexpr int64_t n = simd::kLanes<A>;
  V sum{};
  int64_t d = 0;
  for (; d + n <= dims; d += n) {
    V block[n];
#pragma GCC unroll 8
    for (int64_t j = 0; j < n; ++j) block[j] = simd::load<V>(rows[j] + d);
    simd::transpose(block);
#pragma GCC unroll 8
    for (int64_t j = 0; j < n; ++j) sum += square(simd::splat(query[d + j]) - block[j]);
  }
  for (; d < dims; ++d) {
    alignas(32) A element[n];
    for (int64_t j = 0; j < n; ++j) element[j] = rows[j][d];
    sum += square(simd::splat(query[d]) - simd::load<V>(element));
  }
  return sum;
}

}  // namespace pyops::knn
