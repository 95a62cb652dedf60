// One row of a group on a CPU: its volume, and the gradients to its two rows of features.
//
// Features are rows of A, `stride` apart by channel, with zeros around them: so many that a shifted vector of the
// outermost columns stays inside. Every sum has the same order whatever surrounds it, so results do not depend on how
// rows are divided among threads.
#pragma once

#include <algorithm>

#include "../common/simd.h"
#include "groupwise.h"

namespace pyops::groupwise::rows {

using simd::kLanes;
using simd::Vector;

constexpr int64_t kTile = 256;  // columns whose features of a usual group stay in the first-level cache for all shifts

// A part of a row: columns that surely have a partner come as whole vectors.
template <class A>
PYOPS_HD void store_part(A* to, Vector<A> value, int64_t skip, int64_t n) {
  alignas(32) A element[kLanes<A>];
  simd::store(element, value);
  for (int64_t i = 0; i < std::min(skip, n); ++i) to[i] = A(0);
  for (int64_t i = std::max<int64_t>(0, skip); i < n; ++i) to[i] = element[i];
}

// Columns [begin, end) of kCount disparities from `d` on, and with kSteps > 1 also of those a vector's width further, and
// so on; `to` is the row of disparity 0. Of these the columns that lie as much further have the same partners: a
// vector of right serves kSteps products.
template <int kSteps, int kCount, class A>
PYOPS_HD void correlate_part(const A* left, const A* right, int64_t stride, int64_t channels, A scale, int64_t begin,
                             int64_t end, int64_t width, int64_t d, A* to, int64_t to_stride) {
  using V = Vector<A>;
  constexpr int64_t n = kLanes<A>;
  for (int s = 0; s < kSteps; ++s) {  // columns before have no partner at all
    const int64_t alone = std::min(std::min(end, width), d / n * n + s * n);
    for (int k = 0; k < kCount && begin < alone; ++k) {
      A* const row = to + (d + s * n + k) * to_stride;
      std::fill(row + begin, row + alone, A(0));
    }
  }
  for (int64_t x = std::max(begin - (kSteps - 1) * n, d / n * n); x < end; x += n) {
    V sum[kSteps][kCount];
#pragma GCC unroll 8
    for (int i = 0; i < kSteps * kCount; ++i) sum[i / kCount][i % kCount] = simd::splat(A(0));
    const A *l = left + x, *r = right + x - d;
    for (int64_t c = 0; c < channels; ++c, l += stride, r += stride) {
      V value[kSteps];
#pragma GCC unroll 8
      for (int s = 0; s < kSteps; ++s) value[s] = simd::load<V>(l + s * n);
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) {
        const V partner = simd::load<V>(r - k);
#pragma GCC unroll 8
        for (int s = 0; s < kSteps; ++s) sum[s][k] += value[s] * partner;
      }
    }
    const bool whole = x >= d + kCount - 1;
#pragma GCC unroll 8
    for (int s = 0; s < kSteps; ++s) {
      const int64_t at = x + s * n;
      if (at < begin || at >= end) continue;  // of another tile
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) {
        const V value = sum[s][k] * simd::splat(scale);
        A* const row = to + (d + s * n + k) * to_stride + at;
        if (whole && at + n <= width) simd::store(row, value);
        else store_part<A>(row, value, d + k - x, std::min(n, width - at));
      }
    }
  }
}

// to[d][x] for all disparities and columns.
template <class A>
PYOPS_HD void correlate_row(const A* left, const A* right, int64_t stride, int64_t channels, A scale, int64_t width,
                            int64_t disparities, A* to, int64_t to_stride) {
  constexpr int64_t n = kLanes<A>;
  for (int64_t begin = 0; begin < width; begin += kTile) {
    const int64_t end = std::min(width, begin + kTile);
    int64_t d = 0;
    for (; d + 3 * n <= disparities; d += 3 * n)
      for (int64_t k = 0; k < n; k += 4)
        correlate_part<3, 4>(left, right, stride, channels, scale, begin, end, width, d + k, to, to_stride);
    for (; d + 2 * n <= disparities; d += 2 * n)
      for (int64_t k = 0; k < n; k += 4)
        correlate_part<2, 4>(left, right, stride, channels, scale, begin, end, width, d + k, to, to_stride);
    for (; d + 4 <= disparities; d += 4)
      correlate_part<1, 4>(left, right, stride, channels, scale, begin, end, width, d, to, to_stride);
    for (; d < disparities; ++d)
      correlate_part<1, 1>(left, right, stride, channels, scale, begin, end, width, d, to, to_stride);
  }
}

// to[c] += sum over k of grad[k * grad_step] * other[c][k * other_step], for kCount channels and one vector of columns.
template <int kCount, class A>
PYOPS_HD void gather_part(const A* grad, int64_t grad_step, const A* other, int64_t other_step, int64_t disparities,
                          A* to, int64_t stride) {
  using V = Vector<A>;
  V sum[kCount];
#pragma GCC unroll 8
  for (int c = 0; c < kCount; ++c) sum[c] = simd::load<V>(to + c * stride);
  for (int64_t k = 0; k < disparities; ++k, grad += grad_step, other += other_step) {
    const V g = simd::load<V>(grad);
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) sum[c] += g * simd::load<V>(other + c * stride);
  }
#pragma GCC unroll 8
  for (int c = 0; c < kCount; ++c) simd::store(to + c * stride, sum[c]);
}

// The same for all channels and columns. Between a vector of columns and the next, the gradients stay in the cache.
template <class A>
PYOPS_HD void gather_row(const A* grad, int64_t grad_step, const A* other, int64_t other_step, int64_t disparities,
                         int64_t channels, int64_t width, A* to, int64_t stride) {
  for (int64_t x = 0; x < width; x += kLanes<A>) {
    int64_t c = 0;
    const auto take = [&](auto count) {
      gather_part<count.value>(grad + x, grad_step, other + c * stride + x, other_step, disparities,
                               to + c * stride + x, stride);
      c += count.value;
    };
    while (channels - c >= 8 && channels - c != 12) take(std::integral_constant<int, 8>());
    while (channels - c >= 6) take(std::integral_constant<int, 6>());
    while (channels - c >= 3) take(std::integral_constant<int, 3>());
    while (channels - c >= 1) take(std::integral_constant<int, 1>());
  }
}

// Divides columns by their length, and keeps by what they were multiplied.
template <class A>
PYOPS_HD void normalize_rows(A* features, int64_t stride, int64_t channels, int64_t width, A* inverse) {
  std::fill(inverse, inverse + width, A(0));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < width; ++x) inverse[x] += features[c * stride + x] * features[c * stride + x];
  for (int64_t x = 0; x < width; ++x) inverse[x] = inverse_length(inverse[x]);
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < width; ++x) features[c * stride + x] *= inverse[x];
}

// From the gradient of what normalize_rows gave to that of what it took.
template <class A>
PYOPS_HD void project_rows(A* grad, const A* features, int64_t stride, int64_t channels, int64_t width,
                           const A* inverse, A* along) {
  std::fill(along, along + width, A(0));
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < width; ++x) along[x] += features[c * stride + x] * grad[c * stride + x];
  for (int64_t c = 0; c < channels; ++c)
    for (int64_t x = 0; x < width; ++x) {
      const int64_t i = c * stride + x;
      grad[i] = (grad[i] - features[i] * along[x]) * inverse[x];
    }
}

}  // namespace pyops::groupwise::rows
