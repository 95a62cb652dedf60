// The first points within a radius on the CPU: a query goes over the cloud until it has enough.
#include "../common/unfused.h"
#include "knn_cpu.h"

namespace pyops::knn {
namespace {

using rows::kStep;
using rows::kVectors;
using simd::kLanes;
using simd::Vector;

template <class A>
PYOPS_HD int64_t first_within(const A* cloud, int64_t stride, int64_t n, int64_t dims, const A* query, int64_t k,
                              A limit, Key<A>* keys) {
  alignas(32) A distances[kStep<A>];
  const Vector<A> most = simd::splat(std::min(limit, std::numeric_limits<A>::max()));
  int64_t found = 0;
  for (int64_t begin = 0; begin < n; begin += kStep<A>) {
    Vector<A> sum[kVectors];
    rows::distances_to<0>(cloud + begin, stride, dims, query, sum);
    rows::Mask<A> any = {};
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      simd::store(distances + v * kLanes<A>, sum[v]);
      any |= (rows::Mask<A>)(sum[v] <= most);
    }
    int64_t some = 0;
    for (int64_t lane = 0; lane < kLanes<A>; ++lane) some |= any[lane];
    if (!some) continue;
    for (int64_t i = 0; i < kStep<A>; ++i) {
      if (!(distances[i] <= most[0])) continue;
      keys[found++] = key_of<A>(distances[i], uint32_t(begin + i));
      if (found == k) return found;
    }
  }
  return found;
}

#define PYOPS_FIRST_WITHIN(A)                                                                                \
  PYOPS_MULTIVERSION int64_t search(const A* cloud, int64_t stride, int64_t n, int64_t dims, const A* query, \
                                    int64_t k, A limit, Key<A>* keys) {                                      \
    return first_within(cloud, stride, n, dims, query, k, limit, keys);                                      \
  }
PYOPS_FIRST_WITHIN(float)
PYOPS_FIRST_WITHIN(double)
#undef PYOPS_FIRST_WITHIN

template <class T>
void search_all(const Search<T>& s) {
  using A = Arithmetic<T>;
  const Problem& p = s.p;
  const Rows<A> clouds = rows_of(s);
  const auto asked = cloud_of<const T>(s.query);
  torch::stable::parallel_for(0, p.batch * p.queries, 64, [&](int64_t i, int64_t end) {
    std::vector<Key<A>> keys(p.k);
    std::vector<A> at(p.dims);
    for (; i < end; ++i) {
      const int64_t b = i / p.queries, m = i % p.queries;
      int64_t found = 0;
      if (m < s.queries.of(b)) {
        load_point(asked, b, m, p.dims, at.data());
        found = search(clouds.of(b), clouds.stride, s.counts.of(b), p.dims, at.data(), p.k, s.limit, keys.data());
      }
      s.results.of(b, m).store(keys.data(), found, p.k);
    }
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& points, double limit, int64_t k,
                                   const std::optional<Tensor>& query_lengths, const std::optional<Tensor>& lengths) {
  return search_with(query, points, k, query_lengths, lengths, limit, [](const auto& s) { search_all(s); });
}

}  // namespace
}  // namespace pyops::knn

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("ball_query", TORCH_BOX(&pyops::knn::forward)); }
