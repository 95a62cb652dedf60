// Sampling on separable grids on the CPU: backward.
//
// Nothing is scattered between threads. Every row of the image's gradient gathers the rows of samples that look at it
// and is written once. Sums over samples, for the gradients to coordinates, are formed in parts that follow from the
// sizes alone, and then added in order: the result is the same for any number of threads.
#include <cstring>

#include "sampling_cpu.h"

namespace pyops::sampling {
namespace {

constexpr int64_t kParts = 32;  // of sums, enough to keep many threads busy

// The gradient that came in, contiguous [B, C, Ky, Kx].
template <class A>
struct Upstream {
  const A* data;
  int64_t channels, rows, columns;
  const A* row(int64_t b, int64_t c, int64_t k) const { return data + ((b * channels + c) * rows + k) * columns; }
};

// ---- image -----------------------------------------------------------------------------------------------------------

// The first and the last sample that looks at each pixel of an axis. Where positions are sorted, so do all between.
struct Touching {
  std::vector<int> first, last;

  template <class A>
  explicit Touching(const AxisPlan<A>& plan) : first(plan.axis().size, plan.count()), last(plan.axis().size, -1) {
    for (int k = 0; k < plan.count(); ++k)
      for (int i = plan.first(k); i <= plan.last(k); ++i) first[i] = std::min(first[i], k), last[i] = k;
  }
};

template <class A>
void image_gradient(const Problem& p, const Plans<A>& plans, const Upstream<A>& grad, const Tensor& result) {
  const Lines<A> lines(result);
  const Image& image = lines.image;
  std::vector<Touching> touching;
  for (const AxisPlan<A>& y : plans.y) touching.emplace_back(y);
  const int64_t items = p.batch * lines.groups * image.height;
  parallel_for(0, items, grain_of(lines.length), [&](int64_t item, int64_t end) {
    std::vector<A> line(lines.in_place() ? 0 : lines.length), values(p.columns), weights, scratch;
    std::vector<double> wide(p.columns), wide_line;
    std::vector<int> samples;
    for (; item < end; ++item) {
      const int64_t b = item / (lines.groups * image.height), group = item / image.height % lines.groups;
      const int row = int(item % image.height);
      const AxisPlan<A>&x = plans.x[b], &y = plans.y[b];
      samples.clear(), weights.clear();
      for (int k = touching[b].first[row]; k <= touching[b].last[row]; ++k)
        if (y.first(k) <= row && row <= y.last(k)) samples.push_back(k), weights.push_back(y.weight(k, row));
      if (samples.empty()) {
        std::memset(image.at(b, group, row), 0, lines.length * image.item);
        continue;
      }
      scratch.resize(x.scratch_size());
      A* to = lines.in_place() ? lines.address(b, group, row) : line.data();
      if (x.crowded()) wide_line.assign(lines.length, 0.0);
      else std::fill(to, to + lines.length, A(0));
      for (int64_t c = 0; c < lines.inner; ++c) {
        const auto upstream = [&](int64_t i, int) { return grad.row(b, group + c, samples[i]); };
        weighted_sum(int64_t(samples.size()), weights.data(), upstream, values.data(), wide.data(), p.columns);
        if (x.crowded()) spread_spans(x, values.data(), wide_line.data() + c, lines.inner, scratch.data());
        else spread_spans(x, values.data(), to + c, lines.inner, scratch.data());
      }
      if (x.crowded()) narrow_row(to, wide_line.data(), lines.length);
      if (!lines.in_place()) store_row(image.dtype, to, lines.length, image.at(b, group, row), 1);
    }
  });
}

// ---- coordinates -----------------------------------------------------------------------------------------------------

// Sums of gradients in double: of points to the position, of cells to begin and end.
struct Sums {
  double *x, *y;  // [columns] or [2, columns] of a part, [rows] or [2, rows] of an image
};

template <class A>
void add_points(const Problem& p, const Plans<A>& plans, const Image& image, const Upstream<A>& grad, int64_t b,
                int begin, int end, const Sums& sums) {
  const AxisPlan<A>&x = plans.x[b], &y = plans.y[b];
  CornerRows<A> corner_rows(p.columns);
  const int64_t count = p.channels * (end - begin);
  for (int64_t i = 0; i < count; ++i) {
    const int64_t c = image.interleaved() ? i % p.channels : i / (end - begin);
    const int row = begin + int(image.interleaved() ? i / p.channels : i % (end - begin));
    const Corners<A> corners = corner_rows.get(image, x, y, b, c, row);
    sums.y[row] +=
        add_point_slopes(x, corners, {y.side_weight(0)[row], y.side_weight(1)[row]}, grad.row(b, c, row), sums.x);
  }
}

// One line's share of the gradients of one row of cells.
template <class A>
class CellRow {
 public:
  CellRow(const Problem& p, const Lines<A>& lines)
      : lines_(lines),
        mean_(lines.length),
        spread_(lines.length),
        step_(lines.image.width + 1),
        buffer_(3 * kChunk),
        wide_(kChunk) {}

