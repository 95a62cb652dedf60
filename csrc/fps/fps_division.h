// Divides the candidates of a cloud among the leaves of a k-d tree.
#pragma once

#include "fps_cloud.h"

namespace pyops::fps {
namespace {

// Splits at the median of the longest axis, such that all leaves but the last are full, and eight leaves with a common
// ancestor are neighbours. A histogram finds the median but for the few points of one bin, without a branch a point.
template <class A>
class Division {
 public:
  void divide(const A* points, int64_t dims, std::vector<int32_t>& place) {
    const int64_t count = int64_t(place.size());
    points_ = points, dims_ = dims;
    bins_.resize(count), same_.resize(count), right_.resize(count);
    Box box;
    for (int64_t d = 0; d < dims; ++d) box.least[d] = box.most[d] = points[int64_t(place[0]) * dims + d];
    for (const int32_t i : place)
      for (int64_t d = 0; d < dims; ++d) {
        const A x = points[int64_t(i) * dims + d];
        box.least[d] = std::min(box.least[d], x), box.most[d] = std::max(box.most[d], x);
      }
    split(place.data(), count, box);
  }

 private:
  static constexpr int64_t kBins = 256, kFewBins = 32, kFew = 1024;

  struct Box {
    A least[kMostTreeDims], most[kMostTreeDims];
  };

  const A* points_ = nullptr;
  int64_t dims_ = 0;
  std::vector<uint8_t> bins_;
  std::vector<int32_t> same_, right_;

  A key(int32_t i, int64_t axis) const { return points_[int64_t(i) * dims_ + axis]; }

  void split(int32_t* place, int64_t count, const Box& box) {
    const int64_t leaves = ceil_div(count, kLeaf);
    if (leaves < 2) return;
    int64_t left = 1;
    while (2 * left < leaves) left *= 2;
    left *= kLeaf;
    int64_t axis = 0;
    for (int64_t d = 1; d < dims_; ++d)
      if (box.most[d] - box.least[d] > box.most[axis] - box.least[axis]) axis = d;
    const A extent = box.most[axis] - box.least[axis];
    if (extent == A(0)) return;  // all at one place
    int64_t begin = 0, end = count;
    if (extent <= std::numeric_limits<A>::max())
      partition(place, count, left, axis, box.least[axis], extent, begin, end);
    std::nth_element(place + begin, place + left, place + end,
                     [&](int32_t a, int32_t b) { return key(a, axis) < key(b, axis); });
    Box lower = box, upper = box;
    lower.most[axis] = upper.least[axis] = key(place[left], axis);
    split(place, left, lower);
    split(place + left, count - left, upper);
  }

  // Puts the bins in order around the one that holds the place `left`: what is in it comes to lie in [begin, end).
  void partition(int32_t* place, int64_t count, int64_t left, int64_t axis, A least, A extent, int64_t& begin,
                 int64_t& end) {
    const int64_t bins = count > kFew ? kBins : kFewBins;
    const A scale = A(bins) / extent;
    if (!(scale <= std::numeric_limits<A>::max())) return;
    int32_t counts[kBins] = {};
    for (int64_t i = 0; i < count; ++i) {
      const A at = (key(place[i], axis) - least) * scale;
      const int32_t bin = at < A(bins - 1) ? int32_t(at) : int32_t(bins - 1);
      bins_[i] = uint8_t(bin), ++counts[bin];
    }
    int32_t middle = 0;
    for (begin = 0; begin + counts[middle] <= left; ++middle) begin += counts[middle];
    end = begin + counts[middle];
    int64_t lower = 0, same = 0, upper = 0;
    for (int64_t i = 0; i < count; ++i) {
      const int32_t of = place[i], bin = bins_[i];
      place[lower] = same_[same] = right_[upper] = of;
      lower += bin<middle, same += bin == middle, upper += bin> middle;
    }
    std::copy_n(same_.data(), same, place + begin);
    std::copy_n(right_.data(), upper, place + end);
  }
};

}  // namespace
}  // namespace pyops::fps
