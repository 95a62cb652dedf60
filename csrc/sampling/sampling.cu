// Sampling on CUDA, forward: one launch. For points see sampling_points.cuh, for means over cells sampling_cells.cuh, for
// positions sampling_axes.cuh, for gradients sampling_backward.cu.
#include "sampling_cells.cuh"

namespace pyops::sampling {
namespace {

template <class A>
void run(const Problem& p, const Tensor& image, const Tensor& x, const Tensor& y, Kind kind, const Tensor& out,
         cudaStream_t stream) {
  const DeviceAxes<A> device(p, x, y, kind, true, stream);
  const Picture from = picture_of(image), to = picture_of(out);
  if (p.antialias) {
    CellGrid grid = divide_cells<A, false>(p, from);
    grid.words = reads_words(from, image, grid);
    launch("separable_grid_sample", cells<A, false>, blocks_of(grid, p), kThreads, 0, stream, device.axes, from, to,
           Partials<A>{}, grid, p.batch);
  } else {
    const PointGrid grid = divide_points(p, points_forward<A>, is_interleaved(to));
    launch("separable_grid_sample", points_forward<A>, blocks_of(grid, p), kThreads, 0, stream, device.axes, from, to,
           grid);
  }
}

Tensor sample(const Tensor& image, const Tensor& x, const Tensor& y, bool align_corners, bool border, bool antialias,
              bool as_float, Kind kind) {
  const Problem p = check(image, x, y, align_corners, border, antialias, kind == kLogits);
  const Tensor out = new_samples(p, image, as_float);
  if (out.numel() == 0) return out;
  const DeviceScope scope(image);
  with_arithmetic(p, [&](auto zero) { run<decltype(zero)>(p, image, x, y, kind, out, scope.stream()); });
  return out;
}

Tensor separable(const Tensor& image, const Tensor& x, const Tensor& y, bool align_corners, bool border, bool antialias,
                 bool as_float) {
  return sample(image, x, y, align_corners, border, antialias, as_float, kCoordinates);
}

Tensor adaptive(const Tensor& image, const Tensor& x_logits, const Tensor& y_logits, bool align_corners, bool border,
                bool antialias, bool as_float) {
  return sample(image, x_logits, y_logits, align_corners, border, antialias, as_float, kLogits);
}

Tensor vertices(const Tensor& logits) {
  check_logits(logits);
  const Tensor out = new_tensor(logits, vertex_sizes(logits), logits.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(logits);
  const Tensor rows = contiguous_as(logits, logits.scalar_type());
  const int64_t steps = logits.size(logits.dim() - 1), batch = logits.numel() / steps;
  const Vertices job{{rows.const_data_ptr(), rows.scalar_type(), kLogits, steps, 1, int(steps) + 1, {}},
                     out.mutable_data_ptr()};
  const auto kernel = is_double(logits) ? write_vertices<double> : write_vertices<float>;
  launch("interval_vertices", kernel, dim3(blocks_for(batch, 1)), kThreads, 0, scope.stream(), job, job,
         out.scalar_type(), batch);
  return out;
}

}  // namespace
}  // namespace pyops::sampling

PYOPS_CUDA_KERNELS(m) {
  m.impl("interval_vertices", TORCH_BOX(&pyops::sampling::vertices));
  m.impl("separable_grid_sample", TORCH_BOX(&pyops::sampling::separable));
  m.impl("adaptive_grid_sample", TORCH_BOX(&pyops::sampling::adaptive));
}
