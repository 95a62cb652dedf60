// Min-plus products on a CPU: panels of kRows rows of a and of kColumns columns of b, and the tile that they make.
//
// In a panel the entries of one k lie together, and what pads it is inf. A tile stays in registers while k runs, and
// takes two operations a sum: the addition and the minimum. NaN costs two more; they are for matrices that hold one, or
// a -inf, which can meet inf.
#pragma once

#include <algorithm>
#include <limits>

#include "../common/simd.h"
#include "minplus.h"

namespace pyops::minplus::tiles {

using simd::kLanes;
using simd::Vector;

constexpr int kRows = 6, kVectors = 2, kPart = 2;  // kPart: rows of a tile with indices, which need registers too
constexpr int64_t kDepth = 256;                    // k at a time: a panel of b then stays in the first-level cache
template <class A>
constexpr int64_t kColumns = kVectors * kLanes<A>;
template <class A>
constexpr A kInfinity = std::numeric_limits<A>::infinity();

// Integers of the size of A, as comparisons of vectors give them.
template <class A>
using Mask = decltype(Vector<A>() < Vector<A>());
template <class A>
using Integer = std::conditional_t<sizeof(A) == 8, int64_t, int32_t>;

PYOPS_HD Mask<float> splat_index(int32_t k) { return simd::splat(k); }
PYOPS_HD Mask<double> splat_index(int64_t k) {
  const Mask<double> v = {k};
  return __builtin_shufflevector(v, v, 0, 0, 0, 0);
}

template <bool kNan, class V>
PYOPS_HD V least(V best, V sum) {
  const V lesser = best < sum ? best : sum;  // a NaN in `sum` stays, one in `best` does not
  if constexpr (!kNan) return lesser;
  using M = decltype(best < sum);
  return (V)((M)lesser | (best != best));  // all bits set are a NaN
}

// to[r][c] = min(to[r][c], a[k][r] + b[k][c]) for n of k.
template <bool kNan, class A>
PYOPS_HD void update(const A* a, const A* b, int64_t n, A* to, int64_t stride) {
  using V = Vector<A>;
  constexpr int64_t lanes = kLanes<A>;
  V best[kRows][kVectors];
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) best[r][v] = simd::load<V>(to + r * stride + v * lanes);
  for (int64_t k = 0; k < n; ++k, a += kRows, b += kColumns<A>) {
    V right[kVectors];
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) right[v] = simd::load<V>(b + v * lanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const V left = simd::splat(a[r]);
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) best[r][v] = least<kNan>(best[r][v], left + right[v]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) simd::store(to + r * stride + v * lanes, best[r][v]);
}

// The same, with the lowest k of what is least; `a` and `to` begin at one of the first kRows - kPart rows of a panel.
template <bool kNan, class A>
PYOPS_HD void update_indices(const A* a, const A* b, int64_t first, int64_t n, A* to, Integer<A>* indices,
                             int64_t stride) {
  using V = Vector<A>;
  using M = Mask<A>;
  constexpr int64_t lanes = kLanes<A>;
  V best[kPart][kVectors];
  M index[kPart][kVectors];
#pragma GCC unroll 8
  for (int i = 0; i < kPart * kVectors; ++i) {
    const int r = i / kVectors, v = i % kVectors;
    best[r][v] = simd::load<V>(to + r * stride + v * lanes);
    index[r][v] = simd::load<M>(indices + r * stride + v * lanes);
  }
  M at = splat_index(Integer<A>(first));
  for (int64_t k = 0; k < n; ++k, a += kRows, b += kColumns<A>, at += 1) {
#pragma GCC unroll 8
    for (int i = 0; i < kPart * kVectors; ++i) {
      const int r = i / kVectors, v = i % kVectors;
      const V sum = simd::splat(a[r]) + simd::load<V>(b + v * lanes);
      M better = sum < best[r][v];
      if constexpr (kNan) better |= (sum != sum) & (best[r][v] == best[r][v]);
      index[r][v] = better ? at : index[r][v];
      best[r][v] = better ? sum : best[r][v];
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < kPart * kVectors; ++i) {
    const int r = i / kVectors, v = i % kVectors;
    simd::store(to + r * stride + v * lanes, best[r][v]);
    simd::store(indices + r * stride + v * lanes, index[r][v]);
  }
}

// A part of a tile in memory of its own, and back.
template <class A>
PYOPS_HD void copy_part(const A* from, int64_t from_stride, A* to, int64_t to_stride, int64_t rows, int64_t columns) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) to[r * to_stride + c] = from[r * from_stride + c];
}

