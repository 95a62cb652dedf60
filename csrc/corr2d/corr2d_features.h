// Features of images for lookups on demand on the CPU: those of a place lie together, at every level, so that a
// correlation is a product of two vectors, and a gradient to features a sum of vectors.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "../common/columns.h"
#include "corr2d_args.h"

namespace pyops::corr2d {
namespace {

using namespace columns;

constexpr int kBand = 4;  // vectors of channels of second that a task of the backward owns

// Adds kCount vectors of the features of rows x columns places from `from` on, each by its factor.
template <int kCount, class A>
PYOPS_HD void gather(const A* factor, int64_t taps, const A* from, int64_t line, int64_t rows, int64_t columns,
                     int64_t stride, A* to) {
  constexpr int64_t n = kLanes<A>;
  Vector<A> sum[kCount];
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) sum[k] = simd::load<Vector<A>>(to + k * n);
  for (int64_t j = 0; j < rows; ++j)
    for (int64_t i = 0; i < columns; ++i) {
      const Vector<A> f = simd::splat(factor[j * taps + i]);
#pragma GCC unroll 8
      for (int k = 0; k < kCount; ++k) sum[k] += f * simd::load<Vector<A>>(from + j * line + i * stride + k * n);
    }
#pragma GCC unroll 8
  for (int k = 0; k < kCount; ++k) simd::store(to + k * n, sum[k]);
}

// Adds kCount vectors of features to those of rows x columns places from `to` on, each by its factor.
template <int kCount, class A>
PYOPS_HD void scatter(const A* factor, int64_t taps, const A* from, A* to, int64_t line, int64_t rows, int64_t columns,
                      int64_t stride) {
  constexpr int64_t n = kLanes<A>;
  Vector<A> v[kCount];
#pragma GCC unroll 4
  for (int k = 0; k < kCount; ++k) v[k] = simd::load<Vector<A>>(from + k * n);
  for (int64_t j = 0; j < rows; ++j)
    for (int64_t i = 0; i < columns; ++i) {
      const Vector<A> f = simd::splat(factor[j * taps + i]);
      A* const place = to + j * line + i * stride;
#pragma GCC unroll 4
      for (int k = 0; k < kCount; ++k) simd::store(place + k * n, simd::load<Vector<A>>(place + k * n) + f * v[k]);
    }
}

#define PYOPS_FEATURES(A)                                                                                           \
  PYOPS_MULTIVERSION void gather_all(const A* factor, int64_t taps, const A* from, int64_t line, int64_t rows,      \
                                     int64_t columns, int64_t stride, A* to) {                                      \
    constexpr int64_t n = kLanes<A>;                                                                                \
    int64_t c = 0;                                                                                                  \
    for (; c + 8 * n <= stride; c += 8 * n) gather<8>(factor, taps, from + c, line, rows, columns, stride, to + c); \
    for (; c < stride; c += n) gather<1>(factor, taps, from + c, line, rows, columns, stride, to + c);              \
  }                                                                                                                 \
  PYOPS_MULTIVERSION void scatter_band(const A* factor, int64_t taps, const A* from, A* to, int64_t line,           \
                                       int64_t rows, int64_t columns, int64_t stride, int64_t count) {              \
    constexpr int64_t n = kLanes<A>;                                                                                \
    if (count == kBand) return scatter<kBand>(factor, taps, from, to, line, rows, columns, stride);                 \
    for (int64_t k = 0; k < count; ++k)                                                                             \
      scatter<1>(factor, taps, from + k * n, to + k * n, line, rows, columns, stride);                              \
  }                                                                                                                 \
  /* Means of squares of places, of two rows. */                                                                    \
  PYOPS_MULTIVERSION void average(const A* upper, const A* lower, int64_t places, int64_t stride, A* to) {          \
    for (int64_t j = 0; j < places; ++j, upper += 2 * stride, lower += 2 * stride, to += stride)                    \
      for (int64_t c = 0; c < stride; ++c)                                                                          \
        to[c] = ((upper[c] + upper[c + stride]) + (lower[c] + lower[c + stride])) * A(0.25);                        \
  }                                                                                                                 \
  /* Adds a quarter of each place to two. */                                                                        \
  PYOPS_MULTIVERSION void repeat(const A* from, int64_t places, int64_t stride, A* to) {                            \
    for (int64_t j = 0; j < places; ++j, from += stride, to += 2 * stride)                                          \
      for (int64_t c = 0; c < stride; ++c) {                                                                        \
        const A quarter = from[c] * A(0.25);                                                                        \
        to[c] += quarter, to[c + stride] += quarter;                                                                \
      }                                                                                                             \
  }
PYOPS_FEATURES(float)
PYOPS_FEATURES(double)
#undef PYOPS_FEATURES

// Of a window, the part that exists: rows x columns taps from (row, column) on, the window's own coordinates.
struct Part {
  int64_t row, column, rows, columns;
};

// Features of one image of second by place, every level after the other; or sums for the gradient to them.
template <class A>
struct Features {
  Planes planes;
  int64_t stride;
  std::vector<int64_t> start;  // of each level, in elements
  Tensor memory;

