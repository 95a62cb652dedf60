// Trees of shortest paths on the CPU, for many sources at a time: which edge leads to each vertex.
#pragma once

#include <vector>

#include "geodesic_graph.h"
#include "geodesic_lanes.h"

namespace pyops::geodesic {
namespace {

template <class A>
using Place = typename Places<A>::type;

template <class A>
constexpr Place<A> kNoEdge = std::numeric_limits<Place<A>>::max();

// The first edge, by name, that attains the distance of a vertex and begins nearer to the source; `edges` holds none.
// Counts for each lane the vertices at a finite distance to which no such edge leads.
template <class A, int kVectors>
PYOPS_HD void first_edges(const int64_t* start, const int32_t* target, const A* weight, const int32_t* name,
                          int64_t vertices, const A* lanes, Place<A>* edges, Place<A>* open) {
  using V = typename Places<A>::Vector;
  constexpr int64_t width = kVectors * kLanes<A>;
  const Vector<A> infinite = simd::splat(std::numeric_limits<A>::infinity());
  for (int64_t v = 0; v < vertices; ++v) {
    Vector<A> from[kVectors];
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) from[k] = simd::load<Vector<A>>(lanes + v * width + k * kLanes<A>);
    for (int64_t e = start[v]; e < start[v + 1]; ++e) {
      const int64_t at = target[e] * width;
      const auto length = simd::splat(weight[e]);
      V tight[kVectors], some = {};
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) {
        const auto after = simd::load<Vector<A>>(lanes + at + k * kLanes<A>);
        tight[k] = (V)(from[k] + length == after) & (V)(from[k] < after) & (V)(after < infinite);
        some |= tight[k];
      }
      if (!any(some)) continue;
      const V own = splat_place(Place<A>(name[e]));
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) {
        Place<A>* const place = edges + at + k * kLanes<A>;
        const auto known = simd::load<V>(place);
        simd::store(place, (tight[k] & (own < known)) ? own : known);
      }
    }
  }
  V count[kVectors] = {};
  for (int64_t i = 0; i < vertices * width; i += width)
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k)
      count[k] -= (V)(simd::load<Vector<A>>(lanes + i + k * kLanes<A>) < infinite) &
                  (simd::load<V>(edges + i + k * kLanes<A>) == splat_place(kNoEdge<A>));
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) simd::store(open + k * kLanes<A>, count[k]);
}

// Lanes of edges into rows of N.
template <class A>
PYOPS_HD void edges_to_rows(const Place<A>* from, const int32_t* place, int64_t n, int64_t width, Place<A>* rows) {
  constexpr int64_t step = kLanes<A>;
  int64_t v = 0;
  for (; v + step <= n; v += step)
    for (int64_t lane = 0; lane < width; lane += step) {
      Vector<A> tile[step];  // bits, whatever they would be as numbers
      for (int64_t k = 0; k < step; ++k) tile[k] = simd::load<Vector<A>>(from + place[v + k] * width + lane);
      simd::transpose(tile);
      for (int64_t k = 0; k < step; ++k) simd::store(rows + (lane + k) * n + v, tile[k]);
    }
  for (; v < n; ++v)
    for (int64_t lane = 0; lane < width; ++lane) rows[lane * n + v] = from[place[v] * width + lane];
}

#define PYOPS_TREE(A)                                                                                               \
  PYOPS_MULTIVERSION inline void find_edges(const int64_t* start, const int32_t* target, const A* weight,           \
                                            const int32_t* name, int64_t vertices, const A* lanes, Place<A>* edges, \
                                            Place<A>* open) {                                                       \
    first_edges<A, 2>(start, target, weight, name, vertices, lanes, edges, open);                                   \
  }                                                                                                                 \
  PYOPS_MULTIVERSION inline void read_rows(const A* const* rows, const int32_t* place, int64_t lanes, int64_t n,    \
                                           int64_t width, A filling, A* to) {                                       \
    to_lanes<A>(rows, place, lanes, n, width, filling, to);                                                         \
  }                                                                                                                 \
  PYOPS_MULTIVERSION inline void write_edges(const Place<A>* from, const int32_t* place, int64_t n, int64_t width,  \
                                             Place<A>* rows, A) {                                                   \
    edges_to_rows<A>(from, place, n, width, rows);                                                                  \
  }
