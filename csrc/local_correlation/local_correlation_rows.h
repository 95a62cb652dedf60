// Rows of tiles on a CPU: up to three rows of an image against one row of the other, for all displacements of columns.
//
// Tiles hold rows of A, one for each channel. A vector of the shared row meets that of every row: nine products take six
// loads, where one row alone would need ten. Every sum has the same order whatever surrounds it, so results do not depend
// on how tiles are divided among threads.
#pragma once

#include <algorithm>

#include "../common/simd.h"
#include "local_correlation.h"

namespace pyops::local_correlation::rows {

using simd::kLanes;
using simd::Vector;

constexpr int kMostRows = 3;           // that are served at a time
constexpr int64_t kMostChannels = 64;  // that are summed by themselves: rounding stays small, and so do these rows

// Rows of kCount elements at data + row * row_stride + index * pitch, where an index is a channel or a displacement.
template <class A>
struct Rows {
  A* data;
  int64_t row_stride, pitch;

  PYOPS_HD A* at(int64_t row, int64_t index, int64_t x) const { return data + row * row_stride + index * pitch + x; }
  PYOPS_HD Rows from(int64_t row, int64_t index, int64_t x) const { return {at(row, index, x), row_stride, pitch}; }
};

// What surrounds the shared row: it begins with the partner of column 0 for the first displacement, others are `step`
// further each.
template <class A>
struct Shared {
  const A* data;
  int64_t pitch, step, count;  // count of displacements
};

// One vector of columns of kCount displacements, added to what is there if `add`.
template <int kRows, int kCount, class A>
PYOPS_HD void correlate_part(const Rows<const A> own, const A* other, int64_t pitch, int64_t step, int64_t channels,
                             bool add, const Rows<A> to) {
  using V = Vector<A>;
  V sum[kRows][kCount];
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kCount; ++i) sum[i / kCount][i % kCount] = simd::splat(A(0));
  const A* from = own.data;
  for (int64_t c = 0; c < channels; ++c, from += own.pitch, other += pitch) {
    V value[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) value[i] = simd::load<V>(from + i * own.row_stride);
#pragma GCC unroll 16
    for (int k = 0; k < kCount; ++k) {
      const V partner = simd::load<V>(other + k * step);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sum[i][k] += value[i] * partner;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kCount; ++i) {
    A* const at = to.at(i / kCount, i % kCount, 0);
    V& value = sum[i / kCount][i % kCount];
    if (add) value += simd::load<V>(at);
    simd::store(at, value);
  }
}

// The same for `count` displacements, at most kCount.
template <int kRows, int kCount, class A>
PYOPS_HD void correlate_some(int64_t count, const Rows<const A> own, const A* other, int64_t pitch, int64_t step,
                             int64_t channels, bool add, const Rows<A> to) {
  if (count == kCount) return correlate_part<kRows, kCount, A>(own, other, pitch, step, channels, add, to);
  if constexpr (kCount > 1) correlate_some<kRows, kCount - 1, A>(count, own, other, pitch, step, channels, add, to);
}

// to[row][k][x] for all displacements, kMost at a time at most, in even shares.
template <int kRows, int kMost, class A>
PYOPS_HD void correlate_rows(const Rows<const A> own, const Shared<A> other, int64_t channels, int64_t columns,
                             const Rows<A> to) {
  const int64_t shares = ceil_div<int64_t>(other.count, kMost);
  const int64_t depth = ceil_div(channels, ceil_div(channels, kMostChannels));
  for (int64_t x = 0; x < columns; x += kLanes<A>)
    for (int64_t c = 0; c < channels; c += depth)
      for (int64_t k = 0, left = shares; left > 0; --left) {
        const int64_t count = ceil_div(other.count - k, left);
        correlate_some<kRows, kMost, A>(count, own.from(0, c, x), other.data + c * other.pitch + k * other.step + x,
                                        other.pitch, other.step, std::min(depth, channels - c), c > 0,
                                        to.from(0, k, x));
        k += count;
      }
}

template <class A>
PYOPS_HD void correlate(int64_t rows, const Rows<const A> own, const Shared<A> other, int64_t channels, int64_t columns,
                        const Rows<A> to) {
  if (rows == 3) correlate_rows<3, 3, A>(own, other, channels, columns, to);
  else if (rows == 2) correlate_rows<2, 5, A>(own, other, channels, columns, to);
  else correlate_rows<1, 9, A>(own, other, channels, columns, to);
}

// to[row][c][x] += sum over k of grad[row][k][x] * other[c][x + k * step], for kCount channels and a vector of columns.
template <int kRows, int kCount, class A>
PYOPS_HD void gather_part(const Rows<const A> grad, const Shared<A> other, const Rows<A> to) {
  using V = Vector<A>;
  V sum[kRows][kCount];
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kCount; ++i)
    sum[i / kCount][i % kCount] = simd::load<V>(to.at(i / kCount, i % kCount, 0));
  const A *g = grad.data, *partner = other.data;
  for (int64_t k = 0; k < other.count; ++k, g += grad.pitch, partner += other.step) {
    V value[kRows];
#pragma GCC unroll 16
    for (int i = 0; i < kRows; ++i) value[i] = simd::load<V>(g + i * grad.row_stride);
#pragma GCC unroll 16
    for (int c = 0; c < kCount; ++c) {
      const V feature = simd::load<V>(partner + c * other.pitch);
#pragma GCC unroll 16
      for (int i = 0; i < kRows; ++i) sum[i][c] += value[i] * feature;
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < kRows * kCount; ++i) simd::store(to.at(i / kCount, i % kCount, 0), sum[i / kCount][i % kCount]);
}

template <int kRows, int kMost, class A>
PYOPS_HD void gather_rows(const Rows<const A> grad, const Shared<A> other, int64_t channels, int64_t columns,
                          const Rows<A> to) {
  for (int64_t x = 0; x < columns; x += kLanes<A>) {
    int64_t c = 0;
    const auto take = [&](auto count) {
      gather_part<kRows, count.value, A>(grad.from(0, 0, x),
                                         {other.data + c * other.pitch + x, other.pitch, other.step, other.count},
                                         to.from(0, c, x));
      c += count.value;
    };
    while (channels - c >= kMost) take(std::integral_constant<int, kMost>());
    if (channels - c >= kMost / 2) take(std::integral_constant<int, kMost / 2>());
    while (channels - c >= 1) take(std::integral_constant<int, 1>());
  }
}

template <class A>
PYOPS_HD void gather(int64_t rows, const Rows<const A> grad, const Shared<A> other, int64_t channels, int64_t columns,
                     const Rows<A> to) {
  if (rows == 3) gather_rows<3, 4, A>(grad, other, channels, columns, to);
  else if (rows == 2) gather_rows<2, 4, A>(grad, other, channels, columns, to);
  else gather_rows<1, 8, A>(grad, other, channels, columns, to);
}

}  // namespace pyops::local_correlation::rows
