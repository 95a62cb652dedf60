// Chains of patches on the CPU: frames are turned into rows of coordinates once; then a task takes some chains of one
// direction through all frames, each of which stays in the cache for all of them.
#include <torch/csrc/stable/ops.h>

#include "../common/pixel.h"
#include "../common/unfused.h"
#include "tpatches_args.h"
#include "tpatches_rows.h"

namespace pyops::tpatches {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kChains = 32;      // of a task
constexpr double kAllowance = 1.4;   // of a guess over the last distance: usually enough, with few more points within
constexpr int64_t kGrain = 1 << 15;  // distances, or points to turn, that are worth a thread

// The `found` <= k nearest in scratch.keys; `guess` says within what distance they probably are, if that is known.
#define PYOPS_NEAREST(A)                                                                                            \
  PYOPS_MULTIVERSION int64_t nearest(const A* frame, int64_t stride, int64_t n, const A* query, int64_t k, A guess, \
                                     knn::rows::Scratch<A>& scratch) {                                              \
    const A infinity = std::numeric_limits<A>::infinity();                                                          \
    if (guess < infinity && k <= rows::kMostWithin / 2) {                                                           \
      const int64_t found =                                                                                         \
          rows::within<A>(frame, stride, n, query, guess, scratch.distances.data(), scratch.keys.data());           \
      if (found >= k && found <= rows::kMostWithin) {                                                               \
        rows::sort_keys<A>(scratch.keys.data(), found, k);                                                          \
        return k;                                                                                                   \
      }                                                                                                             \
    }                                                                                                               \
    return knn::rows::nearest<3, A>(frame, stride, n, 3, query, k, infinity, scratch);                              \
  }
PYOPS_NEAREST(float)
PYOPS_NEAREST(double)
#undef PYOPS_NEAREST

// Frames as rows x, y and z, with NaN behind the points that count.
template <class T>
struct Frames {
  using A = Arithmetic<T>;
  int64_t stride, number;
  std::vector<A> memory;

  Frames(const Problem& p, const Rows<T>& points, const Rows<int64_t>& lengths)
      : stride(knn::rows::padded<A>(p.points)), number(p.frames), memory(p.batch * p.frames * 3 * stride) {
    parallel_for(0, p.batch * p.frames, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, 3 * stride)),
                 [&](int64_t i, int64_t end) {
                   for (; i < end; ++i) turn(points, i / p.frames, i % p.frames, p.points, lengths);
                 });
  }

  const A* at(int64_t b, int64_t t) const { return memory.data() + (b * number + t) * 3 * stride; }

 private:
  void turn(const Rows<T>& points, int64_t b, int64_t t, int64_t all, const Rows<int64_t>& lengths) {
    const int64_t count = count_of(lengths, b, t, all);
    const T* from = points.at(b, t, 0);
    A* const to = memory.data() + (b * number + t) * 3 * stride;
    for (int64_t i = 0; i < count; ++i)
      for (int64_t d = 0; d < 3; ++d) to[d * stride + i] = decode<T, A>(from[i * points.row + d * points.column]);
    for (int64_t d = 0; d < 3; ++d)
      std::fill(to + d * stride + count, to + (d + 1) * stride, std::numeric_limits<A>::quiet_NaN());
  }
};

template <class T>
struct Writer {
  const Problem& p;
  int64_t* indices;
  T *distances, *centers;

  Writer(const Problem& p, const Results& results)
      : p(p),
        indices(static_cast<int64_t*>(results.indices.mutable_data_ptr())),
        distances(static_cast<T*>(results.distances.mutable_data_ptr())),
        centers(static_cast<T*>(results.centers.mutable_data_ptr())) {}

  template <class A>
  void patch(int64_t at, const knn::Key<A>* keys, int64_t found, A limit) const {
    int64_t* const index = indices + at * p.k;
    T* const distance = distances + at * p.k;
    for (int64_t i = 0; i < found; ++i) {
      const A d = knn::distance_of<A>(keys[i]);
      const bool far = i > 0 && d > limit;
      index[i] = knn::index_of<A>(keys[far ? 0 : i]);
      distance[i] = encode<T, A>(far ? A(0) : d);
    }
    std::fill(index + found, index + p.k, int64_t(-1));
    std::fill(distance + found, distance + p.k, encode<T, A>(std::numeric_limits<A>::infinity()));
  }
  template <class A>
  void center(int64_t at, const A* q) const {
    for (int64_t d = 0; d < 3; ++d) centers[at * 3 + d] = encode<T, A>(q[d]);
  }
};

