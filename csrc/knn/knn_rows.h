// The k nearest points of a cloud to one query on a CPU, by looking at all of them.
//
// Interface. A cloud is `dims` rows of A (float or double), one for each coordinate, `stride` numbers apart; a row holds
// the n points and then NaN up to a multiple of kStep<A>: `padded<A>(n)` numbers. A point with a NaN is no neighbour, so
// the padding needs no care anywhere.
//
//     Scratch<A> scratch(most_points, most_k);                      // once for each thread
//     int64_t found = nearest<kDims, A>(cloud, stride, n, dims, query, k, limit, scratch);
//
// puts the `found` <= k nearest neighbours into scratch.keys[0..found), ascending, ties by the lowest index: take them
// apart by distance_of<A>(key) and index_of<A>(key). Neighbours are points at a finite distance of at most `limit` (pass
// infinity for none). kDims is `dims` as a constant, which keeps the query in registers, or 0 for any number.
// 1 <= k <= most_k, 0 <= n <= most_points < 2^31. Call it in a function marked PYOPS_MULTIVERSION only.
//
// How: the cloud is divided among at least 2 k lanes of vectors, and the k-th smallest of their minima bounds the k-th
// distance. A second look at the distances keeps what is within the bound, in usual clouds little more than k.
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>
#include <vector>

#include "../common/simd.h"
#include "knn.h"

namespace pyops::knn::rows {

using simd::kLanes;
using simd::Vector;

constexpr int kVectors = 4;  // which are computed together
template <class A>
constexpr int64_t kStep = kVectors * kLanes<A>;  // points

template <class A>
PYOPS_HD int64_t padded(int64_t n) {
  return ceil_div(n, kStep<A>) * kStep<A>;
}

// Integers as wide as A, for what comparisons of vectors give.
template <class A>
struct Masks;
template <>
struct Masks<float> {
  using type = simd::i32x8;
};
template <>
struct Masks<double> {
  typedef int64_t type __attribute__((vector_size(32)));
};
template <class A>
using Mask = typename Masks<A>::type;

template <class A>
PYOPS_HD Mask<A> splat_mask(int64_t x) {
  if constexpr (std::is_same_v<A, float>) {
    return simd::splat(int32_t(x));
  } else {
    const Mask<A> v = {x};
    return __builtin_shufflevector(v, v, 0, 0, 0, 0);
  }
}

constexpr int64_t kSlack = 256;  // candidates kept beyond 2 k before the best k are selected

template <class A>
struct Scratch {
  std::vector<A> distances, minima;
  std::vector<Key<A>> keys;

  Scratch(int64_t points, int64_t k)
      : distances(padded<A>(points)), minima(3 * k + kStep<A>), keys(2 * k + kSlack + 32 * kLanes<A>) {}
};

// Squared distances of kVectors vectors of points to the query.
template <int kDims, class A>
PYOPS_HD void distances_to(const A* cloud, int64_t stride, int64_t dims, const A* query, Vector<A> (&sum)[kVectors]) {
  using V = Vector<A>;
  const V first = simd::splat(query[0]);
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = square(first - simd::load<V>(cloud + v * kLanes<A>));
  const int64_t count = kDims ? kDims : dims;
#pragma GCC unroll 8
  for (int64_t d = 1; d < count; ++d) {
    const V coordinate = simd::splat(query[d]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] += square(coordinate - simd::load<V>(cloud + d * stride + v * kLanes<A>));
  }
}

// The k-th smallest of the minima, which it reorders.
template <class A>
PYOPS_HD A bound_of(A* minima, int64_t count, int64_t k) {
  if (count == kStep<A> && k <= 32) {  // by counting how many are smaller: no branches
    using V = Vector<A>;
    A bound = std::numeric_limits<A>::infinity();
    V least = simd::splat(bound);
    V all[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) all[v] = simd::load<V>(minima + v * kLanes<A>);
    Mask<A> counts[kVectors] = {};
    for (int64_t i = 0; i < count; ++i) {
      const V other = simd::splat(minima[i]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) counts[v] -= (Mask<A>)(other <= all[v]);  // itself too
    }
    // Of those that at least k do not exceed, the smallest.
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      const Mask<A> enough = counts[v] >= splat_mask<A>(k);
      const V candidate = enough ? all[v] : simd::splat(std::numeric_limits<A>::infinity());
      least = candidate < least ? candidate : least;
    }
    for (int64_t i = 0; i < kLanes<A>; ++i) bound = std::min(bound, A(least[i]));
    return bound;
  }
  std::nth_element(minima, minima + k - 1, minima + count);
  return minima[k - 1];
}