PYOPS_TREE(float)
PYOPS_TREE(double)
#undef PYOPS_TREE

// A graph with its vertices in an order in which neighbours lie near each other.
template <class A>
struct Ordered {
  Sparse<A> graph;
  std::vector<int32_t> order, place, name;  // of vertices, where each lies, and which edge each one is

  explicit Ordered(const Sparse<A>& from) : order(in_balls(from, 256)), place(from.vertices()) {
    for (size_t i = 0; i < order.size(); ++i) place[order[i]] = int32_t(i);
    name.reserve(from.target.size());
    reorder(from, order, place, graph, &name);
  }
};

// The trees of some sources, whose distances are rows of N numbers.
template <class A>
class Trees {
 public:
  static constexpr int64_t kWidth = 2 * kLanes<A>;

  // `place` tells the order of the vertices in what is found.
  Trees(const Ordered<A>& ordered, const std::vector<int32_t>& place) : o_(ordered), place_(place.data()) {}

  // Of the source `first` and the `count` from there on, at most kWidth.
  void find(const A* distances, const int64_t* sources, int64_t first, int64_t count) {
    const Sparse<A>& g = o_.graph;
    const int64_t n = g.vertices();
    const A* rows[kWidth] = {};
    for (int64_t lane = 0; lane < count; ++lane) rows[lane] = distances + (first + lane) * n;
    lanes_.resize(n * kWidth), edges_.assign(n * kWidth, kNoEdge<A>), rows_.resize(n * kWidth);
    read_rows(rows, o_.place.data(), count, n, kWidth, std::numeric_limits<A>::infinity(), lanes_.data());
    Place<A> open[kWidth];
    find_edges(g.start.data(), g.target.data(), g.weight.data(), o_.name.data(), n, lanes_.data(), edges_.data(), open);
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t source = sources[first + lane];
      const bool exists = uint64_t(source) < uint64_t(n);
      const int64_t at = exists ? o_.place[source] : -1;
      if (exists) edges_[at * kWidth + lane] = kNoEdge<A>;
      if (open[lane] != Place<A>(exists)) settle_level(lane, at);
    }
    write_edges(edges_.data(), place_, n, kWidth, rows_.data(), A());
  }

  // The edge to each vertex, kNoEdge where none leads there.
  const Place<A>* edges(int64_t lane) const { return rows_.data() + lane * o_.graph.vertices(); }

 private:
  const Ordered<A>& o_;
  const int32_t* place_;
  std::vector<A> lanes_;
  std::vector<Place<A>> edges_, rows_;

  // Edges to the vertices that only others at the same distance lead to, round by round.
  void settle_level(int64_t lane, int64_t source) {
    const Sparse<A>& g = o_.graph;
    const A* const distance = lanes_.data() + lane;
    Place<A>* const edge = edges_.data() + lane;
    constexpr int32_t open = std::numeric_limits<int32_t>::max();
    std::vector<int32_t> round(g.vertices()), front, next;
    for (int64_t v = 0; v < g.vertices(); ++v) {
      const A x = distance[v * kWidth];
      if (x - x != A(0)) continue;  // stays in round 0, as what is settled
      if (edge[v * kWidth] != kNoEdge<A> || v == source) front.push_back(int32_t(v));
      else round[v] = open;
    }
    for (int32_t now = 1; !front.empty(); ++now, front.swap(next)) {
      next.clear();
      for (const int32_t u : front)
        for (int64_t e = g.start[u]; e < g.start[u + 1]; ++e) {
          const int32_t v = g.target[e];
          if (round[v] < now || !is_tight(distance[u * kWidth], g.weight[e], distance[v * kWidth])) continue;
          if (round[v] == open) round[v] = now, next.push_back(v);
          edge[v * kWidth] = std::min(edge[v * kWidth], Place<A>(o_.name[e]));
        }
    }
  }
};

}  // namespace
}  // namespace pyops::geodesic
