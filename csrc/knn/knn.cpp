// Nearest neighbours on the CPU: the checks, and which way to search. A task takes queries one by one.
#include "../common/unfused.h"
#include "knn_cpu.h"

namespace pyops::knn {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kGrain = 1 << 17;  // operations worth a thread

#define PYOPS_NEAREST(A)                                                                                      \
  PYOPS_MULTIVERSION int64_t nearest(const A* cloud, int64_t stride, int64_t n, int64_t dims, const A* query, \
                                     int64_t k, A limit, rows::Scratch<A>& scratch) {                         \
    switch (dims) {                                                                                           \
      case 2: return rows::nearest<2>(cloud, stride, n, dims, query, k, limit, scratch);                      \
      case 3: return rows::nearest<3>(cloud, stride, n, dims, query, k, limit, scratch);                      \
      case 4: return rows::nearest<4>(cloud, stride, n, dims, query, k, limit, scratch);                      \
      default: return rows::nearest<0>(cloud, stride, n, dims, query, k, limit, scratch);                     \
    }                                                                                                         \
  }
PYOPS_NEAREST(float)
PYOPS_NEAREST(double)
#undef PYOPS_NEAREST

// Every query looks at every point.
template <class T>
void search_rows(const Search<T>& s) {
  using A = Arithmetic<T>;
  const Problem& p = s.p;
  const auto asked = cloud_of<const T>(s.query);
  const Rows<A> clouds = rows_of(s);
  const int64_t work = std::max<int64_t>(1, p.points * p.dims);
  parallel_for(0, p.batch * p.queries, std::max<int64_t>(1, kGrain / work), [&](int64_t i, int64_t end) {
    rows::Scratch<A> scratch(p.points, p.k);
    std::vector<A> at(p.dims);
    for (; i < end; ++i) {
      const int64_t b = i / p.queries, m = i % p.queries;
      int64_t found = 0;
      if (m < s.queries.of(b)) {
        load_point(asked, b, m, p.dims, at.data());
        found = nearest(clouds.of(b), clouds.stride, s.counts.of(b), p.dims, at.data(), p.k, s.limit, scratch);
      }
      s.results.of(b, m).store(scratch.keys.data(), found, p.k);
    }
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& points, int64_t k,
                                   const std::optional<Tensor>& query_lengths, const std::optional<Tensor>& lengths,
                                   double limit) {
  return search_with(query, points, k, query_lengths, lengths, limit, [](const auto& search) {
    // The one place where searches part: large clouds of few dimensions, clouds of many, and all others.
    if (wants_tree(search.p)) search_trees(search);
    else if (wants_products(search.p)) search_products(search);
    else search_rows(search);
  });
}

}  // namespace
}  // namespace pyops::knn

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "knn(Tensor query, Tensor points, SymInt k, Tensor? query_lengths, Tensor? lengths, float limit) -> "
      "(Tensor, Tensor)");
  m.def(
      "ball_query(Tensor query, Tensor points, float limit, SymInt k, Tensor? query_lengths, Tensor? lengths) -> "
      "(Tensor, Tensor)");
  m.def(
      "knn_backward(Tensor grad, Tensor query, Tensor points, Tensor indices, bool need_query, bool need_points) -> "
      "(Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("knn", TORCH_BOX(&pyops::knn::forward)); }
