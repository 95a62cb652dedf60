// What the CPU kernels of motif do with a part of a row.
//
// Rows of features lie in memory that goes on before and after them, so that whole vectors and their neighbours can be
// read: zeros beyond the image, and a channel of zeros before the first and after the last.
#pragma once

#include <algorithm>
#include <type_traits>

#include "../common/simd.h"
#include "motif.h"

namespace pyops::motif::rows {

using simd::kLanes;
using simd::Vector;

template <class A>
constexpr int64_t whole(int64_t n) {
  return ceil_div(n, kLanes<A>) * kLanes<A>;
}

// ---- constant_highpass -----------------------------------------------------------------------------------------------

constexpr int kBundle = 8;  // rows that are added up before their sum meets the others

// sum (+)= rows[0] + ... + rows[count - 1]
template <int kCount, class A>
PYOPS_HD void add_bundle(A* sum, const A* const* rows, bool fresh, int64_t n) {
  using V = Vector<A>;
  int64_t x = 0;
  for (; x + kLanes<A> <= n; x += kLanes<A>) {
    V total = simd::load<V>(rows[0] + x);
#pragma GCC unroll 8
    for (int i = 1; i < kCount; ++i) total += simd::load<V>(rows[i] + x);
    simd::store(sum + x, fresh ? total : simd::load<V>(sum + x) + total);
  }
  for (; x < n; ++x) {
    A total = rows[0][x];
    for (int i = 1; i < kCount; ++i) total += rows[i][x];
    sum[x] = fresh ? total : sum[x] + total;
  }
}

template <class A>
PYOPS_HD void add_rows(A* sum, const A* const* rows, int count, bool fresh, int64_t n) {
  if (count == kBundle) return add_bundle<kBundle>(sum, rows, fresh, n);
  for (int i = 0; i < count; ++i) add_bundle<1>(sum, rows + i, fresh && i == 0, n);
}

// sum[x] = the sum over the channels of pixel x, which lie side by side.
template <class A>
PYOPS_HD void add_pixels(A* sum, const A* pixels, int64_t channels, int64_t width) {
  using V = Vector<A>;
  for (int64_t x = 0; x < width; ++x, pixels += channels) {
    V totals[4] = {};
    A rest = 0;
    int64_t c = 0;
    for (; c + 4 * kLanes<A> <= channels; c += 4 * kLanes<A>)
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) totals[i] += simd::load<V>(pixels + c + i * kLanes<A>);
    for (; c < channels; ++c) rest += pixels[c];
    const V total = (totals[0] + totals[1]) + (totals[2] + totals[3]);
    for (int i = 0; i < kLanes<A>; ++i) rest += total[i];
    sum[x] = rest;
  }
}

// to[x] = a ninth of the sum around x. `line` has room for n.
template <class A>
PYOPS_HD void box(const A* above, const A* at, const A* below, A* __restrict line, A* __restrict to, int64_t n) {
  for (int64_t x = 0; x < n; ++x) line[x] = above[x] + at[x] + below[x];
  const A ninth = A(1) / A(9);
  if (n == 1) {
    to[0] = line[0] * ninth;
    return;
  }
  to[0] = (line[0] + line[1]) * ninth;
  for (int64_t x = 1; x < n - 1; ++x) to[x] = (line[x - 1] + line[x] + line[x + 1]) * ninth;
  to[n - 1] = (line[n - 2] + line[n - 1]) * ninth;
}

template <class A>
PYOPS_HD void subtract(const A* from, const A* line, A* to, int64_t n) {
  using V = Vector<A>;
  int64_t x = 0;
  for (; x + kLanes<A> <= n; x += kLanes<A>) simd::store(to + x, simd::load<V>(from + x) - simd::load<V>(line + x));
  for (; x < n; ++x) to[x] = from[x] - line[x];
}

template <class A>
PYOPS_HD void subtract_pixels(const A* from, const A* line, A* to, int64_t channels, int64_t width) {
  using V = Vector<A>;
  for (int64_t x = 0; x < width; ++x, from += channels, to += channels) {
    const V value = simd::splat(line[x]);
    int64_t c = 0;
    for (; c + kLanes<A> <= channels; c += kLanes<A>) simd::store(to + c, simd::load<V>(from + c) - value);
    for (; c < channels; ++c) to[c] = from[c] - line[x];
  }
}

// ---- camp_conv -------------------------------------------------------------------------------------------------------

// taps[j][x] = sum over s of kernel[s][j] * motif[dy + 1][s][x + (shift ? dx : 0)], in whole vectors.
template <class A>
PYOPS_HD void make_taps(const A* const (&motif)[3], int64_t stride, int64_t count, const A* kernel, bool shift,
                        int64_t n, A* taps, int64_t tap_stride) {
  using V = Vector<A>;
  for (int64_t x = 0; x < n; x += kLanes<A>)
    for (int k = 0; k < kPlane; ++k) {
      const A* from = motif[k / 3] + x + (shift ? k % 3 - 1 : 0);
      V sum[3] = {};
      for (int64_t s = 0; s < count; ++s) {
        const V value = simd::load<V>(from + s * stride);
#pragma GCC unroll 3
        for (int dc = 0; dc < 3; ++dc) sum[dc] += simd::splat(kernel[s * kTaps + dc * kPlane + k]) * value;
      }
#pragma GCC unroll 3
      for (int dc = 0; dc < 3; ++dc) simd::store(taps + (dc * kPlane + k) * tap_stride + x, sum[dc]);
    }
}

