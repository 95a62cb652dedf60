// Gradients of squared distances on the CPU, to queries and points.
//
// A query sums over its neighbours. A point sums over the pairs it is in: these are sorted by point first, by counting,
// so that every sum has one owner and the order of the pairs, however many threads there are.
#include "knn_cpu.h"

namespace pyops::knn {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kGrain = 1 << 13;     // pairs worth a thread
constexpr int64_t kTogether = 1 << 22;  // pairs whose order is kept at a time, where one cloud has less

// sum += 2 g (a - b)
template <class T, class A>
void add_pair(A g, const T* a, int64_t a_step, const T* b, int64_t b_step, int64_t dims, A* sum) {
  const A twice = 2 * g;
  for (int64_t d = 0; d < dims; ++d) sum[d] += twice * (decode<T, A>(a[d * a_step]) - decode<T, A>(b[d * b_step]));
}

// Pairs in the order of their points: those of point i are order[start[i]] to order[start[i + 1]].
struct Pairs {
  std::vector<int64_t> start, order;

  void sort(const int64_t* indices, int64_t pairs, int64_t points) {
    start.assign(points + 2, 0), order.resize(pairs);
    int64_t* const next = start.data() + 1;  // counts, then places, then starts
    const auto inside = [&](int64_t i) { return i >= 0 && i < points; };
    for (int64_t e = 0; e < pairs; ++e)
      if (inside(indices[e])) ++next[indices[e] + 1];
    for (int64_t i = 0; i < points; ++i) next[i + 1] += next[i];
    for (int64_t e = 0; e < pairs; ++e)
      if (inside(indices[e])) order[next[indices[e]]++] = e;
  }
};

template <class T>
struct Gradients {
  using A = Arithmetic<T>;
  const Problem& p;
  const T* grad;
  const int64_t* indices;
  Cloud<const T> query, points;

  void to_query(T* out) const {
    parallel_for(0, p.batch * p.queries, std::max<int64_t>(1, kGrain / p.k), [&](int64_t i, int64_t end) {
      std::vector<A> sum(p.dims);
      for (; i < end; ++i) {
        const int64_t b = i / p.queries, m = i % p.queries;
        const T* const from = query.data + b * query.batch + m * query.point;
        std::fill(sum.begin(), sum.end(), A(0));
        for (int64_t e = i * p.k; e < (i + 1) * p.k; ++e) {
          const int64_t n = indices[e];
          if (n < 0 || n >= p.points) continue;
          add_pair(decode<T, A>(grad[e]), from, query.dim, points.data + b * points.batch + n * points.point,
                   points.dim, p.dims, sum.data());
        }
        for (int64_t d = 0; d < p.dims; ++d) out[i * p.dims + d] = encode<T, A>(sum[d]);
      }
    });
  }

  void to_points(T* out) const {
    const int64_t each = p.queries * p.k, together = std::max<int64_t>(1, kTogether / std::max<int64_t>(1, each));
    std::vector<Pairs> pairs(std::min(together, p.batch));
    for (int64_t first = 0; first < p.batch; first += together) {
      const int64_t count = std::min(together, p.batch - first);
      parallel_for(0, count, 1, [&](int64_t b, int64_t end) {
        for (; b < end; ++b) pairs[b].sort(indices + (first + b) * each, each, p.points);
      });
      const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, each / p.points));
      parallel_for(0, count * p.points, grain, [&](int64_t i, int64_t end) {
        std::vector<A> sum(p.dims);
        for (; i < end; ++i) {
          const Pairs& sorted = pairs[i / p.points];
          const int64_t b = first + i / p.points, n = i % p.points;
          const T* const from = points.data + b * points.batch + n * points.point;
          std::fill(sum.begin(), sum.end(), A(0));
          for (int64_t at = sorted.start[n]; at < sorted.start[n + 1]; ++at) {
            const int64_t e = sorted.order[at];
            add_pair(decode<T, A>(grad[b * each + e]), from, points.dim,
                     query.data + b * query.batch + e / p.k * query.point, query.dim, p.dims, sum.data());
          }
          for (int64_t d = 0; d < p.dims; ++d) out[(b * p.points + n) * p.dims + d] = encode<T, A>(sum[d]);
        }
      });
    }
  }
};

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& query, const Tensor& points,
                                    const Tensor& indices, bool need_query, bool need_points) {
  const Problem p = check_gradient(grad, query, points, indices);
  const Tensor to_query = new_gradient(query, need_query, false), to_points = new_gradient(points, need_points, false);
  const Tensor upstream = in_order(grad), places = in_order(indices);
  dispatch_floating(query.scalar_type(), "query", [&](auto zero) {
    using T = decltype(zero);
    const Gradients<T> gradients{p, static_cast<const T*>(upstream.const_data_ptr()), places.const_data_ptr<int64_t>(),
                                 cloud_of<const T>(query), cloud_of<const T>(points)};
    if (need_query && p.queries > 0) gradients.to_query(static_cast<T*>(to_query.mutable_data_ptr()));
    if (need_points && p.points > 0) gradients.to_points(static_cast<T*>(to_points.mutable_data_ptr()));
  });
  return {to_query, to_points};
}

}  // namespace
}  // namespace pyops::knn

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("knn_backward", TORCH_BOX(&pyops::knn::backward)); }
