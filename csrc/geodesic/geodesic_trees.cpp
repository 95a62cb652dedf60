// Predecessors, and the gradient with respect to the weights, on the CPU.
#include <torch/csrc/stable/ops.h>

#include <numeric>

#include "../common/unfused.h"
#include "geodesic_tree.h"

namespace pyops::geodesic {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kMostParts = 32, kBytesOfParts = int64_t(256) << 20;

template <class A>
void write_predecessors(const Problem& p, const Graphs<A>& graphs, const A* distances, bool edges, int64_t* out) {
  constexpr int64_t width = Trees<A>::kWidth;
  for (int64_t b = 0; b < p.batch; ++b) {
    Origins origins;
    const Sparse<A> graph = cleaned(graphs.indptr + b * (p.vertices + 1), graphs.indices + b * p.edges,
                                    graphs.weights + b * p.edges, p, &origins);
    const std::vector<int32_t>& names = edges ? origins.edge : origins.row;
    const Ordered<A> ordered(graph);
    const A* const from = distances + b * p.sources * p.vertices;
    int64_t* const to = out + b * p.sources * p.vertices;
    parallel_for(0, ceil_div(p.sources, width), 1, [&](int64_t block, int64_t end) {
      Trees<A> trees(ordered, ordered.place);
      for (; block < end; ++block) {
        const int64_t first = block * width, count = std::min(width, p.sources - first);
        trees.find(from, graphs.sources + b * p.sources, first, count);
        for (int64_t lane = 0; lane < count; ++lane) {
          const Place<A>* const found = trees.edges(lane);
          int64_t* const row = to + (first + lane) * p.vertices;
          for (int64_t v = 0; v < p.vertices; ++v) row[v] = found[v] == kNoEdge<A> ? -1 : int64_t(names[found[v]]);
        }
      }
    });
  }
}

// Edges where they lie in an ordered graph: of each, by its name, the place; of each place, where the edge begins.
struct EdgePlaces {
  std::vector<int32_t> of, before;

  template <class A>
  explicit EdgePlaces(const Ordered<A>& ordered) : of(ordered.name.size()), before(ordered.name.size()) {
    for (int64_t v = 0; v < ordered.graph.vertices(); ++v)
      for (int64_t e = ordered.graph.start[v]; e < ordered.graph.start[v + 1]; ++e)
        of[ordered.name[e]] = int32_t(e), before[e] = int32_t(v);
  }
};

// Adds the gradients of one tree to those of its edges: each vertex passes on the sum of all that lie behind it, as soon
// as the last of its children has passed on to it. Vertices and sums come in the order of the graph.
class Branches {
 public:
  template <class A>
  void add(const Place<A>* edges, const EdgePlaces& places, const std::vector<int32_t>& order, const A* grad,
           double* sums) {
    const int64_t n = int64_t(order.size());
    vertices_.resize(n);
    for (int64_t v = 0; v < n; ++v) vertices_[v].children = 0;
    for (int64_t v = 0; v < n; ++v) {
      vertices_[v].edge = edges[v] == kNoEdge<A> ? -1 : places.of[edges[v]];
      vertices_[v].total = double(grad[order[v]]);
      if (vertices_[v].edge >= 0) ++vertices_[places.before[vertices_[v].edge]].children;
    }
    for (int64_t leaf = 0; leaf < n; ++leaf)
      for (int64_t v = leaf; vertices_[v].children == 0;) {
        vertices_[v].children = -1;
        const int64_t edge = vertices_[v].edge;
        if (edge < 0) break;
        sums[edge] += vertices_[v].total;
        Vertex& before = vertices_[places.before[edge]];
        before.total += vertices_[v].total, --before.children;
        v = &before - vertices_.data();
      }
  }

