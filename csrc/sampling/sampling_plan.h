// What every sample along one axis of one image looks at: found out once, then used by every row (CPU).
#pragma once

#include <algorithm>
#include <vector>

#include "sampling.h"

namespace pyops::sampling {

// A sample is the sum of weight[i] * pixel[first + i], i < count. Moving the bounds of a cell changes it by the sums of
// begin[s] and end[s] times the step from pixel j to pixel j + 1, where j = segment + s, s < segments.
template <class A>
struct Taps {
  int first, count, segment, segments;
  const A *weight, *begin, *end;
};

template <class A>
class AxisPlan {
 public:
  AxisPlan() = default;
  // `slopes`: whether begin and end of the taps of cells are wanted too.
  AxisPlan(const A* coordinates, int count, const Axis& axis, bool antialias, bool slopes)
      : axis_(axis), count_(count), antialias_(antialias), slopes_(slopes && antialias) {
    position_.resize(count), first_.resize(count), last_.resize(count);
    for (int k = 0; k < count; ++k) position_[k] = position_of(coordinates[k], axis);
    antialias ? plan_cells() : plan_points();
    for (int k = 0; k < count; ++k) total_ += last_[k] - first_[k] + 1;
  }

  const Axis& axis() const { return axis_; }
  int count() const { return count_; }
  bool antialias() const { return antialias_; }
  A position(int k) const { return position_[k]; }
  int first(int k) const { return first_[k]; }  // first > last: the sample looks at no pixel
  int last(int k) const { return last_[k]; }
  // Whether a pixel belongs to so many samples that sums over them need more than float.
  bool crowded() const { return total_ > 16 * int64_t(axis_.size) + count_; }

  // Of points, by side: the pixel, -1 where there is none, and its weight.
  const int* pixel(int side) const { return pixel_[side].data(); }
  const A* side_weight(int side) const { return side_weight_[side].data(); }
  A slope(int k) const { return slope_[k]; }

  Cell<A> cell(int k) const {
    return cell_between(cell_bound(position_.data(), count_, k), cell_bound(position_.data(), count_, k + 1), axis_);
  }

  A weight(int k, int i) const {
    if (!antialias_) return side_weight_[i != pixel_[0][k]][k];
    return stored_ ? weight_[start_[k] + i - first_[k]] : cell_weight(cell(k), i, axis_);
  }

  // `scratch` has room for scratch_size() numbers, and may hold what the taps point to until the next call.
  int64_t scratch_size() const { return stored_ ? 0 : 3 * (int64_t(axis_.size) + 1); }
  PYOPS_HD Taps<A> taps(int k, A* scratch) const {
    if (!stored_) return computed_taps(k, scratch);
    Taps<A> t{first_[k], last_[k] - first_[k] + 1, 0, 0, weight_.data() + start_[k], nullptr, nullptr};
    if (slopes_) {
      t.segment = t.first == 0 ? -1 : t.first;
      t.segments = (last_[k] == axis_.size - 1 ? last_[k] + 1 : last_[k]) - t.segment;
      t.begin = begin_.data() + start_[k] + k, t.end = end_.data() + start_[k] + k;
    }
    return t;
  }

 private:
  void plan_points() {
    for (int side = 0; side < 2; ++side) pixel_[side].resize(count_), side_weight_[side].resize(count_);
    slope_.resize(count_), start_.resize(count_), weight_.resize(2 * int64_t(count_));
    for (int k = 0; k < count_; ++k) {
      const Point<A> point = point_at(position_[k], axis_);
      for (int side = 0; side < 2; ++side) {
        pixel_[side][k] = point.exists[side] ? point.pixel[side] : -1;
        side_weight_[side][k] = weight_[2 * int64_t(k) + side] = point.weight[side];
      }
      slope_[k] = point.slope, start_[k] = 2 * int64_t(k) + !point.exists[0];
      first_[k] = point.exists[0] ? point.pixel[0] : point.pixel[1];
      last_[k] = point.exists[1] ? point.pixel[1] : (point.exists[0] ? point.pixel[0] : first_[k] - 1);
    }
  }

  // Cells of sorted positions share no more than a pixel or two with each other. The weights of others, which may be as
  // many as samples times pixels, are computed anew at each use.
  void plan_cells() {
    int64_t total = 0;
    start_.resize(count_);
    for (int k = 0; k < count_; ++k) {
      const Cell<A> c = cell(k);
      first_[k] = c.first, last_[k] = c.last, start_[k] = total;
      total += c.last - c.first + 1;
    }
    stored_ = total <= 4 * (int64_t(axis_.size) + count_);
    if (!stored_) return;
    weight_.resize(total);
    if (slopes_) begin_.resize(total + count_), end_.resize(total + count_);
    for (int k = 0; k < count_; ++k)
      fill(cell(k), weight_.data() + start_[k], slopes_ ? begin_.data() + start_[k] + k : nullptr,
           slopes_ ? end_.data() + start_[k] + k : nullptr);
  }

  void fill(const Cell<A>& c, A* weight, A* begin, A* end) const {
    std::fill(weight, weight + (c.last - c.first + 1), A(0));
    const int from = first_segment(c), to = last_segment(c, axis_);
    for (int j = from; j <= to; ++j) {
      const Segment<A> s = segment_of(c, j, axis_);
      if (j >= c.first) weight[j - c.first] += s.share * (A(1) - s.place);
      if (j < c.last) weight[j + 1 - c.first] += s.share * s.place;
      if (slopes_) begin[j - from] = s.share * (A(1) - s.reach), end[j - from] = s.share * s.reach;
    }
  }

  Taps<A> computed_taps(int k, A* scratch) const {
    const Cell<A> c = cell(k);
    A *begin = scratch + axis_.size + 1, *end = begin + axis_.size + 1;
    fill(c, scratch, begin, end);
    const int from = first_segment(c);
    return {c.first, c.last - c.first + 1, from, last_segment(c, axis_) - from + 1, scratch, begin, end};
  }

  Axis axis_{};
  int count_ = 0;
  bool antialias_ = false, slopes_ = false, stored_ = true;
  int64_t total_ = 0;
  std::vector<A> position_, slope_, weight_, begin_, end_, side_weight_[2];
  std::vector<int> first_, last_, pixel_[2];
  std::vector<int64_t> start_;  // of the weights of sample k; `begin` and `end` have one more each
};

}  // namespace pyops::sampling
