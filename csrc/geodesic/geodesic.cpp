// Schemas of the stem, and distances on the CPU.
//
// Sources that lie near each other share an order of the vertices, that in which Dijkstra's algorithm settles them from
// one of the sources: nearly right for all, so that few sweeps remain. Orders, blocks and threads change no bit.
#include <torch/csrc/stable/ops.h>

#include <atomic>
#include <cmath>
#include <memory>

#include "../common/unfused.h"
#include "geodesic_graph.h"
#include "geodesic_lanes.h"

namespace pyops::geodesic {
namespace {

using torch::stable::parallel_for;

// Measured on swiss rolls, Gaussian clouds in eight dimensions, and graphs of 350 edges a vertex.
constexpr int64_t kBlocks = 8;                // that share an order
constexpr int64_t kFew = 2, kFewOfDense = 5;  // sources that do not pay for lanes
constexpr int64_t kSmallShare = 50;           // of the vertices in reach: then, too, one source after the other
constexpr int64_t kDense = 64;                // edges a vertex
constexpr int kSparseVectors = 2, kDenseVectors = 4;

#define PYOPS_SWEEP(A)                                                                                                 \
  PYOPS_MULTIVERSION void sweep_sparse(const int64_t* start, const int32_t* target, const A* weight, int64_t vertices, \
                                       A* lanes, uint8_t* changed) {                                                   \
    sweep<A, kSparseVectors, false>(start, target, weight, vertices, lanes, changed);                                  \
  }                                                                                                                    \
  PYOPS_MULTIVERSION void sweep_dense(const int64_t* start, const int32_t* target, const A* weight, int64_t vertices,  \
                                      A* lanes, uint8_t* changed) {                                                    \
    sweep<A, kDenseVectors, true>(start, target, weight, vertices, lanes, changed);                                    \
  }                                                                                                                    \
  PYOPS_MULTIVERSION void write_rows(const A* from, const int32_t* place, int64_t lanes, int64_t n, int64_t width,     \
                                     A above, A* const* rows) {                                                        \
    from_lanes<A>(from, place, lanes, n, width, above, rows);                                                          \
  }
PYOPS_SWEEP(float)
PYOPS_SWEEP(double)
#undef PYOPS_SWEEP

// One graph, its sources, and in which groups they are served.
template <class A>
struct Search {
  Sparse<A> graph;
  A above;                // what is out of reach: the least number above the cutoff
  bool sweeps, dijkstra;  // which method is forced, if any
  bool dense = false;
  int64_t width = 0, group = 1;  // lanes of a block, sources of a group
  std::vector<int32_t> slots;    // the sources, those near each other side by side
  const int64_t* sources = nullptr;
  A* out = nullptr;  // [S, N]

  A* row(int64_t slot) const { return out + slot * graph.vertices(); }
};

// What a thread works with.
template <class A>
class Worker {
 public:
  explicit Worker(const Search<A>& search) : s_(search) {}

  void serve(int64_t first, int64_t last) {
    const int64_t n = s_.graph.vertices();
    const int32_t* const slots = s_.slots.data();
    if (s_.dijkstra) return one_by_one(first, last);
    const int64_t center = s_.sources[slots[first]];
    dijkstra_.run(s_.graph, center, s_.above, s_.row(slots[first]));
    order_ = dijkstra_.settled;
    if (!s_.sweeps && int64_t(order_.size()) * kSmallShare <= n) return one_by_one(first + 1, last);
    place_.assign(n, -1);
    for (size_t i = 0; i < order_.size(); ++i) place_[order_[i]] = int32_t(i);
    for (int64_t v = 0; v < n; ++v)
      if (place_[v] < 0) place_[v] = int32_t(order_.size()), order_.push_back(int32_t(v));
    reorder(s_.graph, order_, place_, ordered_);
    for (; first < last; first += s_.width) block(slots + first, std::min(s_.width, last - first));
  }

 private:
  const Search<A>& s_;
  Dijkstra<A> dijkstra_;
  Sparse<A> ordered_;
  std::vector<int32_t> order_, place_;
  std::vector<A> memory_;
  std::vector<uint8_t> changed_;
  std::vector<A*> rows_;

  void one_by_one(int64_t first, int64_t last) {
    for (; first < last; ++first) {
      const int32_t slot = s_.slots[first];
      dijkstra_.run(s_.graph, s_.sources[slot], s_.above, s_.row(slot));
    }
  }

  void block(const int32_t* slots, int64_t count) {
    const int64_t n = s_.graph.vertices();
    constexpr int64_t line = 64;  // bytes: no vector of lanes crosses one
    memory_.resize(n * s_.width + line / sizeof(A));
    A* const lanes =
        reinterpret_cast<A*>(ceil_div<uintptr_t>(reinterpret_cast<uintptr_t>(memory_.data()), line) * line);
    std::fill_n(lanes, n * s_.width, s_.above);
    changed_.assign(ceil_div<int64_t>(n, 8) * 8, 0);
    rows_.clear();
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t at = place_[s_.sources[slots[lane]]];
      lanes[at * s_.width + lane] = A(0), changed_[at] = 1;
      rows_.push_back(s_.row(slots[lane]));
    }
    const auto solve = s_.dense ? static_cast<decltype(&choose)>(&choose_dense) : &choose;
    solve(ordered_, lanes, changed_.data());
    write_rows(lanes, place_.data(), count, n, s_.width, s_.above, rows_.data());
  }

