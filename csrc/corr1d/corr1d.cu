// The levels of a correlation pyramid on CUDA; the products are torch's.
#include "corr1d.cuh"

namespace pyops::corr1d {
namespace {

std::vector<Tensor> pool(const Tensor& volume, int64_t levels) {
  const Pairs p = check_pairs(volume, levels);
  const DeviceScope scope(volume);
  const Tensor source = in_order(volume);
  std::vector<Tensor> pooled;
  for (int64_t l = 1; l < levels; ++l)
    pooled.push_back(new_tensor(volume, level_sizes(volume, l), volume.scalar_type()));
  if (levels == 1 || p.lines == 0) return pooled;
  dispatch_float(volume.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    Levels<T> to{};
    for (int64_t l = 1; l < levels; ++l) to.data[l] = static_cast<T*>(pooled[l - 1].mutable_data_ptr());
    launch("pool_pairs", pool_lines<T, T>, dim3(blocks_for(p.lines, kThreads / kWarp)), kThreads, 0, scope.stream(),
           static_cast<const T*>(source.const_data_ptr()), p, to);
  });
  return pooled;
}

Tensor spread(std::vector<Tensor> grads) {
  const Pairs p = check_levels(grads);
  const DeviceScope scope(grads[0]);
  for (Tensor& grad : grads) grad = in_order(grad);
  const Tensor out = new_tensor(grads[0], sizes_of(grads[0]), grads[0].scalar_type());
  if (out.numel() == 0) return out;
  dispatch_float(out.scalar_type(), "the volume", [&](auto zero) {
    using T = decltype(zero);
    Levels<const T> from{};
    for (int64_t l = 0; l < p.levels; ++l) from.data[l] = static_cast<const T*>(grads[l].const_data_ptr());
    launch("spread_pairs", spread_levels<T, T>, dim3(blocks_for(out.numel(), kThreads)), kThreads, 0, scope.stream(),
           from, p, static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

}  // namespace
}  // namespace pyops::corr1d

PYOPS_CUDA_KERNELS(m) {
  m.impl("pool_pairs", TORCH_BOX(&pyops::corr1d::pool));
  m.impl("spread_pairs", TORCH_BOX(&pyops::corr1d::spread));
}