  Features(const OnDemand& p, const Tensor& like)
      : planes{1, p.rows, p.columns, p.levels}, stride(ceil_div(p.channels, kLanes<A>) * kLanes<A>), memory(like) {
    int64_t all = 0;
    for (int64_t l = 0; l < p.levels; ++l) {
      start.push_back(all * stride);
      all += planes.entries(l);
    }
    memory = new_tensor(like, {all * stride}, sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float);
  }

  int64_t rows(int64_t l) const { return planes.rows >> l; }
  int64_t columns(int64_t l) const { return planes.columns >> l; }
  int64_t line(int64_t l) const { return columns(l) * stride; }
  A* row(int64_t l, int64_t y) const { return data_of<A>(memory) + start[l] + y * line(l); }

  // Calls f(y) for every row of a level.
  template <class F>
  void for_rows(int64_t l, const F& f) const {
    torch::stable::parallel_for(0, rows(l), 1, [&](int64_t y, int64_t end) {
      for (; y < end; ++y) f(y);
    });
  }

  template <class T>
  void load(const Pixels<T>& t, int64_t b, int64_t channels) const {
    for_rows(0, [&](int64_t y) {
      turn(t.data + b * t.batch + y * t.row, t.channel, t.column, channels, columns(0), stride, row(0, y));
    });
    for (int64_t l = 1; l < planes.levels; ++l)
      for_rows(l, [&](int64_t y) { average(row(l - 1, 2 * y), row(l - 1, 2 * y + 1), columns(l), stride, row(l, y)); });
  }

  void clear() const { torch::stable::zero_(const_cast<Tensor&>(memory)); }

  // Sums of all levels as one of level 0, which goes to image b of `to` [B, C, U, V].
  template <class T>
  void store(const Tensor& to, int64_t b, int64_t channels) const {
    for (int64_t l = planes.levels - 1; l > 0; --l)
      for_rows(l, [&](int64_t y) {
        repeat(row(l, y), columns(l), stride, row(l - 1, 2 * y));
        repeat(row(l, y), columns(l), stride, row(l - 1, 2 * y + 1));
      });
    const int64_t entries = planes.entries(0);
    for_rows(0, [&](int64_t y) {
      turn_back(row(0, y), stride, channels, columns(0), data_of<T>(to) + b * channels * entries + y * columns(0),
                entries);
    });
  }

  // What there is of a window of `taps` x `taps` from (y, x) on.
  Part part(int64_t l, int y, int x, int64_t taps) const {
    int64_t top, bottom, left, right;
    clip(y, taps, rows(l), top, bottom), clip(x, taps, columns(l), left, right);
    return {top, left, left < right ? bottom - top : 0, right - left};
  }

  // Products of a pixel's features with a window, row by row, 0 outside.
  void correlate(int64_t l, const A* pixel, int y, int x, int64_t taps, A* to) const {
    const Part p = part(l, y, x, taps);
    std::fill(to, to + taps * taps, A(0));
    for (int64_t j = p.row; j < p.row + p.rows; ++j)
      multiply_all(pixel, row(l, y + j) + (x + p.column) * stride, stride, p.columns, to + j * taps + p.column);
  }
};

}  // namespace
}  // namespace pyops::corr2d
