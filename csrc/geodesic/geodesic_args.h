// Checks that keep searches for shortest paths inside their memory, once for every backend, and the sizes they
// establish.
#pragma once

#include <string>

#include "../common/tensor.h"
#include "geodesic.h"

namespace pyops::geodesic {

struct Problem {
  int64_t batch, vertices, edges, sources;
};

// Graphs and sources, contiguous.
template <class A>
struct Graphs {
  Tensor holders[4];
  const int64_t *indptr, *indices, *sources;
  const A* weights;

  Graphs(const Tensor& p, const Tensor& i, const Tensor& w, const Tensor& s)
      : holders{in_order(p), in_order(i), in_order(w), in_order(s)},
        indptr(static_cast<const int64_t*>(holders[0].const_data_ptr())),
        indices(static_cast<const int64_t*>(holders[1].const_data_ptr())),
        sources(static_cast<const int64_t*>(holders[3].const_data_ptr())),
        weights(static_cast<const A*>(holders[2].const_data_ptr())) {}
};

inline Problem check(const Tensor& indptr, const Tensor& indices, const Tensor& weights, const Tensor& sources) {
  const auto of_graphs = [&](const Tensor& t, ScalarType dtype, const char* name, const char* axes) {
    PYOPS_CHECK(t.dim() == 2 && t.size(0) == indptr.size(0) && t.scalar_type() == dtype, name, " must be ", axes,
                " of the batch of indptr, of its dtype");
    PYOPS_CHECK(t.is_cuda() == indptr.is_cuda() && t.get_device() == indptr.get_device(), name,
                " must be on the device of indptr");
  };
  PYOPS_CHECK(indptr.dim() == 2 && indptr.size(1) >= 1, "indptr must be int64 [B, N + 1]");
  of_graphs(indptr, ScalarType::Long, "indptr", "[B, N + 1]");
  of_graphs(indices, ScalarType::Long, "indices", "[B, E]");
  const auto dtype = weights.scalar_type();
  PYOPS_CHECK(dtype == ScalarType::Float || dtype == ScalarType::Double, "weights must be float32 or float64");
  of_graphs(weights, dtype, "weights", "[B, E]");
  of_graphs(sources, ScalarType::Long, "sources", "[B, S]");
  PYOPS_CHECK(weights.size(1) == indices.size(1), "weights must be as many as indices");
  constexpr int64_t most = (int64_t(1) << 31) - 1;
  PYOPS_CHECK(indptr.size(1) <= most && indices.size(1) < most, "N and E must be below 2^31 - 1");
  return {indptr.size(0), indptr.size(1) - 1, indices.size(1), sources.size(1)};
}

inline void check_result(const Tensor& t, const Tensor& weights, const Problem& p, const char* name) {
  PYOPS_CHECK(
      sizes_of(t) == (std::vector<int64_t>{p.batch, p.sources, p.vertices}) && t.scalar_type() == weights.scalar_type(),
      name, " must be [B, S, N] of the dtype of weights");
  PYOPS_CHECK(t.is_cuda() == weights.is_cuda() && t.get_device() == weights.get_device(), name,
              " must be on the device of weights");
}

inline void check_search(double cutoff, const std::string& method) {
  PYOPS_CHECK(cutoff >= 0, "cutoff must be at least 0");
  PYOPS_CHECK(method == "auto" || method == "sweeps" || method == "dijkstra",
              "method must be auto, sweeps or dijkstra");
}

template <class F>
void dispatch_weights(const Tensor& weights, const F& f) {
  if (weights.scalar_type() == ScalarType::Double) return f(double());
  f(float());
}

}  // namespace pyops::geodesic
