// The mathematics of a 3D lookup table, for host and device, without torch.
//
// A table holds N^3 vertices of three values. Its index is (blue, green, red), red fastest, so the eight corners of
// a cell lie at the cell's origin plus
//
//     corner k = (dr, dg, db) = (k & 1, k >> 1 & 1, k >> 2)   at   dr + N * dg + N * N * db
//
// A value is a weighted sum over corners, sum_k w_k L_k: 8 corners for trilinear, 4 for tetrahedral interpolation.
// Forward, gradient to the table (w_k * g) and gradient to the colour (slopes of the scalar field s_k = <L_k, g>)
// all follow from `Stencil`. A is the type of arithmetic: float, or double for gradcheck.
#pragma once

#include "../common/portable.h"

namespace pyops::lut3d {

constexpr int kMaxSize = 129;  // vertices an axis: cell numbers fit a byte
constexpr int kBuckets = 256;  // a power of two, so that v * kBuckets is exact

// Clamps to [0, 1] and keeps NaN.
template <class A>
PYOPS_HD A clamp_unit(A v) {
  return v < A(0) ? A(0) : (v > A(1) ? A(1) : v);
}

// Where one coordinate falls on its axis. `slope` is d fraction / d value: 0 where the value was clamped or is NaN.
template <class A>
struct Place {
  int cell;
  A fraction, slope;
};

// One axis of the lattice. Uniform when `vertices` is null. Otherwise `start[b]` is the last cell whose lower vertex
// is <= b / kBuckets: a bucket lookup and (nearly always at most one) step replace the binary search, exactly.
template <class A>
struct Axis {
  int size;
  const A* vertices;
  const uint8_t* start;
};

template <class A>
PYOPS_HD Place<A> locate(A value, const Axis<A>& axis) {
  const bool inside = value >= A(0) && value <= A(1);
  const A v = clamp_unit(value);
  const int last = axis.size - 2;
  if (axis.vertices == nullptr) {
    const A scale = A(axis.size - 1), t = v * scale;
    const int cell = t < scale ? int(t) : last;  // NaN takes the last cell too
    return {cell, t - A(cell), inside ? scale : A(0)};
  }
  int cell = v < A(1) ? axis.start[int(v * A(kBuckets))] : last;
  while (cell < last && axis.vertices[cell + 1] <= v) ++cell;
  const A lower = axis.vertices[cell], width = axis.vertices[cell + 1] - lower;
  const A fraction = width > A(0) ? (v - lower) / width : v - lower;  // an empty cell must not divide by zero
  return {cell, fraction, inside && width > A(0) ? A(1) / width : A(0)};
}

// Entry `bucket` of the table that `locate` starts from.
template <class A>
PYOPS_HD uint8_t first_cell(const A* vertices, int size, int bucket) {
  const A edge = A(bucket) / A(kBuckets);
  int cell = 0;
  while (cell < size - 2 && vertices[cell + 1] <= edge) ++cell;
  return uint8_t(cell);
}

template <class A, bool kTetrahedral>
struct Stencil;

template <class A>
struct Stencil<A, false> {
  static constexpr int kCorners = 8;
  int offset[8];
  A weight[8];
  A f[3];

  PYOPS_HD Stencil(const A (&fraction)[3], int size) : f{fraction[0], fraction[1], fraction[2]} {
    for (int k = 0; k < 8; ++k) {
      const int dr = k & 1, dg = k >> 1 & 1, db = k >> 2;
      offset[k] = dr + size * (dg + size * db);
      weight[k] = (dr ? f[0] : 1 - f[0]) * (dg ? f[1] : 1 - f[1]) * (db ? f[2] : 1 - f[2]);
    }
  }

  PYOPS_HD void slopes(const A (&s)[8], A (&d)[3]) const {
    const A r0 = s[1] - s[0], r1 = s[3] - s[2], r2 = s[5] - s[4], r3 = s[7] - s[6];  // edges along red
    const A e0 = s[0] + f[0] * r0, e1 = s[2] + f[0] * r1, e2 = s[4] + f[0] * r2, e3 = s[6] + f[0] * r3;
    const A r01 = r0 + f[1] * (r1 - r0), r23 = r2 + f[1] * (r3 - r2);
    d[0] = r01 + f[2] * (r23 - r01);
    d[1] = (e1 - e0) + f[2] * ((e3 - e2) - (e1 - e0));
    d[2] = (e2 + f[1] * (e3 - e2)) - (e0 + f[1] * (e1 - e0));
  }
};

// The six tetrahedra share the diagonal from corner (0,0,0) to (1,1,1); the path between them steps along the axes
// in the order of falling fraction. Ties go to red, then green.
template <class A>
struct Stencil<A, true> {
  static constexpr int kCorners = 4;
  int offset[4];
  A weight[4];
  int first, last;  // axis of the largest and of the smallest fraction

  PYOPS_HD Stencil(const A (&f)[3], int size) {
    const bool rg = f[0] >= f[1], gb = f[1] >= f[2], rb = f[0] >= f[2];
    first = rg && rb ? 0 : (!rg && gb ? 1 : 2);
    last = gb && rb ? 2 : (rg && !gb ? 1 : 0);
    const int middle = 3 - first - last;
    const int step_first = stride(first, size), step_last = stride(last, size);
    const A high = pick(f, first), mid = pick(f, middle), low = pick(f, last);
    offset[0] = 0, offset[1] = step_first, offset[3] = 1 + size + size * size, offset[2] = offset[3] - step_last;
    weight[0] = 1 - high, weight[1] = high - mid, weight[2] = mid - low, weight[3] = low;
  }

  PYOPS_HD void slopes(const A (&s)[4], A (&d)[3]) const {
    const A high = s[1] - s[0], mid = s[2] - s[1], low = s[3] - s[2];
    for (int axis = 0; axis < 3; ++axis) d[axis] = axis == first ? high : (axis == last ? low : mid);
  }

 private:
  static PYOPS_HD int stride(int axis, int size) { return axis == 0 ? 1 : (axis == 1 ? size : size * size); }
  static PYOPS_HD A pick(const A (&f)[3], int axis) { return axis == 0 ? f[0] : (axis == 1 ? f[1] : f[2]); }
};

}  // namespace pyops::lut3d