  void add(const AxisPlan<A>& x, const AxisPlan<A>& y, const Upstream<A>& grad, int64_t b, int64_t group, int row,
           const Sums& sums) {
    x_scratch_.resize(x.scratch_size()), y_scratch_.resize(y.scratch_size());
    const Taps<A> taps = y.taps(row, y_scratch_.data());
    spread(x, grad, b, group, row);
    const int64_t width = lines_.image.width, inner = lines_.inner;
    row_steps_.assign(taps.segments, 0.0);
    for (int64_t first = 0; first < lines_.length; first += kChunk)
      sum_chunk(taps, y.axis(), b, group, first, std::min(kChunk, lines_.length - first));
    for (int s = 0; s < taps.segments; ++s) {
      sums.y[row] += double(taps.begin[s]) * row_steps_[s];
      sums.y[y.count() + row] += double(taps.end[s]) * row_steps_[s];
    }
    for (int64_t c = 0; c < inner; ++c) {
      const A* from = mean_.data() + c;
      step_[0] = x.axis().border ? A(0) : from[0];
      for (int64_t i = 1; i < width; ++i) step_[i] = from[i * inner] - from[(i - 1) * inner];
      step_[width] = x.axis().border ? A(0) : -from[(width - 1) * inner];
      add_cell_slopes(x, step_.data(), grad.row(b, group + c, row), sums.x, sums.x + x.count(), x_scratch_.data());
    }
  }

 private:
  // The gradient of the mean of the rows, from that of the samples.
  void spread(const AxisPlan<A>& x, const Upstream<A>& grad, int64_t b, int64_t group, int row) {
    const int64_t inner = lines_.inner;
    std::fill(spread_.begin(), spread_.end(), A(0));
    if (x.crowded()) wide_spread_.assign(lines_.length, 0.0);
    for (int64_t c = 0; c < inner; ++c) {
      const A* from = grad.row(b, group + c, row);
      if (x.crowded()) spread_spans(x, from, wide_spread_.data() + c, inner, x_scratch_.data());
      else spread_spans(x, from, spread_.data() + c, inner, x_scratch_.data());
    }
    if (x.crowded()) narrow_row(spread_.data(), wide_spread_.data(), lines_.length);
  }

  // The mean of the rows, and for each segment what the step from row to row is worth.
  void sum_chunk(const Taps<A>& taps, const Axis& axis, int64_t b, int64_t group, int64_t first, int64_t n) {
    A *mean = mean_.data() + first, *zeros = buffer_.data() + 2 * kChunk;
    const A *worth = spread_.data() + first, *before = nullptr;
    for (int i = 0; i < taps.count; ++i) {
      const int row = taps.first + i, block = i % int(kBlockRows);
      const bool wide = is_long<A>(taps.count);
      const A* now = lines_.get(b, group, row, first, n, buffer_.data() + (i & 1) * kChunk);
      if (i == 0) before = axis.border || row > 0 ? now : zeros;
      const double step = add_row_and_step(mean, taps.weight[i], now, before, worth, i == 0 || (wide && block == 0), n);
      if (row > taps.segment) row_steps_[row - 1 - taps.segment] += step;
      if (wide && (block == kBlockRows - 1 || i == taps.count - 1)) widen_row(wide_.data(), mean, i < kBlockRows, n);
      before = now;
    }
    if (is_long<A>(taps.count)) narrow_row(mean, wide_.data(), n);
    // The step out of the image; with `border` there is none.
    if (taps.first + taps.count == axis.size && !axis.border) row_steps_.back() -= dot_row(before, worth, n);
  }