template <class T>
void walk(const Problem& p, const Tensor& points_tensor, const Tensor& queries_tensor,
          const OptionalTensor& noise_tensor, const OptionalTensor& lengths_tensor, const Results& results) {
  using A = Arithmetic<T>;
  const auto points = rows_of<T>(points_tensor), noise = rows_of<T>(noise_tensor);
  const auto lengths = rows_of<int64_t>(lengths_tensor), queries = rows_of<int64_t>(queries_tensor);
  const Frames<T> frames(p, points, lengths);
  const Writer<T> to(p, results);
  const A limit = A(p.radius * p.radius), none = std::numeric_limits<A>::quiet_NaN();
  const A infinity = std::numeric_limits<A>::infinity();
  const int64_t most = std::min(p.k, std::max<int64_t>(1, p.points));
  const int64_t ahead = ceil_div(p.forward, kChains), tasks = ahead + ceil_div(p.backward(), kChains);
  const int64_t work = kChains * p.frames * std::max<int64_t>(1, p.points);
  parallel_for(0, p.batch * tasks, std::max<int64_t>(1, kGrain / work), [&](int64_t i, int64_t end) {
    knn::rows::Scratch<A> scratch(p.points, most);
    for (; i < end; ++i) {
      const int64_t b = i / tasks, task = i % tasks;
      const bool back = task >= ahead;
      const int64_t begin = back ? p.forward + (task - ahead) * kChains : task * kChains;
      const int64_t count = std::min(kChains, (back ? p.queries : p.forward) - begin);
      A query[kChains][3], guess[kChains];
      std::fill(guess, guess + count, infinity);
      for (int64_t step = 0; step < p.frames; ++step) {
        const int64_t t = back ? p.frames - 1 - step : step, n = count_of(lengths, b, t, p.points);
        const A* const frame = frames.at(b, t);
        for (int64_t c = 0; c < count; ++c) {
          A* const q = query[c];
          if (step == 0) {
            const int64_t start = *queries.at(b, begin + c, 0);
            for (int64_t d = 0; d < 3; ++d) q[d] = start >= 0 && start < n ? frame[d * frames.stride + start] : none;
          }
          const int64_t at = (b * p.frames + t) * p.queries + begin + c;
          const int64_t found = n ? nearest(frame, frames.stride, n, q, most, guess[c], scratch) : 0;
          guess[c] = found < most ? infinity : knn::distance_of<A>(scratch.keys[most - 1]) * A(kAllowance);
          to.patch(at, scratch.keys.data(), found, limit);
          if (found)
            for (int64_t d = 0; d < 3; ++d) q[d] = frame[d * frames.stride + knn::index_of<A>(scratch.keys[0])];
          to.center(at, q);
          if (noise.any())
            for (int64_t d = 0; d < 3; ++d) q[d] += decode<T, A>(noise.at(b, t, begin + c)[d * noise.column]);
        }
      }
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> extract(const Tensor& points, const Tensor& queries, int64_t k, int64_t forward,
                                           const OptionalTensor& noise, const OptionalTensor& lengths, double radius) {
  const Problem p = check(points, queries, k, forward, noise, lengths, radius);
  const Results results(p, points);
  if (results.empty()) return results.tuple();
  dispatch_floating(points.scalar_type(), "points",
                    [&](auto zero) { walk<decltype(zero)>(p, points, queries, noise, lengths, results); });
  return results.tuple();
}

}  // namespace
}  // namespace pyops::tpatches

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "extract_tpatches(Tensor points, Tensor query_indices, SymInt k, SymInt forward, Tensor? noise, Tensor? lengths, "
      "float max_radius) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) { m.impl("extract_tpatches", TORCH_BOX(&pyops::tpatches::extract)); }
