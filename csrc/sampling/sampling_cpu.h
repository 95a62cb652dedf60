// What the forward and the backward of sampling share on the CPU.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "sampling_args.h"
#include "sampling_rows.h"

namespace pyops::sampling {

using torch::stable::parallel_for;

constexpr int64_t kChunk = 1024;   // numbers of a row that stay in the first-level cache with those of a few others
constexpr int64_t kGrain = 16384;  // numbers worth a thread

inline int64_t grain_of(int64_t numbers_each) {
  return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, numbers_each));
}

// Vertices, n + 1 of them, from n logits; and the gradient to the logits from that to the vertices.
template <class A>
void vertices_from_logits(const A* logits, int64_t n, A* vertices);
template <class A>
void logit_gradients(const double* grad, const A* logits, int64_t n, A* to);

// The plans of both axes for every image of a batch.
template <class A>
struct Plans {
  std::vector<AxisPlan<A>> x, y;

  // `x` and `y` are coordinates or logits, see check().
  Plans(const Problem& p, const Tensor& x_like, const Tensor& y_like, bool logits, bool slopes)
      : x(p.batch), y(p.batch) {
    plan(x, p, x_like, p.columns, p.x, logits, slopes), plan(y, p, y_like, p.rows, p.y, logits, slopes);
  }

 private:
  static void plan(std::vector<AxisPlan<A>>& to, const Problem& p, const Tensor& like, int count, const Axis& axis,
                   bool logits, bool slopes) {
    const Tensor values = contiguous_as(like, kDtype<A>);
    const A* from = values.template const_data_ptr<A>();
    parallel_for(0, p.batch, grain_of(4 * int64_t(count) + (p.antialias ? 8 * axis.size : 0)),
                 [&](int64_t b, int64_t end) {
                   std::vector<A> vertices(count);
                   for (; b < end; ++b) {
                     if (logits) {
                       vertices_from_logits(from + b * (count - 1), count - 1, vertices.data());
                       for (A& v : vertices) v = coordinate_of_vertex(v);
                     }
                     to[b] = AxisPlan<A>(logits ? vertices.data() : from + b * count, count, axis, p.antialias, slopes);
                   }
                 });
  }
};

// The pixels around the points of one row of samples. Of an image row they are gathered once for all rows of samples
// that follow each other and use it.
template <class A>
class CornerRows {
 public:
  explicit CornerRows(int columns) : columns_(columns), values_(5 * int64_t(columns)) {}

  Corners<A> get(const Image& image, const AxisPlan<A>& x, const AxisPlan<A>& y, int64_t b, int64_t c, int row) {
    Corners<A> corners;
    fetch(image, x, b, c, y.pixel(0)[row], corners.upper);
    fetch(image, x, b, c, y.pixel(1)[row], corners.lower);
    return corners;
  }

 private:
  void fetch(const Image& image, const AxisPlan<A>& x, int64_t b, int64_t c, int row, const A* (&to)[2]) {
    const int slot = row & 1;  // upper and lower row differ in it
    A* const own[2] = {values_.data() + int64_t(2 * slot) * columns_,
                       values_.data() + int64_t(2 * slot + 1) * columns_};
    if (row < 0) {
      to[0] = to[1] = values_.data() + 4 * int64_t(columns_);  // zeros
      return;
    }
    if (batch_[slot] != b || channel_[slot] != c || row_[slot] != row) {
      gather_row(image.dtype, image.at(b, c, row), image.column, {x.pixel(0), x.pixel(1)}, columns_, own);
      batch_[slot] = b, channel_[slot] = c, row_[slot] = row;
    }
    to[0] = own[0], to[1] = own[1];
  }

  int columns_;
  std::vector<A> values_;
  int64_t batch_[2] = {-1, -1}, channel_[2] = {-1, -1}, row_[2] = {-1, -1};
};

}  // namespace pyops::sampling
