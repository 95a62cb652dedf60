// The mathematics of two steps of stereo matching, for host and device, without torch. A is the type of arithmetic.
//
//     context_upsample   Fine pixel (y, x) lies in coarse pixel (y / scale, x / scale) and is the sum of weight k times
//                        coarse neighbour k, k = 3 * (dy + 1) + dx + 1 for dy, dx from -1 to 1; 0 beyond the image.
//     disparity_warp     Pixel x of a row is the linear interpolation at x - disparity, held within the row.
#pragma once

#include "../common/portable.h"

namespace pyops::disparity {

constexpr int kNeighbours = 9;

// Where pixel x of a warped row comes from: (1 - fraction) * value[left] + fraction * value[left + 1], the latter being 0
// beyond the row, where the fraction is 0 too. With a NaN disparity the fraction is NaN, and no pixel is looked at.
template <class A>
struct Tap {
  int left;
  A fraction;
  bool inside;  // whether it moves with the disparity: d sample / d disparity = value[left] - value[left + 1]
};

template <class A>
PYOPS_HD Tap<A> tap_at(int x, A disparity, int width) {
  const A position = A(x) - disparity, last = A(width - 1);
  const bool inside = position > A(0) && position < last;
  const A held = inside ? position : (position >= last ? last : A(0));
  const int left = int(held);
  return {left, position == position ? held - A(left) : position, inside};
}

}  // namespace pyops::disparity
