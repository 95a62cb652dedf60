// Windows of planes of correlations on the CPU: a vector holds neighbouring pixels. A row of taps is read pixel by pixel,
// as vectors of neighbouring taps, and then turned.
#pragma once

#include <algorithm>

#include "../common/elements.h"
#include "corr2d_args.h"

namespace pyops::corr2d {

using simd::kLanes;
using simd::Vector;

// `count` pixels of an image that follow each other, from `pixel` on; `x` and `y` are those of the image.
template <class A>
struct Run {
  int64_t b, pixel, count, pixels;
  const A *x, *y;

  PYOPS_HD int tiles() const { return int(ceil_div<int64_t>(count, kLanes<A>)); }
  PYOPS_HD int64_t pixel_of(int tile) const { return pixel + tile * kLanes<A>; }
  PYOPS_HD int64_t count_of(int tile) const { return std::min<int64_t>(kLanes<A>, count - tile * kLanes<A>); }
};

// The windows of a vector of pixels in one level; lanes beyond the last pixel repeat it.
template <class T, class A>
struct Windows {
  static constexpr int n = kLanes<A>;
  const T* data;
  int64_t entries;              // of all planes
  int64_t rows, columns, taps;  // of a plane; of a window, in either direction
  int column[n], row[n];        // the first tap
  int64_t start[n];             // where it lies, in elements, if it exists
  Vector<A> right, below;       // fractions
  int64_t pixel, count;         // the first pixel, and how many there are

  PYOPS_HD void place(const Level<T>& level, A inverse, const Run<A>& run, int tile, int radius) {
    data = level.data, entries = level.entries, rows = level.rows, columns = level.columns, taps = 2 * radius + 2;
    pixel = run.pixel_of(tile), count = run.count_of(tile);
    A across[n], down[n];
    for (int k = 0; k < n; ++k) {
      const int64_t i = pixel + (k < count ? k : count - 1);
      const Place<A> x(run.x[i] * inverse, radius), y(run.y[i] * inverse, radius);
      column[k] = x.first, across[k] = x.fraction, row[k] = y.first, down[k] = y.fraction;
      start[k] = (run.b * run.pixels + i) * rows * columns + y.first * columns + x.first;
    }
    right = simd::load<Vector<A>>(across), below = simd::load<Vector<A>>(down);
  }

  // Row j of all windows on its way to the first-level cache.
  PYOPS_HD void prefetch(int64_t j) const {
    for (int k = 0; k < n; ++k) {
      if (!has_row(k, j)) continue;
      const T* const line = data + start[k] + j * columns;
      __builtin_prefetch(line), __builtin_prefetch(line + taps - 1);
    }
  }

  PYOPS_HD bool has_row(int lane, int64_t j) const { return uint64_t(row[lane] + j) < uint64_t(rows); }
  PYOPS_HD bool has_vector(int lane, int64_t i) const {
    return column[lane] + i >= 0 && column[lane] + i + n <= columns;
  }
  // Of the taps from `i` on, at most a vector of them, those that exist.
  PYOPS_HD void limits(int lane, int64_t i, int64_t& begin, int64_t& end) const {
    begin = std::max<int64_t>(0, -(column[lane] + i));
    end = std::min<int64_t>({int64_t(n), taps - i, columns - column[lane] - i});
  }

  static PYOPS_HD Vector<A> indices() {
    constexpr A all[8] = {0, 1, 2, 3, 4, 5, 6, 7};
    return simd::load<Vector<A>>(all);
  }

  // Row j of the windows by tap, 0 outside of the planes. Some taps beyond the last one are written too.
  PYOPS_HD void read(int64_t j, A* to) const {
    for (int64_t i = 0; i < taps; i += n) {
      Vector<A> v[n];
      for (int k = 0; k < n; ++k) {
        const int64_t at = start[k] + j * columns + i;
        if (!has_row(k, j)) {
          v[k] = simd::splat(A(0));
        } else if (has_vector(k, i)) {
          v[k] = simd::load_elements<T, A>(data + at);
        } else if (at >= 0 && at + n <= entries) {  // with what lies around the row
          int64_t begin, end;
          limits(k, i, begin, end);
          const Vector<A> all = simd::load_elements<T, A>(data + at), index = indices();
          v[k] = index >= simd::splat(A(begin)) ? all : simd::splat(A(0));
          v[k] = index < simd::splat(A(end)) ? v[k] : simd::splat(A(0));
        } else {
          A element[n] = {};
          int64_t e, end;
          for (limits(k, i, e, end); e < end; ++e) element[e] = decode<T, A>(data[at + e]);
          v[k] = simd::load<Vector<A>>(element);
        }
      }
      simd::transpose(v);
      for (int k = 0; k < n; ++k) simd::store(to + (i + k) * n, v[k]);
    }
  }

  // Adds to row j what `from` holds by tap.
  PYOPS_HD void add(T* planes, int64_t j, const A* from) const {
    for (int64_t i = 0; i < taps; i += n) {
      Vector<A> v[n];
      for (int k = 0; k < n; ++k) v[k] = simd::load<Vector<A>>(from + (i + k) * n);
      simd::transpose(v);
      for (int k = 0; k < count; ++k) {
        if (!has_row(k, j)) continue;
        T* const to = planes + start[k] + j * columns + i;
        if (has_vector(k, i) && i + n <= taps) {
          simd::store_elements<T, A>(to, simd::load_elements<T, A>(to) + v[k]);
        } else {
          A element[n];
          simd::store(element, v[k]);
          int64_t e, end;
          for (limits(k, i, e, end); e < end; ++e) to[e] = encode<T, A>(decode<T, A>(to[e]) + element[e]);
        }
      }
    }
  }
};

}  // namespace pyops::corr2d