 private:
  struct Vertex {
    double total;
    int32_t edge, children;
  };
  std::vector<Vertex> vertices_;
};

// Sources come in parts of equal size, which depends on the problem alone; sums of parts are added in their order.
template <class A>
void add_gradients(const Problem& p, const Graphs<A>& graphs, const A* grad, const A* distances, A* out) {
  constexpr int64_t width = Trees<A>::kWidth;
  const int64_t blocks = ceil_div(p.sources, width);
  const int64_t fitting = kBytesOfParts / (int64_t(sizeof(double)) * std::max<int64_t>(1, p.edges));
  const int64_t parts = std::max<int64_t>(1, std::min({blocks, kMostParts, std::max<int64_t>(2, fitting)}));
  for (int64_t b = 0; b < p.batch; ++b) {
    Origins origins;
    const Sparse<A> graph = cleaned(graphs.indptr + b * (p.vertices + 1), graphs.indices + b * p.edges,
                                    graphs.weights + b * p.edges, p, &origins);
    const Ordered<A> ordered(graph);
    const EdgePlaces places(ordered);
    std::vector<int32_t> same(p.vertices);
    std::iota(same.begin(), same.end(), 0);
    const int64_t edges = int64_t(graph.target.size()), first_row = b * p.sources;
    std::vector<double> sums(parts * edges, 0.0);
    parallel_for(0, parts, 1, [&](int64_t part, int64_t end) {
      Trees<A> trees(ordered, same);
      Branches branches;
      for (; part < end; ++part)
        for (int64_t block = blocks * part / parts; block < blocks * (part + 1) / parts; ++block) {
          const int64_t first = block * width, count = std::min(width, p.sources - first);
          trees.find(distances + first_row * p.vertices, graphs.sources + first_row, first, count);
          for (int64_t lane = 0; lane < count; ++lane)
            branches.add<A>(trees.edges(lane), places, ordered.order, grad + (first_row + first + lane) * p.vertices,
                            sums.data() + part * edges);
        }
    });
    A* const to = out + b * p.edges;
    std::fill_n(to, p.edges, A(0));
    for (int64_t part = 1; part < parts; ++part)
      for (int64_t e = 0; e < edges; ++e) sums[e] += sums[part * edges + e];
    for (int64_t e = 0; e < edges; ++e) to[origins.edge[e]] = A(sums[places.of[e]]);
  }
}

Tensor geodesic_predecessors(const Tensor& indptr, const Tensor& indices, const Tensor& weights, const Tensor& sources,
                             const Tensor& distances, bool edges) {
  const Problem p = check(indptr, indices, weights, sources);
  check_result(distances, weights, p, "distances");
  const Tensor out = new_tensor(weights, {p.batch, p.sources, p.vertices}, ScalarType::Long);
  if (out.numel() == 0) return out;
  const Tensor from = in_order(distances);
  dispatch_weights(weights, [&](auto zero) {
    using A = decltype(zero);
    write_predecessors<A>(p, Graphs<A>(indptr, indices, weights, sources), static_cast<const A*>(from.const_data_ptr()),
                          edges, static_cast<int64_t*>(out.mutable_data_ptr()));
  });
  return out;
}

Tensor geodesic_distances_backward(const Tensor& grad, const Tensor& indptr, const Tensor& indices,
                                   const Tensor& weights, const Tensor& sources, const Tensor& distances) {
  const Problem p = check(indptr, indices, weights, sources);
  check_result(distances, weights, p, "distances");
  check_result(grad, weights, p, "grad");
  const Tensor out = new_tensor(weights, {p.batch, p.edges}, weights.scalar_type());
  if (out.numel() == 0) return out;
  const Tensor from = in_order(distances), upstream = in_order(grad);
  dispatch_weights(weights, [&](auto zero) {
    using A = decltype(zero);
    add_gradients<A>(p, Graphs<A>(indptr, indices, weights, sources), static_cast<const A*>(upstream.const_data_ptr()),
                     static_cast<const A*>(from.const_data_ptr()), static_cast<A*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace pyops::geodesic

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("geodesic_predecessors", TORCH_BOX(&pyops::geodesic::geodesic_predecessors));
  m.impl("geodesic_distances_backward", TORCH_BOX(&pyops::geodesic::geodesic_distances_backward));
}
