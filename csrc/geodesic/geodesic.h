// What an edge is, and which of them belong to a tree of shortest paths, for host and device.
//
// Sums are never fused and weights never negative, so rounded sums rise along a path: the least of them over all paths
// does not depend on the order in which edges are relaxed, and all backends find the same bits.
#pragma once

#include "../common/portable.h"

namespace pyops::geodesic {

// The rows of a graph; whatever `indptr` holds, they lie within the edges.
struct Row {
  int64_t begin, end;
};

PYOPS_HD Row row_of(const int64_t* indptr, int64_t vertex, int64_t edges) {
  const int64_t from = indptr[vertex], to = indptr[vertex + 1];
  const int64_t begin = from < 0 ? 0 : (from < edges ? from : edges);
  return {begin, to < begin ? begin : (to < edges ? to : edges)};
}

// An edge that is none: it leads nowhere, or its weight is negative, infinite or NaN.
template <class A>
PYOPS_HD bool is_edge(int64_t target, A weight, int64_t vertices) {
  return uint64_t(target) < uint64_t(vertices) && weight >= A(0) && weight - weight == A(0);
}

// Whether an edge attains a distance that is finite.
template <class A>
PYOPS_HD bool is_tight(A before, A weight, A after) {
  return before + weight == after && after - after == A(0);
}

}  // namespace pyops::geodesic
