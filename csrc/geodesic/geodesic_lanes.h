// Many sources at a time on the CPU: the numbers of a vertex for all of them lie side by side, a few vectors of lanes.
#pragma once

#include <algorithm>
#include <limits>

#include "../common/simd.h"
#include "geodesic.h"

namespace pyops::geodesic {
namespace {

using simd::kLanes;
using simd::Vector;

typedef int64_t i64x4 __attribute__((vector_size(32)));

template <class A>
struct Places;  // integers of the width of A
template <>
struct Places<float> {
  using type = int32_t;
  using Vector = simd::i32x8;
};
template <>
struct Places<double> {
  using type = int64_t;
  using Vector = i64x4;
};

PYOPS_HD i64x4 splat_place(int64_t x) {
  const i64x4 v = {x};
  return __builtin_shufflevector(v, v, 0, 0, 0, 0);
}
PYOPS_HD simd::i32x8 splat_place(int32_t x) { return simd::splat(x); }

// Whether a comparison holds in any lane.
PYOPS_HD bool any(simd::i32x8 mask) {
  const simd::i32x4 half =
      __builtin_shufflevector(mask, mask, 0, 1, 2, 3) | __builtin_shufflevector(mask, mask, 4, 5, 6, 7);
#if defined(__SSE2__)
  return __builtin_ia32_movmskps((simd::f32x4)half) != 0;
#else
  return (half[0] | half[1] | half[2] | half[3]) != 0;
#endif
}
PYOPS_HD bool any(i64x4 mask) { return any((simd::i32x8)mask); }

// Rows of N numbers, one for each lane, into lanes; the others are filled. `place` says where those of a vertex lie.
template <class A>
PYOPS_HD void to_lanes(const A* const* rows, const int32_t* place, int64_t lanes, int64_t n, int64_t width, A filling,
                       A* to) {
  constexpr int64_t step = kLanes<A>;
  for (int64_t lane = 0; lane < width; lane += step) {
    int64_t v = 0;
    for (; lane + step <= lanes && v + step <= n; v += step) {
      Vector<A> tile[step];
      for (int64_t k = 0; k < step; ++k) tile[k] = simd::load<Vector<A>>(rows[lane + k] + v);
      simd::transpose(tile);
      for (int64_t k = 0; k < step; ++k) simd::store(to + place[v + k] * width + lane, tile[k]);
    }
    for (; v < n; ++v)
      for (int64_t k = 0; k < step; ++k)
        to[place[v] * width + lane + k] = lane + k < lanes ? rows[lane + k][v] : filling;
  }
}

// The way back; what is `above` or more becomes infinite.
template <class A>
PYOPS_HD void from_lanes(const A* from, const int32_t* place, int64_t lanes, int64_t n, int64_t width, A above,
                         A* const* rows) {
  constexpr int64_t step = kLanes<A>;
  const Vector<A> none = simd::splat(std::numeric_limits<A>::infinity()), limit = simd::splat(above);
  int64_t v = 0;
  for (; v + step <= n; v += step)
    for (int64_t lane = 0; lane < lanes; lane += step) {
      Vector<A> tile[step];
      for (int64_t k = 0; k < step; ++k) {
        const auto x = simd::load<Vector<A>>(from + int64_t(place[v + k]) * width + lane);
        tile[k] = x < limit ? x : none;
      }
      simd::transpose(tile);
      for (int64_t k = 0; k < step && lane + k < lanes; ++k) simd::store(rows[lane + k] + v, tile[k]);
    }
  for (; v < n; ++v)
    for (int64_t lane = 0; lane < lanes; ++lane) {
      const A x = from[int64_t(place[v]) * width + lane];
      rows[lane][v] = x < above ? x : std::numeric_limits<A>::infinity();
    }
}

// Relaxes the edges that leave a vertex. Sums that are no less change nothing, so infinite ones need no care.
template <class A, int kVectors, bool kDense>
PYOPS_HD void relax(const int32_t* target, const A* weight, int64_t begin, int64_t end, int64_t v, A* lanes,
                    uint8_t* changed) {
  constexpr int64_t width = kVectors * kLanes<A>;
  Vector<A> from[kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < kVectors; ++k) from[k] = simd::load<Vector<A>>(lanes + v * width + k * kLanes<A>);
  for (int64_t e = begin; e < end; ++e) {
    A* const at = lanes + int64_t(target[e]) * width;
    const auto length = simd::splat(weight[e]);
    Vector<A> least[kVectors];
    auto lower = from[0] < from[0];
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) {
      const auto known = simd::load<Vector<A>>(at + k * kLanes<A>), found = from[k] + length;
      lower |= found < known;
      least[k] = found < known ? found : known;
    }
    // In a dense graph most edges change nothing; in a sparse one nobody can tell, and a store costs less than a guess.
    if (kDense) {
      if (!any(lower)) continue;
      changed[target[e]] = 1;
    } else {
      changed[target[e]] |= uint8_t(any(lower));
    }
#pragma GCC unroll 4
    for (int k = 0; k < kVectors; ++k) simd::store(at + k * kLanes<A>, least[k]);
  }
}

// Relaxes until nothing changes: in the order of the vertices and back, only those that have changed. `changed` holds a
// byte for each, up to a multiple of eight.
template <class A, int kVectors, bool kDense>
PYOPS_HD void sweep(const int64_t* start, const int32_t* target, const A* weight, int64_t vertices, A* lanes,
                    uint8_t* changed) {
  const int64_t words = ceil_div<int64_t>(vertices, 8);
  bool more = true;
  for (bool forward = true; more; forward = !forward) {
    more = false;
    for (int64_t i = 0; i < words; ++i) {
      const int64_t first = (forward ? i : words - 1 - i) * 8;
      uint64_t some;
      std::memcpy(&some, changed + first, sizeof some);
      if (!some) continue;
      more = true;
      for (int64_t k = 0; k < 8; ++k) {
        const int64_t v = first + (forward ? k : 7 - k);
        if (!changed[v]) continue;
        changed[v] = 0;
        relax<A, kVectors, kDense>(target, weight, start[v], start[v + 1], v, lanes, changed);
      }
    }
  }
}

}  // namespace
}  // namespace pyops::geodesic