// to[c][x] = sum over dc and k of taps[9 * dc + k][x] * feature[dy + 1][c + dc][x + dx], for kCount channels.
template <int kCount, class A>
PYOPS_HD void apply_taps(const A* const (&feature)[3], int64_t channel, const A* taps, int64_t tap_stride, int64_t n,
                         A* to, int64_t to_stride) {
  using V = Vector<A>;
  for (int64_t x = 0; x < n; x += kLanes<A>) {
    V sum[kCount];
#pragma GCC unroll 8
    for (int c = 0; c < kCount; ++c) sum[c] = simd::splat(A(0));
    for (int dy = 0; dy < 3; ++dy) {
      const A *from = feature[dy] + x - 1 - channel, *tap = taps + 3 * dy * tap_stride + x;
#pragma GCC unroll 3
      for (int dx = 0; dx < 3; ++dx, ++from, tap += tap_stride) {
        const V before = simd::load<V>(tap), at = simd::load<V>(tap + kPlane * tap_stride),
                after = simd::load<V>(tap + 2 * kPlane * tap_stride);
#pragma GCC unroll 10
        for (int c = -1; c <= kCount; ++c) {
          const V value = simd::load<V>(from + (c + 1) * channel);
          if (c + 1 < kCount) sum[c + 1 < kCount ? c + 1 : 0] += before * value;
          if (c >= 0 && c < kCount) sum[c >= 0 && c < kCount ? c : 0] += at * value;
          if (c > 0) sum[c > 0 ? c - 1 : 0] += after * value;
        }
      }
    }
    if (x + kLanes<A> <= n) {
#pragma GCC unroll 8
      for (int c = 0; c < kCount; ++c) simd::store(to + c * to_stride + x, sum[c]);
    } else {
      for (int c = 0; c < kCount; ++c) {
        alignas(32) A element[kLanes<A>];
        simd::store(element, sum[c]);
        for (int64_t i = 0; x + i < n; ++i) to[c * to_stride + x + i] = element[i];
      }
    }
  }
}

template <class A>
PYOPS_HD void apply_all_taps(const A* const (&feature)[3], int64_t channel, int64_t channels, const A* taps,
                             int64_t tap_stride, int64_t n, A* to, int64_t to_stride) {
  int64_t c = 0;
  const auto take = [&](auto count) {
    const A* const part[3] = {feature[0] + c * channel, feature[1] + c * channel, feature[2] + c * channel};
    apply_taps<count.value>(part, channel, taps, tap_stride, n, to + c * to_stride, to_stride);
    c += count.value;
  };
  while (channels - c >= 8) take(std::integral_constant<int, 8>());
  while (channels - c >= 4) take(std::integral_constant<int, 4>());
  while (channels - c >= 1) take(std::integral_constant<int, 1>());
}

// to[9 * dc + k][x] = sum over c of feature[c + dc][x] * grad[1 - dy][c][x - dx], in whole vectors.
template <class A>
PYOPS_HD void correlate(const A* feature, const A* const (&grad)[3], int64_t channel, int64_t channels, int64_t n,
                        A* to, int64_t to_stride) {
  using V = Vector<A>;
  for (int64_t x = 0; x < n; x += kLanes<A>)
    for (int dy = 0; dy < 3; ++dy) {
      V sum[3][3] = {};
      const A *f = feature + x, *g = grad[2 - dy] + x - 1;
      V before = simd::load<V>(f - channel), at = simd::load<V>(f);
      for (int64_t c = 0; c < channels; ++c, g += channel) {
        f += channel;
        const V after = simd::load<V>(f);
#pragma GCC unroll 3
        for (int dx = 0; dx < 3; ++dx) {
          const V value = simd::load<V>(g + 2 - dx);
          sum[0][dx] += before * value, sum[1][dx] += at * value, sum[2][dx] += after * value;
        }
        before = at, at = after;
      }
#pragma GCC unroll 9
      for (int i = 0; i < 9; ++i)
        simd::store(to + (i / 3 * kPlane + 3 * dy + i % 3) * to_stride + x, sum[i / 3][i % 3]);
    }
}

// to[x] = sum over the taps of kernel[j] * sums[j][x]
template <class A>
PYOPS_HD void contract_taps(const A* kernel, const A* sums, int64_t stride, A* to, int64_t n) {
  using V = Vector<A>;
  for (int64_t x = 0; x < n; x += kLanes<A>) {
    V total = {};
    for (int j = 0; j < kTaps; ++j) total += simd::splat(kernel[j]) * simd::load<V>(sums + j * stride + x);
    simd::store(to + x, total);
  }
}

// to[j] = sum over x of motif[x] * sums[j][x]
template <class A>
PYOPS_HD void contract_pixels(const A* motif, const A* sums, int64_t stride, int64_t n, double* to) {
  using V = Vector<A>;
  for (int j = 0; j < kTaps; ++j, sums += stride) {
    V total = {};
    double sum = 0;
    int64_t x = 0;
    for (; x + kLanes<A> <= n; x += kLanes<A>) total += simd::load<V>(motif + x) * simd::load<V>(sums + x);
    for (; x < n; ++x) sum += double(motif[x] * sums[x]);
    for (int i = 0; i < kLanes<A>; ++i) sum += double(total[i]);
    to[j] = sum;
  }
}

}  // namespace pyops::motif::rows