  static void choose(const Sparse<A>& g, A* lanes, uint8_t* changed) {
    sweep_sparse(g.start.data(), g.target.data(), g.weight.data(), g.vertices(), lanes, changed);
  }
  static void choose_dense(const Sparse<A>& g, A* lanes, uint8_t* changed) {
    sweep_dense(g.start.data(), g.target.data(), g.weight.data(), g.vertices(), lanes, changed);
  }
};

// Slots of sources in the order of balls; what is no source has no distances.
template <class A>
void arrange(Search<A>& s, int64_t count) {
  const int64_t n = s.graph.vertices();
  for (int64_t slot = 0; slot < count; ++slot) {
    if (uint64_t(s.sources[slot]) < uint64_t(n)) s.slots.push_back(int32_t(slot));
    else std::fill_n(s.row(slot), n, std::numeric_limits<A>::infinity());
  }
  const int64_t found = int64_t(s.slots.size()), threads = torch::stable::get_num_threads();
  // Where a blocked algorithm for dense matrices serves all pairs, it is chosen here.
  s.dense = int64_t(s.graph.target.size()) >= kDense * n;
  s.dijkstra = s.dijkstra || (!s.sweeps && found <= (s.dense ? kFewOfDense : kFew));
  s.width = (s.dense ? kDenseVectors : kSparseVectors) * kLanes<A>;
  const int64_t blocks = ceil_div(found, s.width);
  s.group = s.dijkstra ? 1 : s.width * std::max<int64_t>(1, std::min(kBlocks, blocks / threads));
  if (s.dijkstra || blocks <= 1) return;
  const std::vector<int32_t> order = in_balls(s.graph, s.group);
  std::vector<int32_t> rank(n);
  for (int64_t i = 0; i < n; ++i) rank[order[i]] = int32_t(i);
  std::stable_sort(s.slots.begin(), s.slots.end(),
                   [&](int32_t a, int32_t b) { return rank[s.sources[a]] < rank[s.sources[b]]; });
}

template <class A>
void search_graph(Search<A>& s, int64_t sources) {
  arrange(s, sources);
  const int64_t found = int64_t(s.slots.size()), groups = ceil_div(found, s.group);
  const int64_t workers = std::min<int64_t>(groups, torch::stable::get_num_threads());
  std::atomic<int64_t> next{0};
  parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) {
    Worker<A> worker(s);
    for (; begin < end; ++begin)
      for (int64_t i = next++; i < groups; i = next++) worker.serve(i * s.group, std::min((i + 1) * s.group, found));
  });
}

template <class A>
void search_graphs(const Problem& p, const Graphs<A>& graphs, double cutoff, const std::string& method, A* out) {
  A limit = A(cutoff);
  limit = std::nextafter(limit, std::numeric_limits<A>::infinity());
  parallel_for(0, p.batch, 1, [&](int64_t b, int64_t end) {
    for (; b < end; ++b) {
      Search<A> search{};
      search.graph =
          cleaned(graphs.indptr + b * (p.vertices + 1), graphs.indices + b * p.edges, graphs.weights + b * p.edges, p);
      search.above = limit, search.sweeps = method == "sweeps", search.dijkstra = method == "dijkstra";
      search.sources = graphs.sources + b * p.sources;
      search.out = out + b * p.sources * p.vertices;
      search_graph(search, p.sources);
    }
  });
}

Tensor geodesic_distances(const Tensor& indptr, const Tensor& indices, const Tensor& weights, const Tensor& sources,
                          double cutoff, std::string method) {
  const Problem p = check(indptr, indices, weights, sources);
  check_search(cutoff, method);
  const Tensor out = new_tensor(weights, {p.batch, p.sources, p.vertices}, weights.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_weights(weights, [&](auto zero) {
    using A = decltype(zero);
    search_graphs<A>(p, Graphs<A>(indptr, indices, weights, sources), cutoff, method,
                     static_cast<A*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace pyops::geodesic

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "geodesic_distances(Tensor indptr, Tensor indices, Tensor weights, Tensor sources, float cutoff, str method) -> "
      "Tensor");
  m.def(
      "geodesic_predecessors(Tensor indptr, Tensor indices, Tensor weights, Tensor sources, Tensor distances, bool "
      "edges) -> Tensor");
  m.def(
      "geodesic_distances_backward(Tensor grad, Tensor indptr, Tensor indices, Tensor weights, Tensor sources, Tensor "
      "distances) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("geodesic_distances", TORCH_BOX(&pyops::geodesic::geodesic_distances));
}
