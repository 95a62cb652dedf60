// Sampling on separable grids on the CPU: schemas and forward.
//
// Points (bilinear) gather what they need of two rows of the image, and nothing else of it. Cells (antialias) first sum
// whole rows of the image, then along the sum.
#include "sampling_cpu.h"

namespace pyops::sampling {
namespace {

template <class A>
void sample_points(const Problem& p, const Plans<A>& plans, const Tensor& image_tensor, const Tensor& out_tensor) {
  const Image image(image_tensor), out(out_tensor);
  // Channels of one pixel share cache lines, so they follow each other where they lie side by side.
  const bool channels_inside = image.interleaved();
  const bool direct = out.dtype == kDtype<A> && out.column == 1;
  parallel_for(0, p.batch * p.channels * p.rows, grain_of(4 * int64_t(p.columns)), [&](int64_t item, int64_t end) {
    CornerRows<A> corner_rows(p.columns);
    std::vector<A> line(direct ? 0 : p.columns);
    for (; item < end; ++item) {
      const int64_t lines = p.channels * p.rows, b = item / lines, rest = item % lines;
      const int64_t c = channels_inside ? rest % p.channels : rest / p.rows;
      const int row = int(channels_inside ? rest / p.channels : rest % p.rows);
      const AxisPlan<A>&x = plans.x[b], &y = plans.y[b];
      A* to = direct ? reinterpret_cast<A*>(out.at(b, c, row)) : line.data();
      blend_points(x, corner_rows.get(image, x, y, b, c, row), {y.side_weight(0)[row], y.side_weight(1)[row]}, to);
      if (!direct) store_row(out.dtype, to, p.columns, out.at(b, c, row), out.column);
    }
  });
}

template <class A>
void sample_cells(const Problem& p, const Plans<A>& plans, const Tensor& image_tensor, const Tensor& out_tensor) {
  const Lines<A> lines(image_tensor);
  const Image out(out_tensor);
  const int64_t width = lines.image.width, rows_each = 2 + lines.image.height / p.rows;
  parallel_for(0, p.batch * lines.groups * p.rows, grain_of(rows_each * lines.length), [&](int64_t item, int64_t end) {
    std::vector<A> sum(lines.length), plane(lines.inner > 1 ? width : 0), samples(p.columns), buffer(4 * kChunk);
    std::vector<double> wide(kChunk);
    std::vector<A> scratch;
    for (; item < end; ++item) {
      const int64_t b = item / (lines.groups * p.rows), group = item / p.rows % lines.groups;
      const int row = int(item % p.rows);
      const AxisPlan<A>&x = plans.x[b], &y = plans.y[b];
      scratch.resize(std::max(x.scratch_size(), y.scratch_size()));
      const Taps<A> taps = y.taps(row, scratch.data());
      for (int64_t first = 0; first < lines.length; first += kChunk) {
        const int64_t n = std::min(kChunk, lines.length - first);
        const auto get = [&](int64_t k, int slot) {
          return lines.get(b, group, taps.first + k, first, n, buffer.data() + slot * kChunk);
        };
        weighted_sum(taps.count, taps.weight, get, sum.data() + first, wide.data(), n);
      }
      for (int64_t c = 0; c < lines.inner; ++c) {
        if (lines.inner > 1) load_row(kDtype<A>, sum.data() + c, lines.inner, width, plane.data());
        sum_spans(x, lines.inner > 1 ? plane.data() : sum.data(), samples.data(), scratch.data());
        store_row(out.dtype, samples.data(), p.columns, out.at(b, group + c, row), out.column);
      }
    }
  });
}

Tensor forward(const Tensor& image, const Tensor& x, const Tensor& y, bool align_corners, bool border, bool antialias,
               bool as_float, bool logits) {
  const Problem p = check(image, x, y, align_corners, border, antialias, logits);
  const Tensor out = new_samples(p, image, as_float);
  if (out.numel() == 0) return out;
  const auto run = [&](auto arithmetic) {
    using A = decltype(arithmetic);
    const Plans<A> plans(p, x, y, logits, false);
    antialias ? sample_cells<A>(p, plans, image, out) : sample_points<A>(p, plans, image, out);
  };
  p.as_double ? run(double()) : run(float());
  return out;
}

Tensor separable_grid_sample(const Tensor& image, const Tensor& x, const Tensor& y, bool align_corners, bool border,
                             bool antialias, bool as_float) {
  return forward(image, x, y, align_corners, border, antialias, as_float, false);
}

Tensor adaptive_grid_sample(const Tensor& image, const Tensor& x_logits, const Tensor& y_logits, bool align_corners,
                            bool border, bool antialias, bool as_float) {
  return forward(image, x_logits, y_logits, align_corners, border, antialias, as_float, true);
}

}  // namespace
}  // namespace pyops::sampling

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "separable_grid_sample(Tensor image, Tensor x, Tensor y, bool align_corners, bool border, bool antialias, "
      "bool as_float) -> Tensor");
  m.def(
      "separable_grid_sample_backward(Tensor grad, Tensor image, Tensor x, Tensor y, bool align_corners, bool border, "
      "bool antialias, bool need_image, bool need_x, bool need_y) -> (Tensor, Tensor, Tensor)");
  m.def(
      "adaptive_grid_sample(Tensor image, Tensor x_logits, Tensor y_logits, bool align_corners, bool border, "
      "bool antialias, bool as_float) -> Tensor");
  m.def(
      "adaptive_grid_sample_backward(Tensor grad, Tensor image, Tensor x_logits, Tensor y_logits, bool align_corners, "
      "bool border, bool antialias, bool need_image, bool need_x, bool need_y) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("separable_grid_sample", TORCH_BOX(&pyops::sampling::separable_grid_sample));
  m.impl("adaptive_grid_sample", TORCH_BOX(&pyops::sampling::adaptive_grid_sample));
}
