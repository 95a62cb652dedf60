// Nearest neighbours in clouds of many dimensions on the CPU: clouds into panels, then some queries at a time against
// all of them.
#include <cmath>

#include "knn_cpu.h"
#include "knn_products_panels.h"

namespace pyops::knn {
namespace {

using products::kPoints;
using products::kQueries;
using products::Panels;
using torch::stable::parallel_for;

constexpr int64_t kMostQueries = 16 * kQueries;  // of a task

#define PYOPS_SEARCH(A)                                                                                              \
  PYOPS_MULTIVERSION void search_panels(const Panels<A>& cloud, const products::Selection<A>& s,                     \
                                        const products::Work<A>& w) {                                                \
    products::search_panels(cloud, s, w);                                                                            \
  }                                                                                                                  \
  PYOPS_MULTIVERSION int64_t finish(const Panels<A>& cloud, const products::Selection<A>& s, products::Best<A>& b) { \
    return products::finish(cloud, s, b);                                                                            \
  }
PYOPS_SEARCH(float)
PYOPS_SEARCH(double)
#undef PYOPS_SEARCH

// Medians of the coordinates of some points: a few that are far away do not move it.
template <class T, class A>
std::vector<A> centre_of(const Cloud<const T>& cloud, int64_t b, int64_t count, int64_t dims) {
  constexpr int64_t kSome = 31;
  std::vector<A> centre(dims), some;
  const int64_t step = std::max<int64_t>(1, count / kSome);
  for (int64_t d = 0; d < dims; ++d) {
    some.clear();
    for (int64_t i = 0; i < count && int64_t(some.size()) < kSome; i += step) {
      const A x = decode<T, A>(cloud.data[b * cloud.batch + i * cloud.point + d * cloud.dim]);
      if (std::isfinite(x)) some.push_back(x);
    }
    if (some.empty()) continue;
    std::nth_element(some.begin(), some.begin() + some.size() / 2, some.end());
    centre[d] = some[some.size() / 2];
  }
  return centre;
}

// A point about the centre, `step` numbers apart, times `factor`; 0 where its square is infinity or NaN. The square.
template <class A>
double centred(const A* point, const A* centre, int64_t dims, A factor, A* to, int64_t step) {
  double square = 0;
  for (int64_t d = 0; d < dims; ++d) {
    const A x = point[d] - centre[d];
    square += double(x) * double(x);
    to[d * step] = factor * x;
  }
  if (square < products::kHuge<A>) return square;
  for (int64_t d = 0; d < dims; ++d) to[d * step] = 0;
  return std::numeric_limits<double>::infinity();
}

template <class A>
bool is_finite(const A* point, int64_t dims) {
  A sum = 0;
  for (int64_t d = 0; d < dims; ++d) sum += point[d] * A(0);
  return sum == A(0);
}

template <class A>
void fill_panel(Panels<A>& to, int64_t panel) {
  constexpr A kMost = std::numeric_limits<A>::max();
  const double share = products::share_of<A>(to.dims), tiny = products::tiny_of<A>(to.dims);
  A* const features = to.features.data() + panel * to.dims * kPoints<A>;
  for (int64_t j = 0; j < kPoints<A>; ++j) {
    const int64_t i = panel * kPoints<A> + j;
    A &low = to.lows[i], &width = to.widths[i];
    low = std::numeric_limits<A>::quiet_NaN(), width = 0;
    if (i >= to.count) continue;
    const A* const point = to.points + i * to.stride;
    const double square = centred(point, to.centre.data(), to.dims, A(1), features + j, kPoints<A>);
    if (square < products::kHuge<A>) {
      low = A(square * (1 - share) - tiny), width = A(2 * (share * square + tiny));
    } else if (is_finite(point, to.dims)) {
      low = -kMost, width = std::numeric_limits<A>::infinity();
    }
  }
}

// All clouds, packed in parallel; `copies` holds their points where they are not rows of A.
template <class T, class A>
std::vector<Panels<A>> panels_of(const Search<T>& s, std::vector<A>& copies) {
  constexpr int64_t kPart = 16;  // panels
  const Problem& p = s.p;
  const auto from = cloud_of<const T>(s.points);
  const bool usable = std::is_same_v<T, A> && (from.dim == 1 || p.dims == 1);
  if (!usable) copies.resize(p.batch * p.points * p.dims);
  std::vector<Panels<A>> clouds(p.batch);
  const int64_t panels = rows::padded<A>(p.points) / kPoints<A>, parts = ceil_div(panels, kPart);
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t count = s.counts.of(b);
    const A* points = copies.data() + b * p.points * p.dims;
    if constexpr (std::is_same_v<T, A>)
      if (usable) points = from.data + b * from.batch;
    clouds[b] = {
        p.dims, count, centre_of<T, A>(from, b, count, p.dims), {}, {}, {}, points, usable ? from.point : p.dims};
    clouds[b].features.resize(panels * p.dims * kPoints<A>);
    clouds[b].lows.resize(panels * kPoints<A>), clouds[b].widths.resize(panels * kPoints<A>);
  }
  parallel_for(0, p.batch * parts, 1, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t b = i / parts, begin = i % parts * kPart;
      Panels<A>& cloud = clouds[b];
      for (int64_t panel = begin; panel < std::min(begin + kPart, panels); ++panel) {
        const int64_t last = std::min((panel + 1) * kPoints<A>, cloud.count);
        if (!usable)
          for (int64_t n = panel * kPoints<A>; n < last; ++n)
            load_point(from, b, n, p.dims, copies.data() + (b * p.points + n) * p.dims);
        fill_panel(cloud, panel);
      }
    }
  });
  return clouds;
}

