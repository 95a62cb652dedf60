// Clouds and results of nearest neighbours on a CPU, in the type of arithmetic.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <limits>

#include "../common/pixel.h"
#include "knn_args.h"
#include "knn_rows.h"

namespace pyops::knn {

// Clouds as rows of coordinates: [B][D][stride], NaN behind the last point that counts.
template <class A>
struct Rows {
  int64_t dims, stride;
  std::vector<A> memory;

  Rows(int64_t batch, int64_t points, int64_t dims)
      : dims(dims), stride(rows::padded<A>(points)), memory(size_t(batch * dims * stride)) {}
  A* of(int64_t b) { return memory.data() + b * dims * stride; }
  const A* of(int64_t b) const { return memory.data() + b * dims * stride; }
};

template <class T, class A>
void load_point(const Cloud<T>& cloud, int64_t b, int64_t i, int64_t dims, A* to) {
  const T* const from = cloud.data + b * cloud.batch + i * cloud.point;
  for (int64_t d = 0; d < dims; ++d) to[d] = decode<T, A>(from[d * cloud.dim]);
}

// Points [begin, end) of a cloud of which `count` count.
template <class T, class A>
void load_rows(const Cloud<T>& cloud, int64_t b, int64_t begin, int64_t end, int64_t count, int64_t dims,
               int64_t stride, A* to) {
  const T* const from = cloud.data + b * cloud.batch;
  for (int64_t d = 0; d < dims; ++d)
    for (int64_t i = begin; i < end; ++i)
      to[d * stride + i] =
          i < count ? decode<T, A>(from[i * cloud.point + d * cloud.dim]) : std::numeric_limits<A>::quiet_NaN();
}

// Where the neighbours of one query go: [k] each.
template <class T>
struct Row {
  using A = Arithmetic<T>;
  T* distances;
  int64_t* indices;

  void store(const Key<A>* keys, int64_t found, int64_t k) const {
    for (int64_t i = 0; i < found; ++i) {
      distances[i] = encode<T, A>(distance_of<A>(keys[i]));
      indices[i] = int64_t(index_of<A>(keys[i]));
    }
    for (int64_t i = found; i < k; ++i) {
      distances[i] = encode<T, A>(std::numeric_limits<A>::infinity());
      indices[i] = -1;
    }
  }
};

template <class T>
struct Results {
  T* distances;
  int64_t* indices;
  int64_t queries, k;

  Results(const Problem& p, const Tensor& distances, const Tensor& indices)
      : distances(static_cast<T*>(distances.mutable_data_ptr())),
        indices(indices.mutable_data_ptr<int64_t>()),
        queries(p.queries),
        k(p.k) {}
  Row<T> of(int64_t b, int64_t m) const {
    const int64_t at = (b * queries + m) * k;
    return {distances + at, indices + at};
  }
};

// What all ways to search take.
template <class T>
struct Search {
  const Problem& p;
  const Tensor &query, &points;
  Counts queries, counts;
  Arithmetic<T> limit;
  Results<T> results;
};

// Packs all clouds, in parallel.
template <class T>
Rows<Arithmetic<T>> rows_of(const Search<T>& s) {
  constexpr int64_t kPart = 1024;  // points
  const Problem& p = s.p;
  Rows<Arithmetic<T>> clouds(p.batch, p.points, p.dims);
  const auto from = cloud_of<const T>(s.points);
  const int64_t parts = ceil_div(clouds.stride, kPart);
  torch::stable::parallel_for(0, p.batch * parts, 16, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t b = i / parts, begin = i % parts * kPart;
      load_rows(from, b, begin, std::min(begin + kPart, clouds.stride), s.counts.of(b), p.dims, clouds.stride,
                clouds.of(b));
    }
  });
  return clouds;
}

// Whether trees are worth their building, and the search in them.
bool wants_tree(const Problem& p);
template <class T>
void search_trees(const Search<T>& s);

// Whether distances are worth bounding by products, and the search that does.
bool wants_products(const Problem& p);
template <class T>
void search_products(const Search<T>& s);

// New results, filled by `f` with a Search of the type of the query.
template <class F>
std::tuple<Tensor, Tensor> search_with(const Tensor& query, const Tensor& points, int64_t k,
                                       const std::optional<Tensor>& query_lengths, const std::optional<Tensor>& lengths,
                                       double limit, const F& f) {
  const Problem p = check(query, points, k, query_lengths, lengths);
  const Tensor distances = new_tensor(query, {p.batch, p.queries, k}, query.scalar_type());
  const Tensor indices = new_tensor(query, {p.batch, p.queries, k}, ScalarType::Long);
  if (distances.numel() == 0) return {distances, indices};
  const Counts queries = counts_of(query_lengths, p.queries), counts = counts_of(lengths, p.points);
  dispatch_floating(query.scalar_type(), "query", [&](auto zero) {
    using T = decltype(zero);
    f(Search<T>{p, query, points, queries, counts, Arithmetic<T>(limit), {p, distances, indices}});
  });
  return {distances, indices};
}

}  // namespace pyops::knn
