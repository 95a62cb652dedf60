// The levels of a correlation pyramid on CUDA; the products are torch's.
#include "corr2d.cuh"

namespace pyops::corr2d {
namespace {

std::vector<Tensor> pool(const Tensor& volume, int64_t levels) {
  const Planes p = check_planes(volume, levels);
  const DeviceScope scope(volume);
  const Tensor source = in_order(volume);
  const std::vector<Tensor> pooled = new_pooled(volume, levels, volume.scalar_type());
  if (levels == 1 || p.planes == 0) return pooled;
  dispatch_float(volume.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    Pyramid<T> to{};
    for (int64_t l = 1; l < levels; ++l) to.data[l] = data_of<T>(pooled[l - 1]);
    launch("pool_squares", pool_planes<T, T>, dim3(blocks_for(p.planes, 1)), kThreads, 0, scope.stream(),
           static_cast<const T*>(data_of<T>(source)), p, to);
  });
  return pooled;
}

Tensor spread(std::vector<Tensor> grads) {
  const Planes p = check_levels(grads);
  const DeviceScope scope(grads[0]);
  for (Tensor& grad : grads) grad = in_order(grad);
  const Tensor out = new_tensor(grads[0], sizes_of(grads[0]), grads[0].scalar_type());
  if (out.numel() == 0) return out;
  dispatch_float(out.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    Pyramid<const T> from{};
    for (int64_t l = 0; l < p.levels; ++l) from.data[l] = data_of<T>(grads[l]);
    launch("spread_squares", spread_planes<T, T>, dim3(blocks_for(out.numel(), kThreads)), kThreads, 0, scope.stream(),
           from, p, data_of<T>(out));
  });
  return out;
}

}  // namespace
}  // namespace pyops::corr2d

PYOPS_CUDA_KERNELS(m) {
  m.impl("pool_squares", TORCH_BOX(&pyops::corr2d::pool));
  m.impl("spread_squares", TORCH_BOX(&pyops::corr2d::spread));
}
