// Shortest distances of dense graphs on the CPU, after Floyd and Warshall. A small graph is closed by one thread, node by
// node, in its cache; a large one by all threads in blocks of kBlock nodes, as products of panels.
//
// The gradient needs a path for each pair of nodes. The nodes before the last ones come from one product of distances
// and weights; where they form a tree, gradients run from its leaves to its root. Edges of length zero, or below the
// rounding of a distance, can close a cycle; of such a source, the tree is grown anew in the order of distances.
#include "../common/pixel.h"
#include "minplus_cpu.h"

namespace pyops::minplus {
namespace {

constexpr int64_t kSmall = 128, kBlock = 96;  // nodes; multiples of a panel of columns

#define PYOPS_CLOSE(A) \
  PYOPS_MULTIVERSION void close(A* graph, int64_t n, int64_t stride) { tiles::close(graph, n, stride); }
PYOPS_CLOSE(float)
PYOPS_CLOSE(double)
#undef PYOPS_CLOSE

// Weights in arithmetic, with 0 from a node to itself; whether none is negative or NaN.
template <class T, class A>
bool load_rows(const Matrices<T>& from, int64_t matrix, int64_t first, int64_t end, int64_t nodes, A* to,
               int64_t stride) {
  bool valid = true;
  for (int64_t i = first; i < end; ++i) {
    const T* const row = from.data + matrix * from.batch + i * from.row;
    for (int64_t j = 0; j < nodes; ++j) {
      const A value = decode<T, A>(row[j * from.column]);
      valid &= value >= 0;
      to[i * stride + j] = value;
    }
    to[i * stride + i] = 0;
  }
  return valid;
}

// The graph [n][n] at `graph`, closed in memory whose rows are whole vectors.
template <class A>
void close_block(A* graph, int64_t n, int64_t stride) {
  constexpr int64_t wide = kColumns<A>;
  A block[kSmall * kSmall];
  const int64_t room = ceil_div(n, wide) * wide;
  for (int64_t i = 0; i < n; ++i) {
    std::copy(graph + i * stride, graph + i * stride + n, block + i * room);
    std::fill(block + i * room + n, block + (i + 1) * room, kInfinity<A>);
  }
  close(block, n, room);
  for (int64_t i = 0; i < n; ++i) std::copy(block + i * room, block + i * room + n, graph + i * stride);
}

// to = min(to, a b) of one matrix, where `to` may be a or b: both are packed first.
template <class A>
void improve(int64_t rows, int64_t inner, int64_t columns, const A* a, const A* b, A* to, int64_t stride) {
  const Problem p{1, rows, inner, columns};
  const Operands<A> from(p, Matrices<A>{const_cast<A*>(a), 0, stride, 1}, Matrices<A>{const_cast<A*>(b), 0, stride, 1});
  for_blocks(p, [&](const Block& at) { update(from, at, to + at.row * stride + at.column, stride); });
}

template <class A>
void close_graph(A* graph, int64_t nodes) {
  if (nodes <= kSmall) return close_block(graph, nodes, nodes);
  for (int64_t k = 0; k < nodes; k += kBlock) {
    const int64_t n = std::min(kBlock, nodes - k);
    A *const rows = graph + k * nodes, *const columns = graph + k, *const block = rows + k;
    close_block(block, n, nodes);
    improve(n, n, nodes, block, rows, rows, nodes);
    improve(nodes, n, n, columns, block, columns, nodes);
    improve(nodes, n, nodes, columns, rows, graph, nodes);
  }
}

template <class T>
void find_distances(const Problem& p, const Tensor& weights, const Tensor& out) {
  using A = Arithmetic<T>;
  const auto from = matrices_of<T>(weights);
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  const int64_t nodes = p.rows, size = nodes * nodes;
  std::atomic<bool> valid{true};
  const auto graph_at = [&](int64_t i, std::vector<A>& memory) -> A* {
    if constexpr (std::is_same_v<T, A>) return to + i * size;
    memory.resize(size);
    return memory.data();
  };
  const auto finish = [&](int64_t i, const A* graph) {
    if constexpr (!std::is_same_v<T, A>)
      parallel_for(0, nodes, std::max<int64_t>(1, kPackGrain / nodes), [&](int64_t r, int64_t end) {
        encode_row(graph + r * nodes, (end - r) * nodes, to + i * size + r * nodes);
      });
  };
  const auto load = [&](int64_t i, int64_t first, int64_t end, A* graph) {
    if (!load_rows(from, i, first, end, nodes, graph, nodes)) valid.store(false, std::memory_order_relaxed);
  };
  if (nodes <= kSmall || p.batch >= torch::stable::get_num_threads()) {  // a graph each
    const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 17) / (size * nodes));
    parallel_for(0, p.batch, grain, [&](int64_t i, int64_t end) {
      std::vector<A> memory;
      for (; i < end; ++i) {
        A* const graph = graph_at(i, memory);
        load(i, 0, nodes, graph);
        close_graph(graph, nodes);
        finish(i, graph);
      }
    });
  } else {
    std::vector<A> memory;
    for (int64_t i = 0; i < p.batch; ++i) {
      A* const graph = graph_at(i, memory);
      parallel_for(0, nodes, std::max<int64_t>(1, kPackGrain / nodes),
                   [&](int64_t first, int64_t end) { load(i, first, end, graph); });
      close_graph(graph, nodes);
      finish(i, graph);
    }
  }
  PYOPS_CHECK(valid, "weights must not be negative or NaN");
}

// ---- gradient --------------------------------------------------------------------------------------------------------