// Sorts keys, of which the first k matter.
template <class A>
PYOPS_HD void sort_keys(Key<A>* keys, int64_t count, int64_t k) {
  if (count <= 1) return;
  if (count > 2 * k + 32) {
    std::nth_element(keys, keys + k, keys + count);
    count = k;
  }
  if (count <= 96) {  // each to the place that the number of smaller ones gives it
    alignas(64) Key<A> sorted[96];
    for (int64_t i = 0; i < count; ++i) {
      int64_t place = 0;
      for (int64_t j = 0; j < count; ++j) place += keys[j] < keys[i];
      sorted[place] = keys[i];
    }
    std::copy(sorted, sorted + std::min(count, k), keys);
  } else {
    std::sort(keys, keys + count);
  }
}

template <int kDims, class A>
PYOPS_HD int64_t nearest(const A* cloud, int64_t stride, int64_t n, int64_t dims, const A* query, int64_t k, A limit,
                         Scratch<A>& scratch) {
  using V = Vector<A>;
  constexpr int64_t kWidth = kLanes<A>;
  const A infinity = std::numeric_limits<A>::infinity();
  const int64_t end = padded<A>(n);
  A* const distances = scratch.distances.data();
  A* const minima = scratch.minima.data();
  Key<A>* const keys = scratch.keys.data();
  A bound = std::min(limit, std::numeric_limits<A>::max());

  // Strips give a minimum for each lane; with less than k lanes there is no bound.
  const int64_t strips = ceil_div(2 * k, kStep<A>);
  const int64_t length = ceil_div(ceil_div(end, strips), kStep<A>) * kStep<A>;
  int64_t count = 0;
  for (int64_t begin = 0; begin < end; begin += length) {
    V least[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) least[v] = simd::splat(infinity);
    for (int64_t i = begin; i < std::min(end, begin + length); i += kStep<A>) {
      V sum[kVectors];
      distances_to<kDims>(cloud + i, stride, dims, query, sum);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        least[v] = sum[v] < least[v] ? sum[v] : least[v];  // NaN is not less
        simd::store(distances + i + v * kWidth, sum[v]);
      }
    }
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) simd::store(minima + count + v * kWidth, least[v]);
    count += kStep<A>;
  }
  if (count >= k) bound = std::min(bound, bound_of(minima, count, k));

  // Of up to 32 vectors at a time, a bit for every distance within the bound; word j holds lane j of all of them.
  int64_t found = 0;
  for (int64_t begin = 0; begin < end; begin += 32 * kWidth) {
    const int vectors = int(std::min<int64_t>(32, (end - begin) / kWidth));
    const V most = simd::splat(bound);
    Mask<A> within = {};
    for (int v = 0; v < vectors; v += kVectors)
#pragma GCC unroll 4
      for (int u = 0; u < kVectors; ++u) {
        const auto mask = (Mask<A>)(simd::load<V>(distances + begin + (v + u) * kWidth) <= most);
        within |= mask & splat_mask<A>(int64_t(uint32_t(1) << (v + u)));
      }
    for (int64_t lane = 0; lane < kWidth; ++lane)
      for (uint32_t bits = uint32_t(within[lane]); bits; bits &= bits - 1) {
        const int64_t i = begin + __builtin_ctz(bits) * kWidth + lane;
        keys[found++] = key_of<A>(distances[i], uint32_t(i));
      }
    if (found >= 2 * k + kSlack) {  // ties, mostly; a later point has to be nearer than the k-th to count
      std::nth_element(keys, keys + k - 1, keys + found);
      bound = before(distance_of<A>(keys[k - 1]));
      found = k;
    }
  }
  sort_keys<A>(keys, found, k);
  return std::min(found, k);
}

}  // namespace pyops::knn::rows
