// Weighted sums of rows on the CPU, in the order in which they are listed.
#pragma once

#include <algorithm>

#include "../common/pixel.h"
#include "../common/simd.h"
#include "../common/tensor.h"

namespace pyops::gather {
namespace {

using simd::kLanes;
using simd::Vector;

// Which rows to sum, each times its weight, or as it is without weights; places outside of [0, limit) are none.
template <class I, class A>
struct List {
  const I* places;
  const A* weights;
  int64_t count, limit;

  PYOPS_HD bool has(int64_t i) const { return uint64_t(int64_t(places[i])) < uint64_t(limit); }
  PYOPS_HD A weight(int64_t i) const { return weights ? weights[i] : A(1); }
};

template <class T, class I, class A, int kVectors>
PYOPS_HD void sum_vectors(const T* rows, int64_t stride, const List<I, A>& list, int64_t c, T* to) {
  Vector<A> sum[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) sum[v] = simd::splat(A(0));
  for (int64_t i = 0; i < list.count; ++i) {
    if (!list.has(i)) continue;
    const T* const from = rows + int64_t(list.places[i]) * stride + c;
    const auto weight = simd::splat(list.weight(i));
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) sum[v] += weight * simd::load<Vector<A>>(from + v * kLanes<A>);
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) simd::store(to + c + v * kLanes<A>, sum[v]);
}

template <class T, class I, class A>
PYOPS_HD void sum_rows(const T* rows, int64_t stride, const List<I, A>& list, int64_t channels, T* to) {
  int64_t c = 0;
  if constexpr (std::is_same_v<T, A>) {
    for (; c + 4 * kLanes<A> <= channels; c += 4 * kLanes<A>) sum_vectors<T, I, A, 4>(rows, stride, list, c, to);
    for (; c + kLanes<A> <= channels; c += kLanes<A>) sum_vectors<T, I, A, 1>(rows, stride, list, c, to);
  }
  constexpr int64_t kAtATime = 32;
  for (; c < channels; c += kAtATime) {
    const int64_t n = std::min(kAtATime, channels - c);
    A sum[kAtATime] = {};
    for (int64_t i = 0; i < list.count; ++i) {
      if (!list.has(i)) continue;
      const T* const from = rows + int64_t(list.places[i]) * stride + c;
      const A weight = list.weight(i);
      for (int64_t k = 0; k < n; ++k) sum[k] += weight * decode<T, A>(from[k]);
    }
    for (int64_t k = 0; k < n; ++k) to[c + k] = encode<T, A>(sum[k]);
  }
}

template <class T, class A>
PYOPS_HD A dot_rows(const T* a, const T* b, int64_t channels) {
  constexpr int64_t kAtATime = 8;
  A sum[kAtATime] = {};
  int64_t c = 0;
  for (; c + kAtATime <= channels; c += kAtATime)
    for (int64_t k = 0; k < kAtATime; ++k) sum[k] += decode<T, A>(a[c + k]) * decode<T, A>(b[c + k]);
  for (; c < channels; ++c) sum[c % kAtATime] += decode<T, A>(a[c]) * decode<T, A>(b[c]);
  A total = 0;
  for (const A x : sum) total += x;
  return total;
}

}  // namespace
}  // namespace pyops::gather
