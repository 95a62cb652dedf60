// Trees of shortest paths on the CPU, for many sources at a time: which edge leads to each vertex.
#pragma once

#include <vector>

#include "geodesic_graph.h"
#include "geodesic_lanes.h"

namespace pyops::geodesic {
namespace {

// The first edge that attains the distance of a vertex and begins nearer to the source; edges stay where none does.
template <class A, int kVectors>
PYOPS_HD void first_edges(const int64_t* start, const int32_t* target, const A* weight, int64_t vertices,
                          const A* lanes, typename Places<A>::type* edges) {
  using Place = typename Places<A>::type;
  using PlaceVector = typename Places<A>::Vector;
  constexpr int64_t width = kVectors * kLanes<A>;
  const Vector<A> none = simd::splat(std::numeric_limits<A>::infinity());
  const PlaceVector zero = {};
  for (int64_t v = 0; v < vertices; ++v) {
    Vector<A> from[kVectors];
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) from[k] = simd::load<Vector<A>>(lanes + v * width + k * kLanes<A>);
    for (int64_t e = start[v]; e < start[v + 1]; ++e) {
      const int64_t at = target[e] * width;
      const auto length = simd::splat(weight[e]);
      PlaceVector tight[kVectors], some = zero;
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) {
        const auto after = simd::load<Vector<A>>(lanes + at + k * kLanes<A>);
        tight[k] = (PlaceVector)(from[k] + length == after) & (PlaceVector)(from[k] < after) &
                   (PlaceVector)(after < none);
        some |= tight[k];
      }
      if (!any(some)) continue;
      const PlaceVector own = splat_place(Place(e));
#pragma GCC unroll 4
      for (int k = 0; k < kVectors; ++k) {
        Place* const place = edges + at + k * kLanes<A>;
        const auto known = simd::load<PlaceVector>(place);
        simd::store(place, (tight[k] & (known < zero)) ? own : known);
      }
    }
  }
}

// Edges to the vertices of one lane that only others at the same distance lead to, round by round.
template <class A>
void settle_level(const Sparse<A>& graph, const A* lanes, typename Places<A>::type* edges, int64_t width,
                  int64_t source) {
  using Place = typename Places<A>::type;
  const int64_t n = graph.vertices();
  constexpr int32_t open = std::numeric_limits<int32_t>::max();
  std::vector<int32_t> round(n), front, next;
  for (int64_t v = 0; v < n; ++v) {
    const A distance = lanes[v * width];
    if (distance - distance != A(0)) continue;
    const bool settled = edges[v * width] >= 0 || v == source;
    round[v] = settled ? 0 : open;
    if (settled) front.push_back(int32_t(v));
  }
  for (int32_t now = 1; !front.empty(); ++now, front.swap(next)) {
    next.clear();
    for (const int32_t u : front)
      for (int64_t e = graph.start[u]; e < graph.start[u + 1]; ++e) {
        const int32_t v = graph.target[e];
        if (round[v] < now || !is_tight(lanes[u * width], graph.weight[e], lanes[v * width])) continue;
        Place& edge = edges[v * width];
        if (round[v] == open) round[v] = now, edge = Place(e), next.push_back(v);
        else edge = std::min(edge, Place(e));
      }
  }
}

#define PYOPS_TREE(A)                                                                                         \
  PYOPS_MULTIVERSION inline void find_edges(const int64_t* start, const int32_t* target, const A* weight,     \
                                            int64_t vertices, const A* lanes, Places<A>::type* edges) {       \
    first_edges<A, 2>(start, target, weight, vertices, lanes, edges);                                         \
  }                                                                                                           \
  PYOPS_MULTIVERSION inline void read_rows(const A* const* rows, int64_t lanes, int64_t n, int64_t width,     \
                                           A filling, A* to) {                                                \
    to_lanes<A>(rows, lanes, n, width, filling, to);                                                          \
  }
PYOPS_TREE(float)
PYOPS_TREE(double)
#undef PYOPS_TREE

// The trees of some sources, whose distances are rows of N numbers.
template <class A>
class Trees {
 public:
  using Place = typename Places<A>::type;
  static constexpr int64_t kWidth = 2 * kLanes<A>;

  explicit Trees(const Sparse<A>& graph) : graph_(graph) {}

  // Row `first` and the `count` from there on, at most kWidth.
  void find(const A* distances, const int64_t* sources, int64_t first, int64_t count) {
    const int64_t n = graph_.vertices();
    const A infinite = std::numeric_limits<A>::infinity();
    const A* rows[kWidth] = {};
    for (int64_t lane = 0; lane < count; ++lane) rows[lane] = distances + (first + lane) * n;
    lanes_.resize(n * kWidth), edges_.assign(n * kWidth, Place(-1));
    read_rows(rows, count, n, kWidth, infinite, lanes_.data());
    find_edges(graph_.start.data(), graph_.target.data(), graph_.weight.data(), n, lanes_.data(), edges_.data());
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t source = sources[first + lane];
      if (uint64_t(source) < uint64_t(n)) edges_[source * kWidth + lane] = -1;
      int64_t open = 0;
      for (int64_t v = 0; v < n; ++v)
        open += edges_[v * kWidth + lane] < 0 && v != source && lanes_[v * kWidth + lane] < infinite;
      if (open) settle_level(graph_, lanes_.data() + lane, edges_.data() + lane, kWidth, source);
    }
  }

  // The edge to `vertex`, -1 where none leads there.
  int64_t edge(int64_t vertex, int64_t lane) const { return edges_[vertex * kWidth + lane]; }

 private:
  const Sparse<A>& graph_;
  std::vector<A> lanes_;
  std::vector<Place> edges_;
};

}  // namespace
}  // namespace pyops::geodesic
