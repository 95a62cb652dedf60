// Nearest neighbours in large clouds of few dimensions on the CPU: a tree for each cloud, then queries leaf by leaf.
#include "../common/unfused.h"
#include "knn_cpu.h"
#include "knn_tree_search.h"

namespace pyops::knn {
namespace {

using torch::stable::parallel_for;

#define PYOPS_NEAREST(A)                                                                         \
  PYOPS_MULTIVERSION int64_t nearest(const tree::Tree<A>& t, const A* query, int64_t k, A limit, \
                                     rows::Scratch<A>& scratch) {                                \
    switch (t.dims) {                                                                            \
      case 2: return tree::nearest<2>(t, query, k, limit, scratch);                              \
      case 3: return tree::nearest<3>(t, query, k, limit, scratch);                              \
      default: return tree::nearest<0>(t, query, k, limit, scratch);                             \
    }                                                                                            \
  }
PYOPS_NEAREST(float)
PYOPS_NEAREST(double)
#undef PYOPS_NEAREST

#define PYOPS_HOME_LEAF(A) \
  PYOPS_MULTIVERSION int64_t home_leaf(const tree::Tree<A>& t, const A* query) { return tree::home_leaf(t, query); }
PYOPS_HOME_LEAF(float)
PYOPS_HOME_LEAF(double)
#undef PYOPS_HOME_LEAF

template <class A>
void build(tree::Tree<A>& t, const A* cloud, int64_t stride, int64_t n, int64_t dims) {
  tree::begin_tree(t, cloud, stride, n, dims);
  // Levels one by one while there are few ranges, then each range for itself.
  const int64_t shared = std::min<int64_t>(t.depth, 4);
  Key<A>* const order = t.order.data();
  const auto range = [&](int64_t level, int64_t i, int64_t levels) {
    const int64_t end = i + 1 < int64_t(1) << level ? t.begin_of(level, i + 1) : t.count;
    tree::divide(order, cloud, stride, dims, t.begin_of(level, i), end, levels);
  };
  for (int64_t level = 0; level < shared; ++level)
    parallel_for(0, int64_t(1) << level, 1, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) range(level, i, 1);
    });
  const int64_t parts = int64_t(1) << shared, leaves = (int64_t(1) << t.depth) / parts;
  parallel_for(0, parts, 1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      range(shared, i, t.depth - shared);
      for (int64_t leaf = i * leaves; leaf < (i + 1) * leaves; ++leaf) tree::fill_leaf(t, cloud, stride, leaf);
    }
  });
  tree::fill_nodes(t);
}

// Queries of large clouds leaf by leaf, so that what one has read is in the cache for the next; else nothing.
template <class T>
std::vector<uint32_t> order_of(const Search<T>& s, const std::vector<tree::Tree<Arithmetic<T>>>& trees) {
  constexpr int64_t kLarge = 4096;
  const Problem& p = s.p;
  std::vector<uint32_t> order;
  if (p.points < kLarge || p.queries < kLarge || p.queries >= kMostPoints) return order;
  order.resize(p.batch * p.queries);
  std::vector<uint32_t> leaves(order.size());
  const auto asked = cloud_of<const T>(s.query);
  parallel_for(0, p.batch * p.queries, 1024, [&](int64_t i, int64_t end) {
    Arithmetic<T> at[tree::kMostDims];
    for (; i < end; ++i) {
      load_point(asked, i / p.queries, i % p.queries, p.dims, at);
      leaves[i] = uint32_t(home_leaf(trees[i / p.queries], at));
    }
  });
  parallel_for(0, p.batch, 1, [&](int64_t b, int64_t end) {
    std::vector<int64_t> next;
    for (; b < end; ++b) {
      const uint32_t* const own = leaves.data() + b * p.queries;
      next.assign((int64_t(1) << trees[b].depth) + 1, b * p.queries);
      for (int64_t m = 0; m < p.queries; ++m) ++next[own[m] + 1];
      for (size_t leaf = 1; leaf < next.size(); ++leaf) next[leaf] += next[leaf - 1] - b * p.queries;
      for (int64_t m = 0; m < p.queries; ++m) order[next[own[m]]++] = uint32_t(m);
    }
  });
  return order;
}

}  // namespace

bool wants_tree(const Problem& p) { return p.dims <= tree::kMostDims && p.points >= 512 && p.k * 8 <= p.points; }

template <class T>
void search_trees(const Search<T>& s) {
  using A = Arithmetic<T>;
  const Problem& p = s.p;
  const auto asked = cloud_of<const T>(s.query);
  std::vector<tree::Tree<A>> trees(p.batch);
  {
    const Rows<A> clouds = rows_of(s);
    const auto build_all = [&](int64_t b, int64_t end) {
      for (; b < end; ++b) build(trees[b], clouds.of(b), clouds.stride, s.counts.of(b), p.dims);
    };
    if (p.batch > 1) parallel_for(0, p.batch, 1, build_all);
    else build_all(0, 1);
  }
  const std::vector<uint32_t> order = order_of(s, trees);
  parallel_for(0, p.batch * p.queries, 64, [&](int64_t i, int64_t end) {
    rows::Scratch<A> scratch(0, p.k);
    A at[tree::kMostDims];
    for (; i < end; ++i) {
      const int64_t b = i / p.queries, m = order.empty() ? i % p.queries : order[i];
      int64_t found = 0;
      if (m < s.queries.of(b)) {
        load_point(asked, b, m, p.dims, at);
        found = nearest(trees[b], at, p.k, s.limit, scratch);
      }
      s.results.of(b, m).store(scratch.keys.data(), found, p.k);
    }
  });
}

template void search_trees(const Search<float>&);
template void search_trees(const Search<double>&);
template void search_trees(const Search<Half>&);
template void search_trees(const Search<BFloat16>&);

}  // namespace pyops::knn
