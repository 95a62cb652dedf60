// The operators of the backward, for every backend: they differ in whose buffers `run_backward` adds to.
#pragma once

#include "lookup_args.h"

namespace pyops::lookup {
namespace {

// Adds to the buffers, where there are any, and returns the gradient to the position, where wanted. Of the backend.
Tensor run_backward(const Problem& p, const Tensor& grad, const std::vector<Tensor>* volumes,
                    const std::vector<Tensor>* pyramid, const Tensor& position, bool need_position);

std::vector<Tensor> backward(const Tensor& grad, std::vector<Tensor> volumes, std::vector<Tensor> pyramid,
                             const Tensor& position, int64_t radius, bool need_costs, bool need_position) {
  const Problem p = check(volumes, pyramid, position, radius);
  check_gradient(p, grad);
  const auto new_buffers = [&](const std::vector<Tensor>& costs) {
    std::vector<Tensor> buffers;
    for (const Tensor& t : costs) {
      buffers.push_back(new_tensor(t, need_costs ? sizes_of(t) : std::vector<int64_t>{0}, t.scalar_type()));
      torch::stable::zero_(buffers.back());
    }
    return buffers;
  };
  const std::vector<Tensor> to_volumes = new_buffers(p.volumes), to_pyramid = new_buffers(p.pyramid);
  const Tensor slope = run_backward(p, grad, need_costs ? &to_volumes : nullptr, &to_pyramid, position, need_position);
  std::vector<Tensor> grads = to_volumes;
  grads.insert(grads.end(), to_pyramid.begin(), to_pyramid.end());
  grads.push_back(slope);
  return grads;
}

Tensor accumulate(const Tensor& grad, std::vector<Tensor> to_volumes, std::vector<Tensor> to_pyramid,
                  std::vector<Tensor> volumes, std::vector<Tensor> pyramid, const Tensor& position, int64_t radius,
                  bool need_position) {
  const Problem p = check(volumes, pyramid, position, radius);
  check_gradient(p, grad);
  check_buffers(to_volumes, p.volumes), check_buffers(to_pyramid, p.pyramid);
  return run_backward(p, grad, &to_volumes, &to_pyramid, position, need_position);
}

}  // namespace
}  // namespace pyops::lookup