// The memory of a task: its queries, as they are and in tiles, and what they have found.
template <class A>
struct Task {
  std::vector<A> queries, tiles, first, sums, minima;
  std::vector<products::Best<A>> best;
  std::vector<products::Candidate<A>> candidates;
  std::vector<Key<A>> keys;

  Task(int64_t most, int64_t dims, const products::Selection<A>& s)
      : queries(most * dims),
        tiles(most * dims),
        first(most * s.first),
        sums(most * kPoints<A>),
        minima(2 * s.k + rows::kStep<A>),
        best(most),
        candidates(most * s.room),
        keys(most * (s.k + s.room)) {}
};

template <class T, class A>
void search_some(const Search<T>& s, const Panels<A>& cloud, const products::Selection<A>& selection, int64_t b,
                 int64_t begin, int64_t end, Task<A>& task) {
  const auto asked = cloud_of<const T>(s.query);
  const int64_t dims = s.p.dims, last = std::min(end, s.queries.of(b)),
                tiles = ceil_div(end - begin, int64_t(kQueries));
  for (int64_t i = 0; i < tiles * kQueries; ++i) {
    A* const query = task.queries.data() + i * dims;
    A* const tile = task.tiles.data() + i / kQueries * kQueries * dims + i % kQueries;
    products::Best<A>& best = task.best[i];
    best = {query,
            0,
            std::numeric_limits<A>::quiet_NaN(),
            0,
            0,
            task.candidates.data() + i * selection.room,
            task.keys.data() + i * (selection.k + selection.room)};
    if (begin + i < last) load_point(asked, b, begin + i, dims, query);
    if (begin + i < last && is_finite(query, dims)) {
      best.square = centred(query, cloud.centre.data(), dims, A(-2), tile, kQueries);
      best.threshold = selection.threshold_of_distance(double(s.limit), best.square);
    } else {
      for (int64_t d = 0; d < dims; ++d) tile[d * kQueries] = 0;
    }
  }
  search_panels(cloud, selection,
                {task.tiles.data(), tiles, task.first.data(), task.sums.data(), task.minima.data(), task.best.data()});
  for (int64_t i = begin; i < end; ++i) {
    products::Best<A>& best = task.best[i - begin];
    s.results.of(b, i).store(best.keys, finish(cloud, selection, best), s.p.k);
  }
}

}  // namespace

// Measured: a distance by products costs a third, but choosing among bounds, then computing, costs as much as some
// thousand coordinates a neighbour, and a cloud in panels is worth it from some queries on.
bool wants_products(const Problem& p) {
  return p.dims >= 24 && p.dims <= products::kMostDims && p.queries >= 16 && p.points >= 4 * p.k &&
         p.points * p.dims >= 2000 * (p.k + 8);
}

template <class T>
void search_products(const Search<T>& s) {
  using A = Arithmetic<T>;
  const Problem& p = s.p;
  std::vector<A> copies;
  const std::vector<Panels<A>> clouds = panels_of<T, A>(s, copies);
  const products::Selection<A> selection(p.k, p.points, p.dims, s.limit);
  // Enough tasks for many threads, and queries enough in each to read every panel for.
  const int64_t wanted = ceil_div(p.batch * p.queries, 32 * int64_t(kQueries)) * kQueries;
  const int64_t each = std::min(wanted, kMostQueries), tasks = ceil_div(p.queries, each);
  parallel_for(0, p.batch * tasks, 1, [&](int64_t i, int64_t end) {
    Task<A> task(each, p.dims, selection);
    for (; i < end; ++i) {
      const int64_t b = i / tasks, begin = i % tasks * each;
      search_some(s, clouds[b], selection, b, begin, std::min(begin + each, p.queries), task);
    }
  });
}

template void search_products(const Search<float>&);
template void search_products(const Search<double>&);
template void search_products(const Search<Half>&);
template void search_products(const Search<BFloat16>&);

}  // namespace pyops::knn
