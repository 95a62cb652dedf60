// Vectors of pixels on the CPU, and where they find the taps of their lines.
#pragma once

#include <algorithm>

#include "../common/elements.h"
#include "lookup_args.h"

namespace pyops::lookup {
namespace {

using simd::kLanes;
using simd::Vector;

constexpr int kTiles = 32;  // vectors of a run: their taps of one line stay in the first-level cache

// Up to kTiles * kLanes<A> pixels of image `b` that follow each other, from `pixel` on.
template <class A>
struct Run {
  int64_t b, pixel, count, pixels, width;
  const A* position;

  PYOPS_HD int tiles() const { return int(ceil_div<int64_t>(count, kLanes<A>)); }
  PYOPS_HD int64_t pixel_of(int tile) const { return pixel + tile * kLanes<A>; }
  PYOPS_HD int64_t count_of(int tile) const { return std::min<int64_t>(kLanes<A>, count - tile * kLanes<A>); }
};

// The positions of a run, and its columns - positions; lanes beyond the last pixel repeat it.
template <class A>
struct Positions {
  Vector<A> plain[kTiles], mirrored[kTiles];

  PYOPS_HD explicit Positions(const Run<A>& run) {
    int64_t column = run.pixel % run.width;
    Vector<A> lanes;
    for (int k = 0; k < kLanes<A>; ++k) lanes[k] = A(k);
    for (int i = 0; i < run.tiles(); ++i) {
      if (run.count_of(i) == kLanes<A> && column + kLanes<A> < run.width) {
        plain[i] = simd::load<Vector<A>>(run.position + run.pixel_of(i));
        mirrored[i] = simd::splat(A(column)) + lanes - plain[i];
        column += kLanes<A>;
        continue;
      }
      A position[kLanes<A>], columns[kLanes<A>];
      const int64_t count = run.count_of(i);
      for (int64_t k = 0; k < kLanes<A>; ++k) {
        position[k] = run.position[run.pixel_of(i) + std::min(k, count - 1)], columns[k] = A(column);
        if (k < count - 1 || count == kLanes<A>) column = column + 1 < run.width ? column + 1 : 0;
      }
      plain[i] = simd::load<Vector<A>>(position);
      mirrored[i] = simd::load<Vector<A>>(columns) - plain[i];
    }
  }

  template <class T>
  PYOPS_HD Vector<A> of(const Lines<T>& lines, int tile) const {
    return (lines.mirrored ? mirrored : plain)[tile] * simd::splat(A(lines.inverse));
  }
};

template <class V>
using MaskOf = decltype(V() > V());

// What Place says: floor(p), 0 for NaN, and the rest.
template <class V>
PYOPS_HD MaskOf<V> split(V p, V& fraction) {
  using Mask = MaskOf<V>;
  using A = std::remove_reference_t<decltype(p[0])>;
  const V far = simd::splat(A(kFar)), near = p < -far ? -far : (p > far ? far : p);
  V below = __builtin_convertvector(__builtin_convertvector(near, Mask), V);  // towards 0, and then
  below = below > near ? below - A(1) : below;
  fraction = near - below;
  return near == near ? __builtin_convertvector(below, Mask) : Mask{};
}

// The taps of a vector of pixels on one kind of lines of one level.
template <class T, class A>
struct Taps {
  static constexpr int n = kLanes<A>;
  using Mask = MaskOf<Vector<A>>;
  Vector<A> fraction;
  Mask moved;  // the first tap is not the least
  int first[n], least;
  int64_t start[n], tap, taps;  // where a line's first tap lies, in elements
  int64_t row;                  // where the least of all first taps lies
  bool inside;                  // all taps of all pixels
  bool rows;  // neighbours lie side by side: tap j of all of them in row least + j, or of the moved ones in the next

  // What Place says of one pixel.
  PYOPS_HD void place(const Lines<T>& lines, const Run<A>& run, const Positions<A>& positions, int tile, int radius) {
    using V = Vector<A>;
    tap = lines.tap, taps = lines.taps;
    const int64_t pixel = run.pixel_of(tile), count = run.count_of(tile);
    const Mask whole = split(positions.of(lines, tile), fraction);
    int most = -(1 << 30) - radius;
    least = 1 << 30;
    for (int k = 0; k < n; ++k) {
      first[k] = int(whole[k]) - radius;
      least = std::min(least, first[k]), most = std::max(most, first[k]);
    }
    A shifts[n];
    for (int k = 0; k < n; ++k) {
      shifts[k] = A(first[k] - least);
      start[k] = (pixel + std::min<int64_t>(k, count - 1)) * lines.pixel + first[k] * tap;
    }
    moved = simd::load<V>(shifts) > A(0);
    row = pixel * lines.pixel + least * tap;
    inside = least >= 0 && most + 2 * radius + 2 + (most == least) <= taps;
    rows = lines.pixel == 1 && count == n && most - least <= 1;
    if (tap != 1) return;
    const T* const line = lines.data + run.b * lines.batch;
    for (int k = 0; k < n; ++k)
      __builtin_prefetch(line + start[k]), __builtin_prefetch(line + start[k] + 2 * radius + 1);
  }

  // ---- taps anywhere -------------------------------------------------------------------------------------------------

  PYOPS_HD bool has(int lane, int64_t j) const { return uint64_t(first[lane] + j) < uint64_t(taps); }

  PYOPS_HD Vector<A> read(const T* line, int64_t j) const {
    const auto at = [&](int k) { return decode<T, A>(line[start[k] + j * tap]); };
    const auto if_any = [&](int k) { return has(k, j) ? at(k) : A(0); };
    if constexpr (n == 8) {
      if (inside) return Vector<A>{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
      return Vector<A>{if_any(0), if_any(1), if_any(2), if_any(3), if_any(4), if_any(5), if_any(6), if_any(7)};
    } else {
      if (inside) return Vector<A>{at(0), at(1), at(2), at(3)};
      return Vector<A>{if_any(0), if_any(1), if_any(2), if_any(3)};
    }
  }

  PYOPS_HD void add(T* line, int64_t j, Vector<A> value, int64_t count) const {
    A element[n];
    simd::store(element, value);
    for (int k = 0; k < count; ++k) {
      if (!inside && !has(k, j)) continue;
      T& to = line[start[k] + j * tap];
      to = encode<T, A>(decode<T, A>(to) + element[k]);
    }
  }

  // ---- taps in rows --------------------------------------------------------------------------------------------------

  PYOPS_HD bool has_row(int64_t j) const { return uint64_t(least + j) < uint64_t(taps); }
  PYOPS_HD Vector<A> read_row(const T* line, int64_t j) const {
    return has_row(j) ? simd::load_elements<T, A>(line + row + j * tap) : simd::splat(A(0));
  }
  PYOPS_HD void add_row(T* line, int64_t j, Vector<A> value) const {
    T* const to = line + row + j * tap;
    if (has_row(j)) simd::store_elements<T, A>(to, simd::load_elements<T, A>(to) + value);
  }
};

// Windows in planes: where value d of the pixels of a tile lies.
template <class T, class A>
struct Windows {
  T* data;
  int64_t pixels;

  PYOPS_HD T* at(int64_t d, const Run<A>& run, int tile) const { return data + d * pixels + run.pixel_of(tile); }
};

}  // namespace
}  // namespace pyops::lookup
