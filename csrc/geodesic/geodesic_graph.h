// Graphs on the CPU: without the edges that are none, places in 32 bits; Dijkstra's algorithm; orders of vertices.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "geodesic_args.h"

namespace pyops::geodesic {

template <class A>
struct Sparse {
  std::vector<int64_t> start;  // [N + 1]
  std::vector<int32_t> target;
  std::vector<A> weight;

  int64_t vertices() const { return int64_t(start.size()) - 1; }
};

// Where the edges of a graph come from.
struct Origins {
  std::vector<int32_t> row, edge;
};

// Rows that overlap, where `indptr` falls, keep what no row before them has.
template <class A>
Sparse<A> cleaned(const int64_t* indptr, const int64_t* indices, const A* weights, const Problem& p,
                  Origins* origins = nullptr) {
  Sparse<A> graph;
  graph.start.reserve(p.vertices + 1), graph.target.reserve(p.edges), graph.weight.reserve(p.edges);
  if (origins) origins->row.reserve(p.edges), origins->edge.reserve(p.edges);
  int64_t known = 0;
  for (int64_t v = 0; v < p.vertices; ++v) {
    graph.start.push_back(int64_t(graph.target.size()));
    const Row row = row_of(indptr, v, p.edges);
    for (int64_t e = std::max(row.begin, known); e < row.end; ++e) {
      if (!is_edge(indices[e], weights[e], p.vertices)) continue;
      graph.target.push_back(int32_t(indices[e])), graph.weight.push_back(weights[e]);
      if (origins) origins->row.push_back(int32_t(v)), origins->edge.push_back(int32_t(e));
    }
    known = std::max(known, row.end);
  }
  graph.start.push_back(int64_t(graph.target.size()));
  return graph;
}

// The same graph with its vertices in another order; `place` is where each comes to lie. Gives for each edge which of
// `from` it is, if wanted.
template <class A>
void reorder(const Sparse<A>& from, const std::vector<int32_t>& order, const std::vector<int32_t>& place, Sparse<A>& to,
             std::vector<int32_t>* names = nullptr) {
  to.start.resize(from.start.size()), to.target.resize(from.target.size()), to.weight.resize(from.weight.size());
  int64_t at = 0;
  for (size_t i = 0; i < order.size(); ++i) {
    to.start[i] = at;
    for (int64_t e = from.start[order[i]]; e < from.start[order[i] + 1]; ++e, ++at) {
      to.target[at] = place[from.target[e]], to.weight[at] = from.weight[e];
      if (names) names->push_back(int32_t(e));
    }
  }
  to.start[order.size()] = at;
}

// Dijkstra's algorithm with a heap of four children a node, in which outdated entries stay until they come up.
template <class A>
class Dijkstra {
 public:
  std::vector<int32_t> settled;  // the vertices in reach, by distance

  // `distances` [N], all to be replaced; what is `above` or more counts as out of reach.
  void run(const Sparse<A>& graph, int64_t source, A above, A* distances) {
    std::fill_n(distances, graph.vertices(), std::numeric_limits<A>::infinity());
    settled.clear(), heap_.clear();
    distances[source] = A(0);
    push({A(0), int32_t(source)});
    while (!heap_.empty()) {
      const Item top = pop();
      if (top.key > distances[top.vertex]) continue;
      settled.push_back(top.vertex);
      for (int64_t e = graph.start[top.vertex]; e < graph.start[top.vertex + 1]; ++e) {
        const A found = top.key + graph.weight[e];
        const int32_t u = graph.target[e];
        if (found < distances[u] && found < above) distances[u] = found, push({found, u});
      }
    }
  }

 private:
  struct Item {
    A key;
    int32_t vertex;
  };
  std::vector<Item> heap_;

  void push(Item item) {
    size_t i = heap_.size();
    heap_.push_back(item);
    for (; i > 0 && item.key < heap_[(i - 1) / 4].key; i = (i - 1) / 4) heap_[i] = heap_[(i - 1) / 4];
    heap_[i] = item;
  }

  Item pop() {
    const Item top = heap_.front(), last = heap_.back();
    heap_.pop_back();
    const size_t count = heap_.size();
    size_t i = 0;
    for (size_t child = 1; child < count; child = 4 * i + 1) {
      const size_t end = std::min(child + 4, count);
      size_t least = child;
      for (size_t c = child + 1; c < end; ++c) least = heap_[c].key < heap_[least].key ? c : least;
      if (!(heap_[least].key < last.key)) break;
      heap_[i] = heap_[least], i = least;
    }
    if (count > 0) heap_[i] = last;
    return top;
  }
};

// An order in which `size` vertices after each other lie near each other: balls by numbers of edges, each from the
// frontier of the one before.
template <class A>
std::vector<int32_t> in_balls(const Sparse<A>& graph, int64_t size) {
  const int64_t count = graph.vertices();
  std::vector<int32_t> order, queue;
  std::vector<int64_t> seen(count, -1);
  std::vector<uint8_t> used(count, 0);
  order.reserve(count);
  int64_t seed = 0, unused = 0;
  for (int64_t ball = 0; int64_t(order.size()) < count; ++ball) {
    if (seed < 0)
      for (seed = unused; used[seed]; ++seed) unused = seed + 1;
    queue.assign(1, int32_t(seed)), seen[seed] = ball;
    size_t head = 0;
    for (; head < queue.size() && head < size_t(size); ++head) {
      const int32_t v = queue[head];
      used[v] = 1, order.push_back(v);
      for (int64_t e = graph.start[v]; e < graph.start[v + 1]; ++e) {
        const int32_t u = graph.target[e];
        if (!used[u] && seen[u] != ball) seen[u] = ball, queue.push_back(u);
      }
    }
    seed = head < queue.size() ? queue[head] : -1;
  }
  return order;
}

}  // namespace pyops::geodesic
