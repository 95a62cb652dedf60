// The mathematics of one axis of a separable grid, for host and device, without torch.
//
// A coordinate in [-1, 1] becomes a position in pixels, 0 being the centre of the first. A sample is a weighted sum of
// pixels next to each other, along each axis, and there are two kinds of them:
//
//     Point   the two pixels around the position (bilinear interpolation);
//     Cell    the mean of the bilinear interpolant from one bound to another (antialias), summed segment by segment.
//             Segment j is the straight piece between pixels j and j + 1; segments -1 and size - 1 lead out of the
//             image. A piece's mean is its value in the middle: no differences of large integrals are formed.
//
// A is the type of arithmetic: float, or double for gradcheck.
#pragma once

#include "../common/portable.h"

namespace pyops::sampling {

struct Axis {
  int size;  // pixels, from 1 to 2^30
  bool align_corners, border;
};

// Positions farther out than this are as good as infinite, and the square of it is still a float.
template <class A>
constexpr A kFar = A(1099511627776);  // 2^40

// ---- positions -------------------------------------------------------------------------------------------------------

// Where a coordinate lies, in pixels, within +-kFar; NaN stays.
template <class A>
PYOPS_HD A position_of(A x, const Axis& axis) {
  const A p = axis.align_corners ? (x + A(1)) / A(2) * A(axis.size - 1) : ((x + A(1)) * A(axis.size) - A(1)) / A(2);
  return p < -kFar<A> ? -kFar<A> : (p > kFar<A> ? kFar<A> : p);
}

// Gradient to a coordinate, from that to its position; none to what is NaN or as good as infinite.
template <class A>
PYOPS_HD A coordinate_gradient(A gradient, A position, const Axis& axis) {
  const bool near = position > -kFar<A> && position < kFar<A>;
  return near ? gradient * (A(axis.align_corners ? axis.size - 1 : axis.size) / A(2)) : A(0);
}

template <class A>
PYOPS_HD A floor_of(A v) {
#if defined(__CUDA_ARCH__)
  return floor(v);
#else
  return sizeof(A) == 4 ? A(__builtin_floorf(float(v))) : A(__builtin_floor(double(v)));
#endif
}

// The pixel at a whole number, moved into the image; 0 for NaN.
template <class A>
PYOPS_HD int clamped_pixel(A v, int size) {
  if (!(v > A(0))) return 0;
  return v < A(size - 1) ? int(v) : size - 1;
}

// ---- points ----------------------------------------------------------------------------------------------------------

// Sample = sum over the pixels that exist of weight * value. d weight[1] / d position = slope = -d weight[0]: 0 where
// `border` holds the position at the outermost pixel centres, and for NaN. NaN exists, and makes its sample NaN.
template <class A>
struct Point {
  int pixel[2];
  bool exists[2];
  A weight[2], slope;
};

template <class A>
PYOPS_HD Point<A> point_at(A position, const Axis& axis) {
  const A last = A(axis.size - 1);
  Point<A> point;
  point.slope = position == position ? A(1) : A(0);
  if (axis.border && !(position > A(0) && position < last)) {
    point.slope = A(0);
    position = position <= A(0) ? A(0) : (position >= last ? last : position);
  }
  position = position < A(-2) ? A(-2) : (position > A(axis.size) + A(1) ? A(axis.size) + A(1) : position);
  const A below = floor_of(position), fraction = position - below;
  for (int side = 0; side < 2; ++side) {
    const A pixel = below + A(side);
    point.exists[side] = !(pixel < A(0) || pixel > last);
    point.pixel[side] = clamped_pixel(pixel, axis.size);
    point.weight[side] = side ? fraction : A(1) - fraction;
  }
  return point;
}

// ---- cells -----------------------------------------------------------------------------------------------------------

// The cell of sample k of `count` reaches from bound k to bound k + 1.
template <class A>
PYOPS_HD A cell_bound(const A* positions, int count, int k) {
  return k == 0 ? positions[0] : (k == count ? positions[count - 1] : (positions[k - 1] + positions[k]) / A(2));
}

// How much of bound k's gradient position `k` or `k - 1` takes.
template <class A>
PYOPS_HD A bound_share(int count, int k) {
  return k == 0 || k == count ? A(1) : A(0.5);
}

// `first` to `last` are the pixels it looks at, at least one; those with weight 0 count where they are not finite.
template <class A>
struct Cell {
  A begin, end;
  int first, last;
  bool reversed;  // bound k + 1 is `begin`
};

template <class A>
PYOPS_HD Cell<A> cell_between(A from, A to, const Axis& axis) {
  const A sum = from + to;
  const bool reversed = from > to;
  Cell<A> cell{reversed ? to : from, reversed ? from : to, 0, 0, reversed};
  if (sum != sum) cell.begin = cell.end = sum;
  cell.first = clamped_pixel(floor_of(cell.begin), axis.size);
  const int below_end = clamped_pixel(floor_of(cell.end), axis.size);
  cell.last = below_end + 1 < axis.size ? below_end + 1 : axis.size - 1;
  return cell;
}

// The segments a cell may have a part of, first to last.
template <class A>
PYOPS_HD int first_segment(const Cell<A>& cell) {
  return cell.first == 0 ? -1 : cell.first;
}
template <class A>
PYOPS_HD int last_segment(const Cell<A>& cell, const Axis& axis) {
  return cell.last == axis.size - 1 ? axis.size - 1 : cell.last - 1;
}

// `share` of the cell lies in the segment; the middle of that part is `place` of the way from pixel j to pixel j + 1
// and `reach` of the way from the cell's begin to its end. So
//     mean             = sum_j share * ((1 - place) * v[j] + place * v[j + 1])
//     d mean / d end   = sum_j share * reach * (v[j + 1] - v[j])
//     d mean / d begin = sum_j share * (1 - reach) * (v[j + 1] - v[j])
// where v beyond the image is 0, or with `border` the outermost pixel.
template <class A>
struct Segment {
  A share, place, reach;
};

template <class A>
PYOPS_HD Segment<A> segment_of(const Cell<A>& cell, int j, const Axis& axis) {
  const bool leads_in = axis.border && j == -1, leads_out = axis.border && j == axis.size - 1;
  const A left = A(j), right = A(j + 1), width = cell.end - cell.begin;
  if (width == A(0)) {
    const A at = cell.begin;
    const bool inside = (leads_in || at >= left) && (leads_out || at < right);
    return {inside ? A(1) : A(0), leads_in ? A(1) : (leads_out || !inside ? A(0) : at - left), A(0.5)};
  }
  const A low = cell.begin < left && !leads_in ? left : cell.begin;
  const A high = cell.end > right && !leads_out ? right : cell.end;
  if (low >= high) return {A(0), A(0), A(0.5)};
  const A middle = (low + high) / A(2);
  // Differences to the bounds are exact, while the middle of a narrow cell may round to one of them.
  const A reach = ((low - cell.begin) + (high - cell.begin)) / A(2);
  return {(high - low) / width, leads_in ? A(1) : (leads_out ? A(0) : middle - left), reach / width};
}

// Of pixel i, `first` <= i <= `last`. Whoever walks a whole cell adds up segments instead, each once.
template <class A>
PYOPS_HD A cell_weight(const Cell<A>& cell, int i, const Axis& axis) {
  const Segment<A> before = segment_of(cell, i - 1, axis), after = segment_of(cell, i, axis);
  return before.share * before.place + after.share * (A(1) - after.place);
}

// ---- interval vertices -----------------------------------------------------------------------------------------------

// Vertex k of K, given exp(logit - greatest logit) summed over the first k logits and over all K - 1: from 0 to exactly
// 1. All are NaN when a logit is not finite.
template <class A>
PYOPS_HD A vertex_of(A sum, A total, int k, int count) {
  const A v = k == 0 ? A(0) : (k == count - 1 ? A(1) : sum / total);
  return v < A(1) ? v : A(1);
}

// Gradient to logit i: `share` is its softmax, `tail` the sum of the gradients to the vertices after it, the last one
// (which is constant) left out, and `mean` = sum_i share_i * tail_i.
template <class A>
PYOPS_HD A logit_gradient(A share, A tail, A mean) {
  return share * (tail - mean);
}

template <class A>
PYOPS_HD A coordinate_of_vertex(A vertex) {
  return A(2) * vertex - A(1);
}

}  // namespace pyops::sampling