  Lines<A> lines_;
  std::vector<A> mean_, spread_, step_, buffer_, x_scratch_, y_scratch_;
  std::vector<double> wide_, wide_spread_, row_steps_;
};

// The gradient to the coordinates of one axis, in double, from sums over samples.
template <class A>
std::vector<double> coordinate_gradients(const AxisPlan<A>& plan, const double* sums) {
  const int count = plan.count();
  std::vector<double> found(count);
  for (int k = 0; k < count; ++k) {
    if (!plan.antialias()) {
      found[k] += plan.slope(k) != 0 ? sums[k] : 0.0;
      continue;
    }
    for (int side = 0; side < 2; ++side) {
      const int bound = k + side;
      const double gradient = bound_share<double>(count, bound) * sums[plan.cell(k).reversed == !side ? count + k : k];
      if (bound > 0) found[bound - 1] += gradient;
      if (bound < count) found[bound] += gradient;
    }
  }
  for (int k = 0; k < count; ++k) found[k] = coordinate_gradient(found[k], double(plan.position(k)), plan.axis());
  return found;
}

// Writes the gradient of image b's coordinates, or of the logits they are made of.
template <class A>
void store_gradient(const AxisPlan<A>& plan, const double* sums, const Tensor& like, bool logits, int64_t b,
                    const Tensor& result) {
  std::vector<double> found = coordinate_gradients(plan, sums);
  const int64_t n = result.size(1);
  char* to = static_cast<char*>(result.mutable_data_ptr()) + b * n * int64_t(result.element_size());
  if (logits) {
    for (double& g : found) g *= 2;  // a coordinate is twice its vertex, less one
    std::vector<A> gradient(n);
    logit_gradients(found.data(), like.const_data_ptr<A>() + b * n, n, gradient.data());
    store_row(result.scalar_type(), gradient.data(), n, to, 1);
  } else {
    store_row(result.scalar_type(), found.data(), n, to, 1);
  }
}

template <class A>
void add_rows_of_samples(const Problem& p, const Plans<A>& plans, const Lines<A>& lines, const Upstream<A>& grad,
                         int64_t b, int begin, int end, const Sums& sums) {
  if (!p.antialias) return add_points(p, plans, lines.image, grad, b, begin, end, sums);
  CellRow<A> cells(p, lines);
  for (int64_t group = 0; group < lines.groups; ++group)
    for (int row = begin; row < end; ++row) cells.add(plans.x[b], plans.y[b], grad, b, group, row, sums);
}

template <class A>
void grid_gradient(const Problem& p, const Plans<A>& plans, const Tensor& image, const Tensor& x, const Tensor& y,
                   const Upstream<A>& grad, bool logits, const Gradients& g) {
  const Lines<A> lines(image);
  const int kinds = p.antialias ? 2 : 1;
  const int rows_each = int(ceil_div<int64_t>(p.rows, std::max<int64_t>(1, kParts / p.batch)));
  const int64_t parts_each = ceil_div(p.rows, rows_each), parts = p.batch * parts_each;
  const int64_t x_size = int64_t(kinds) * p.columns, y_size = int64_t(kinds) * p.rows;
  std::vector<double> x_sums(parts * x_size), y_sums(p.batch * y_size);
  parallel_for(0, parts, 1, [&](int64_t part, int64_t end) {
    for (; part < end; ++part) {
      const int64_t b = part / parts_each;
      const int first = int(part % parts_each) * rows_each, last = std::min(first + rows_each, p.rows);
      add_rows_of_samples(p, plans, lines, grad, b, first, last,
                          {x_sums.data() + part * x_size, y_sums.data() + b * y_size});
    }
  });
  const Tensor x_values = contiguous_as(x, kDtype<A>), y_values = contiguous_as(y, kDtype<A>);
  parallel_for(0, p.batch, grain_of(8 * int64_t(p.columns + p.rows)), [&](int64_t b, int64_t end) {
    for (; b < end; ++b) {
      double* sums = x_sums.data() + b * parts_each * x_size;
      for (int64_t i = x_size; i < parts_each * x_size; ++i) sums[i % x_size] += sums[i];
      if (g.need_x) store_gradient(plans.x[b], sums, x_values, logits, b, g.x);
      if (g.need_y) store_gradient(plans.y[b], y_sums.data() + b * y_size, y_values, logits, b, g.y);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& image, const Tensor& x, const Tensor& y,
                                            bool align_corners, bool border, bool antialias, bool need_image,
                                            bool need_x, bool need_y, bool logits) {
  const Problem p = check(image, x, y, align_corners, border, antialias, logits);
  check_gradient(p, grad, image, need_image);
  Gradients g(image, x, y, need_image, need_x, need_y);
  if (g.zero_if_empty(grad)) return g.tuple();
  const auto run = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    const Tensor values = contiguous_as(grad, kDtype<A>);
    const Upstream<A> upstream{values.template const_data_ptr<A>(), p.channels, p.rows, p.columns};
    const Plans<A> plans(p, x, y, logits, need_x || need_y);
    if (need_image) image_gradient(p, plans, upstream, g.image);
    if (need_x || need_y) grid_gradient(p, plans, image, x, y, upstream, logits, g);
  };
  p.as_double ? run(double()) : run(float());
  return g.tuple();
}

std::tuple<Tensor, Tensor, Tensor> separable_grid_sample_backward(const Tensor& grad, const Tensor& image,
                                                                  const Tensor& x, const Tensor& y, bool align_corners,
                                                                  bool border, bool antialias, bool need_image,
                                                                  bool need_x, bool need_y) {
  return backward(grad, image, x, y, align_corners, border, antialias, need_image, need_x, need_y, false);
}

std::tuple<Tensor, Tensor, Tensor> adaptive_grid_sample_backward(const Tensor& grad, const Tensor& image,
                                                                 const Tensor& x_logits, const Tensor& y_logits,
                                                                 bool align_corners, bool border, bool antialias,
                                                                 bool need_image, bool need_x, bool need_y) {
  return backward(grad, image, x_logits, y_logits, align_corners, border, antialias, need_image, need_x, need_y, true);
}

}  // namespace
}  // namespace pyops::sampling

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("separable_grid_sample_backward", TORCH_BOX(&pyops::sampling::separable_grid_sample_backward));
  m.impl("adaptive_grid_sample_backward", TORCH_BOX(&pyops::sampling::adaptive_grid_sample_backward));
}
