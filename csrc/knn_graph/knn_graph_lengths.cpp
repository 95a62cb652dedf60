// Lengths of the edges of a symmetric graph on the CPU, and their gradient to the points.
//
// A point sums over its own row only: every edge has its reverse, whose gradient is looked up in the row where it leads.
// So each sum has one owner and one order.
#include <algorithm>
#include <cmath>

#include "../common/pixel.h"
#include "../knn/knn_pairs.h"
#include "knn_graph.h"

namespace pyops::knn_graph {
namespace {

using simd::kLanes;
using simd::Vector;
using torch::stable::parallel_for;

constexpr int64_t kGrain = 1 << 15;  // coordinates worth a thread

template <class A>
struct Graph {
  Edges e;
  const A* x;  // [N][D]
  const int64_t *indptr, *indices;

  // Edges that lead nowhere are as long as none.
  PYOPS_HD const A* end_of(int64_t edge, int64_t i) const {
    const int64_t j = indices[edge];
    return x + (j >= 0 && j < e.points ? j : i) * e.dims;
  }
  // The edge from `row` to `to`, of which there is at most one in a row in order; -1 where there is none.
  PYOPS_HD int64_t find(int64_t row, int64_t to) const {
    if (row < 0 || row >= e.points) return -1;
    const int64_t *const end = indices + indptr[row + 1], *const at = std::lower_bound(indices + indptr[row], end, to);
    return at != end && *at == to ? at - indices : -1;
  }
};

// Lengths of up to kLanes edges of point i from `edge` on.
template <class A>
PYOPS_HD void lengths_of(const Graph<A>& g, int64_t i, int64_t edge, int64_t count, A* lengths) {
  constexpr int64_t n = kLanes<A>;
  const A* rows[n];
  for (int64_t k = 0; k < n; ++k) rows[k] = g.end_of(edge + std::min(k, count - 1), i);
  const Vector<A> squares = knn::distances_to_rows<A>(g.x + i * g.e.dims, rows, g.e.dims);
  for (int64_t k = 0; k < n; ++k) lengths[k] = std::sqrt(squares[k]);
}

#define PYOPS_LENGTHS(T, A)                                                                                     \
  PYOPS_MULTIVERSION void lengths(const Graph<A>& g, int64_t i, int64_t end, T* out) {                          \
    A some[kLanes<A>];                                                                                          \
    for (; i < end; ++i)                                                                                        \
      for (int64_t edge = g.indptr[i]; edge < g.indptr[i + 1]; edge += kLanes<A>) {                             \
        const int64_t count = std::min(kLanes<A>, g.indptr[i + 1] - edge);                                      \
        lengths_of(g, i, edge, count, some);                                                                    \
        for (int64_t k = 0; k < count; ++k) out[edge + k] = encode<T, A>(some[k]);                              \
      }                                                                                                         \
  }                                                                                                             \
  PYOPS_MULTIVERSION void gradients(const Graph<A>& g, const T* grad, int64_t i, int64_t end, A* sum, T* out) { \
    const int64_t dims = g.e.dims;                                                                              \
    A some[kLanes<A>];                                                                                          \
    for (; i < end; ++i) {                                                                                      \
      std::fill(sum, sum + dims, A(0));                                                                         \
      const A* const from = g.x + i * dims;                                                                     \
      for (int64_t edge = g.indptr[i]; edge < g.indptr[i + 1]; edge += kLanes<A>) {                             \
        const int64_t count = std::min(kLanes<A>, g.indptr[i + 1] - edge);                                      \
        lengths_of(g, i, edge, count, some);                                                                    \
        for (int64_t k = 0; k < count; ++k) {                                                                   \
          const int64_t reverse = g.find(g.indices[edge + k], i);                                               \
          A both = decode<T, A>(grad[edge + k]);                                                                \
          if (reverse >= 0) both += decode<T, A>(grad[reverse]);                                                \
          const A factor = slope(both, some[k]);                                                                \
          const A* const to = g.end_of(edge + k, i);                                                            \
          for (int64_t d = 0; d < dims; ++d) sum[d] += factor * (from[d] - to[d]);                              \
        }                                                                                                       \
      }                                                                                                         \
      for (int64_t d = 0; d < dims; ++d) out[i * dims + d] = encode<T, A>(sum[d]);                              \
    }                                                                                                           \
  }
PYOPS_LENGTHS(float, float)
PYOPS_LENGTHS(double, double)
PYOPS_LENGTHS(Half, float)
PYOPS_LENGTHS(BFloat16, float)
#undef PYOPS_LENGTHS

// Calls f with a zero of the dtype of x and the graph in its type of arithmetic.
template <class F>
void with_graph(const Tensor& x, const Tensor& indptr, const Tensor& indices, const F& f) {
  const Edges e = check(x, indptr, indices);
  const Tensor points =
      contiguous_as(x, x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
  const Tensor begins = in_order(indptr), ends = in_order(indices);
  check_rows(begins.const_data_ptr<int64_t>(), e);
  dispatch_floating(x.scalar_type(), "x", [&](auto zero) {
    using A = Arithmetic<decltype(zero)>;
    f(zero, Graph<A>{e, points.const_data_ptr<A>(), begins.const_data_ptr<int64_t>(), ends.const_data_ptr<int64_t>()});
  });
}

int64_t grain_of(const Edges& e) {
  const int64_t row = ceil_div(e.count, std::max<int64_t>(1, e.points)) * (e.dims + 8);
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, row));
}

Tensor forward(const Tensor& x, const Tensor& indptr, const Tensor& indices) {
  const Tensor out = new_tensor(x, sizes_of(indices), x.scalar_type());
  with_graph(x, indptr, indices, [&](auto zero, const auto& g) {
    auto* const to = static_cast<decltype(zero)*>(out.mutable_data_ptr());
    parallel_for(0, g.e.points, grain_of(g.e), [&](int64_t i, int64_t end) { lengths(g, i, end, to); });
  });
  return out;
}

Tensor backward(const Tensor& grad, const Tensor& x, const Tensor& indptr, const Tensor& indices) {
  PYOPS_CHECK(grad.scalar_type() == x.scalar_type() && sizes_of(grad) == sizes_of(indices) && grad.is_cpu(),
              "grad must be [E], of the dtype and on the device of x");
  const Tensor out = new_tensor(x, sizes_of(x), x.scalar_type()), upstream = in_order(grad);
  with_graph(x, indptr, indices, [&](auto zero, const auto& g) {
    using T = decltype(zero);
    const auto* const from = static_cast<const T*>(upstream.const_data_ptr());
    auto* const to = static_cast<T*>(out.mutable_data_ptr());
    parallel_for(0, g.e.points, grain_of(g.e), [&](int64_t i, int64_t end) {
      std::vector<Arithmetic<T>> sum(g.e.dims);
      gradients(g, from, i, end, sum.data(), to);
    });
  });
  return out;
}

}  // namespace
}  // namespace pyops::knn_graph

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("edge_lengths", TORCH_BOX(&pyops::knn_graph::forward));
  m.impl("edge_lengths_backward", TORCH_BOX(&pyops::knn_graph::backward));
}
