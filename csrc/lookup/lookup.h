// The mathematics of lookups in volumes of costs, for host and device, without torch.
//
// A line holds the costs of one pixel: along the width of the other view, or over disparities. With p the place of the
// pixel on its line, f = p - floor(p) and v(t) the line, 0 outside of it,
//
//     out[d]          = (1 - f) v(floor(p) + d) + f v(floor(p) + d + 1),   d = -radius .. radius
//     grad v(t)      += (1 - f) grad[d] + f grad[d - 1],                   t = floor(p) + d
//     grad p          = sum over d of grad[d] (v(floor(p) + d + 1) - v(floor(p) + d))
//
// No two pixels share a line, so nothing that is summed into a line depends on an order of threads.
#pragma once

#include <cmath>

#include "../common/portable.h"

namespace pyops::lookup {

constexpr double kFar = 1073741824;  // taps; nothing is there, and an int holds it
constexpr int kMostLevels = 16, kMostRadius = 1 << 16;

// Where a pixel lies on a line: the first of its taps, floor(p) - radius, and f. NaN has a tap, and f is NaN.
template <class A>
struct Place {
  int first;
  A fraction;

  PYOPS_HD Place(A p, int radius) {
    const A near = p < A(-kFar) ? A(-kFar) : (p > A(kFar) ? A(kFar) : p);
    const A below = floor(near);
    fraction = near - below;
    first = (below == below ? int(below) : 0) - radius;
  }
};

}  // namespace pyops::lookup