// Rows and columns of a whole matrix that are to be updated, from its panels, `depth` entries deep.
template <bool kNan, class A>
PYOPS_HD void update_block(const A* a, const A* b, int64_t depth, int64_t rows, int64_t columns, A* to,
                           int64_t stride) {
  constexpr int64_t wide = kColumns<A>;
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t n = std::min(kDepth, depth - k);
    for (int64_t c = 0; c < columns; c += wide)
      for (int64_t r = 0; r < rows; r += kRows) {
        const A *left = a + r * depth + k * kRows, *right = b + c * depth + k * wide;
        A* const at = to + r * stride + c;
        if (r + kRows <= rows && c + wide <= columns) {
          update<kNan>(left, right, n, at, stride);
          continue;
        }
        const int64_t some = std::min<int64_t>(kRows, rows - r), few = std::min(wide, columns - c);
        A part[kRows * wide] = {};
        copy_part(at, stride, part, wide, some, few);
        update<kNan>(left, right, n, part, wide);
        copy_part(part, wide, at, stride, some, few);
      }
  }
}

// The indices of a block, -1 where there is none; both it and `to` have room for whole tiles.
template <bool kNan, class A>
PYOPS_HD void find_block(const A* a, const A* b, int64_t depth, int64_t rows, int64_t columns, A* to,
                         Integer<A>* indices, int64_t stride) {
  constexpr int64_t wide = kColumns<A>;
  std::fill(to, to + ceil_div<int64_t>(rows, kRows) * kRows * stride, kInfinity<A>);
  std::fill(indices, indices + ceil_div<int64_t>(rows, kRows) * kRows * stride, Integer<A>(-1));
  for (int64_t k = 0; k < depth; k += kDepth) {
    const int64_t n = std::min(kDepth, depth - k);
    for (int64_t c = 0; c < columns; c += wide)
      for (int64_t r = 0; r < rows; r += kRows)
        for (int part = 0; part < kRows; part += kPart) {
          const int64_t at = (r + part) * stride + c;
          update_indices<kNan>(a + r * depth + k * kRows + part, b + c * depth + k * wide, k, n, to + at, indices + at,
                               stride);
        }
  }
}

// kCount vectors of columns, of all rows, through node k. The row and the column of the node itself do not change.
template <int kCount, class A>
PYOPS_HD void close_columns(A* graph, int64_t n, int64_t stride, int64_t k, int64_t column) {
  using V = Vector<A>;
  V through[kCount];
#pragma GCC unroll 8
  for (int v = 0; v < kCount; ++v) through[v] = simd::load<V>(graph + k * stride + column + v * kLanes<A>);
  for (A* row = graph; row < graph + n * stride; row += stride) {
    const V first = simd::splat(row[k]);
#pragma GCC unroll 8
    for (int v = 0; v < kCount; ++v) {
      A* const at = row + column + v * kLanes<A>;
      simd::store(at, least<false>(simd::load<V>(at), first + through[v]));
    }
  }
}

// A graph of n nodes, closed under paths in place; the rows have room for whole vectors.
template <class A>
PYOPS_HD void close(A* graph, int64_t n, int64_t stride) {
  constexpr int64_t wide = 4 * kLanes<A>;
  for (int64_t k = 0; k < n; ++k) {
    int64_t column = 0;
    for (; column + wide <= n; column += wide) close_columns<4>(graph, n, stride, k, column);
    for (; column < n; column += kLanes<A>) close_columns<1>(graph, n, stride, k, column);
  }
}

}  // namespace pyops::minplus::tiles
