// Lower bounds of distances on a CPU, tile by tile, and the candidates that they leave. See knn_products.h.
#pragma once

#include "knn_products.h"

namespace pyops::knn::products {

// The candidates among the first points, of which all lows are known; `minima` [2 k + kStep]. As in rows::nearest, lanes
// of vectors, at least 2 k of them, give a first threshold.
template <class A>
PYOPS_HD void begin_search(const Panels<A>& cloud, const Selection<A>& s, const A* lows, A* minima, Best<A>& best) {
  using V = Vector<A>;
  using M = rows::Mask<A>;
  constexpr int64_t n = kLanes<A>;
  const A infinity = std::numeric_limits<A>::infinity();
  const int64_t end = std::min(s.first, rows::padded<A>(cloud.count));
  const int64_t strips = ceil_div(2 * s.k, rows::kStep<A>);
  const int64_t length = ceil_div(ceil_div(end, strips), rows::kStep<A>) * rows::kStep<A>;
  int64_t count = 0;
  for (int64_t begin = 0; begin < end; begin += length) {
    V least[rows::kVectors];
#pragma GCC unroll 4
    for (V& v : least) v = simd::splat(infinity);
    for (int64_t i = begin; i < std::min(end, begin + length); i += rows::kStep<A>)
#pragma GCC unroll 4
      for (int v = 0; v < rows::kVectors; ++v) {
        const V high = simd::load<V>(lows + i + v * n) + simd::load<V>(cloud.widths.data() + i + v * n);
        least[v] = high < least[v] ? high : least[v];  // NaN is not less
      }
#pragma GCC unroll 4
    for (int v = 0; v < rows::kVectors; ++v) simd::store(minima + count + v * n, least[v]);
    count += rows::kStep<A>;
  }
  if (count >= s.k) {
    const double high = double(rows::bound_of(minima, count, s.k));
    best.threshold = std::min(best.threshold, s.threshold_of_bound(high, best.square));
  }
  for (int64_t begin = 0; begin < end; begin += 32 * n) {  // a bit for each vector
    const int vectors = int(std::min<int64_t>(32, (end - begin) / n));
    const V most = simd::splat(best.threshold);
    M within{};
    for (int v = 0; v < vectors; v += rows::kVectors)
#pragma GCC unroll 4
      for (int u = 0; u < rows::kVectors; ++u)
        within |= (M)(simd::load<V>(lows + begin + (v + u) * n) <= most) &
                  rows::splat_mask<A>(int64_t(uint32_t(1) << (v + u)));
    for (int64_t lane = 0; lane < n; ++lane)
      for (uint32_t bits = uint32_t(within[lane]); bits; bits &= bits - 1) {
        const int64_t i = begin + __builtin_ctz(bits) * n + lane;
        add(cloud, s, best, {lows[i], lows[i] + cloud.widths[i], uint32_t(i)});
      }
  }
}

// Products of the coordinates [begin, end) of one panel and of kQueries queries, [dims][kQueries], each times -2, on top
// of `sums` but for the first.
template <class A>
PYOPS_HD void multiply(const A* panel, const A* queries, int64_t begin, int64_t end, const A* sums,
                       Vector<A> (&sum)[kQueries][kVectors]) {
  using V = Vector<A>;
  constexpr int64_t n = kLanes<A>;
#pragma GCC unroll 6
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) sum[q][v] = begin == 0 ? V{} : simd::load<V>(sums + (q * kVectors + v) * n);
  for (int64_t d = begin; d < end; ++d) {
    const V first = simd::load<V>(panel + d * kPoints<A>), second = simd::load<V>(panel + d * kPoints<A> + n);
#pragma GCC unroll 6
    for (int q = 0; q < kQueries; ++q) {
      const V coordinate = simd::splat(queries[d * kQueries + q]);
      sum[q][0] += coordinate * first;
      sum[q][1] += coordinate * second;
    }
  }
}

// Rows of a tile, `stride` numbers apart.
template <class A>
PYOPS_HD void store_tile(const Vector<A> (&sum)[kQueries][kVectors], A* to, int64_t stride) {
#pragma GCC unroll 6
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) simd::store(to + q * stride + v * kLanes<A>, sum[q][v]);
}

// Candidates of a tile of lows.
template <class A>
PYOPS_HD void search_tile(const Panels<A>& cloud, int64_t begin, const Vector<A> (&low)[kQueries][kVectors],
                          const Selection<A>& s, Best<A>* best) {
  using M = rows::Mask<A>;
  constexpr int64_t n = kLanes<A>;
  M within{};  // a bit for every query and vector
#pragma GCC unroll 6
  for (int q = 0; q < kQueries; ++q)
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v)
      within |= (M)(low[q][v] <= simd::splat(best[q].threshold)) & rows::splat_mask<A>(1 << (q * kVectors + v));
  uint32_t any = 0;
  for (int64_t lane = 0; lane < n; ++lane) any |= uint32_t(within[lane]);
  if (__builtin_expect(any == 0, 1)) return;
  alignas(32) A lows[kQueries][kPoints<A>];
  store_tile<A>(low, lows[0], kPoints<A>);
  for (int64_t lane = 0; lane < n; ++lane)
    for (uint32_t bits = uint32_t(within[lane]); bits; bits &= bits - 1) {
      const int bit = __builtin_ctz(bits), q = bit / kVectors;
      const int64_t at = bit % kVectors * n + lane, i = begin + at;
      add(cloud, s, best[q], {lows[q][at], lows[q][at] + cloud.widths[i], uint32_t(i)});
    }
}

// What a task needs: tiles of queries, their first lows [queries][s.first], sums [queries][kPoints], minima.
template <class A>
struct Work {
  const A* queries;
  int64_t tiles;
  A *first, *sums, *minima;
  Best<A>* best;
};

template <class A>
PYOPS_HD void search_panels(const Panels<A>& cloud, const Selection<A>& s, const Work<A>& w) {
  using V = Vector<A>;
  constexpr int64_t n = kLanes<A>;
  const int64_t points = rows::padded<A>(cloud.count), first = std::min(s.first, points);
  for (int64_t begin = 0; begin < points; begin += kPoints<A>) {
    const A* const panel = cloud.features.data() + begin * cloud.dims;
    for (int64_t d = 0; d < cloud.dims; d += kDims)
      for (int64_t t = 0; t < w.tiles; ++t) {
        const int64_t q = t * kQueries, end = std::min(d + kDims, cloud.dims);
        V sum[kQueries][kVectors];
        multiply(panel, w.queries + q * cloud.dims, d, end, w.sums + q * kPoints<A>, sum);
        if (end < cloud.dims) {
          store_tile<A>(sum, w.sums + q * kPoints<A>, kPoints<A>);
          continue;
        }
#pragma GCC unroll 6
        for (int i = 0; i < kQueries; ++i)
#pragma GCC unroll 2
          for (int v = 0; v < kVectors; ++v) sum[i][v] += simd::load<V>(cloud.lows.data() + begin + v * n);
        if (begin < first) store_tile<A>(sum, w.first + q * s.first + begin, s.first);
        else search_tile(cloud, begin, sum, s, w.best + q);
      }
    if (begin + kPoints<A> == first)
      for (int64_t q = 0; q < w.tiles * kQueries; ++q)
        begin_search(cloud, s, w.first + q * s.first, w.minima, w.best[q]);
  }
}

}  // namespace pyops::knn::products