// Gradients of the distances from one source become sums over all paths that go through a node, from `before`, the nodes
// before it, of which the source and what it does not reach have none. False, with nothing changed, for cycles.
template <class A>
bool sum_tree(const int32_t* before, int64_t nodes, A* grad, std::vector<int32_t>& waiting,
              std::vector<int32_t>& order) {
  waiting.assign(nodes, 0), order.clear();
  int64_t reached = 0;
  for (int64_t t = 0; t < nodes; ++t)
    if (before[t] >= 0) ++waiting[before[t]], ++reached;
  for (int64_t t = 0; t < nodes; ++t)
    if (before[t] >= 0 && waiting[t] == 0) order.push_back(int32_t(t));
  for (size_t i = 0; i < order.size(); ++i) {
    const int32_t u = before[order[i]];
    if (--waiting[u] == 0 && before[u] >= 0) order.push_back(u);
  }
  if (int64_t(order.size()) != reached) return false;
  for (const int32_t t : order)
    if (before[before[t]] >= 0) grad[before[t]] += grad[t];
  return true;
}

// The nodes before all others on shortest paths from one source, in the order of distances, ties by lowest index.
template <class T, class A>
void grow_tree(const Matrices<T>& weights, int64_t matrix, int64_t source, int64_t nodes, int32_t* before) {
  std::vector<A> distance(nodes, kInfinity<A>);
  std::vector<uint8_t> done(nodes, 0);
  std::fill(before, before + nodes, -1);
  distance[source] = 0;
  while (true) {
    int64_t u = -1;
    for (int64_t t = 0; t < nodes; ++t)
      if (!done[t] && distance[t] < (u < 0 ? kInfinity<A> : distance[u])) u = t;
    if (u < 0) return;
    done[u] = 1;
    const T* const row = weights.data + matrix * weights.batch + u * weights.row;
    for (int64_t t = 0; t < nodes; ++t) {
      const A sum = distance[u] + decode<T, A>(row[t * weights.column]);
      if (!done[t] && sum < distance[t]) distance[t] = sum, before[t] = int32_t(u);
    }
  }
}

// The nodes before all others, from every source. Distances rounded to a half are computed once more: edges would be
// lost in them.
template <class T, class A>
std::vector<int32_t> find_before(const Problem& p, const Matrices<T>& weights, const Matrices<T>& distances) {
  const int64_t nodes = p.rows, size = nodes * nodes;
  std::vector<A> edges(p.batch * size), closed(std::is_same_v<T, A> ? 0 : p.batch * size);
  parallel_for(0, p.batch, 1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      A* const graph = edges.data() + i * size;
      load_rows(weights, i, 0, nodes, nodes, graph, nodes);
      if (!closed.empty()) {
        std::copy(graph, graph + size, closed.data() + i * size);
        close_graph(closed.data() + i * size, nodes);
      }
      for (int64_t t = 0; t < nodes; ++t) graph[t * nodes + t] = kInfinity<A>;  // no edge of a path
    }
  });
  const Matrices<A> right{edges.data(), size, nodes, 1}, left{closed.data(), size, nodes, 1};
  if constexpr (std::is_same_v<T, A>) return find_indices<A>(p, Operands<A>(p, distances, right));
  return find_indices<A>(p, Operands<A>(p, left, right));
}

template <class T>
void backpropagate(const Problem& p, const Tensor& grad_tensor, const Tensor& weights_tensor,
                   const Tensor& distances_tensor, const Tensor& out) {
  using A = Arithmetic<T>;
  const auto grad = matrices_of<T>(grad_tensor), weights = matrices_of<T>(weights_tensor);
  const int64_t nodes = p.rows;
  std::vector<int32_t> before = find_before<T, A>(p, weights, matrices_of<T>(distances_tensor));
  std::vector<A> sums(p.batch * nodes * nodes);
  parallel_for(0, p.batch * nodes, std::max<int64_t>(1, kPackGrain / nodes), [&](int64_t i, int64_t end) {
    std::vector<int32_t> waiting, order;
    for (; i < end; ++i) {
      const int64_t matrix = i / nodes, source = i % nodes;
      const T* const upstream = grad.data + matrix * grad.batch + source * grad.row;
      int32_t* const own = before.data() + i * nodes;
      A* const to = sums.data() + i * nodes;
      for (int64_t t = 0; t < nodes; ++t) to[t] = decode<T, A>(upstream[t * grad.column]);
      own[source] = -1;
      if (sum_tree(own, nodes, to, waiting, order)) continue;
      grow_tree<T, A>(weights, matrix, source, nodes, own);
      sum_tree(own, nodes, to, waiting, order);
    }
  });
  const auto of_edge = [&](int64_t matrix, int64_t s, int64_t t) { return sums[(matrix * nodes + s) * nodes + t]; };
  gather_columns<T, A>(p, before.data(), of_edge, static_cast<T*>(out.mutable_data_ptr()));
}

Tensor forward(const Tensor& weights) {
  const Problem p = check_graphs(weights);
  const Tensor out = new_tensor(weights, p.product(), weights.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(weights.scalar_type(), "weights",
                    [&](auto zero) { find_distances<decltype(zero)>(p, weights, out); });
  return out;
}

Tensor backward(const Tensor& grad, const Tensor& weights, const Tensor& distances) {
  const Problem p = check_graph_gradient(grad, weights, distances);
  const Tensor out = new_tensor(weights, p.product(), weights.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(weights.scalar_type(), "weights",
                    [&](auto zero) { backpropagate<decltype(zero)>(p, grad, weights, distances, out); });
  return out;
}

}  // namespace
}  // namespace pyops::minplus

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("floyd_warshall(Tensor weights) -> Tensor");
  m.def("floyd_warshall_backward(Tensor grad, Tensor weights, Tensor distances) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("floyd_warshall", TORCH_BOX(&pyops::minplus::forward));
  m.impl("floyd_warshall_backward", TORCH_BOX(&pyops::minplus::backward));
}
