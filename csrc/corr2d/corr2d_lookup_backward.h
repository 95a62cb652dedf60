// The operators of the backward of lookups, for every backend: they differ in whose buffers `run_backward` adds to.
#pragma once

#include "corr2d_args.h"

namespace pyops::corr2d {
namespace {

// Adds to the buffers, where there are any, and returns the gradient to coords, where wanted. Of the backend.
Tensor run_backward(const Problem& p, const Tensor& grad, const std::vector<Tensor>* buffers, const Tensor& coords,
                    bool need_coords);

std::vector<Tensor> backward(const Tensor& grad, std::vector<Tensor> pyramid, const Tensor& coords, int64_t radius,
                             bool need_pyramid, bool need_coords) {
  const Problem p = check(pyramid, coords, radius);
  check_gradient(p.result(), grad, p.pyramid[0]);
  std::vector<Tensor> grads;
  for (const Tensor& level : p.pyramid) {
    grads.push_back(new_gradient(level, need_pyramid, false));
    torch::stable::zero_(grads.back());
  }
  const Tensor slope = run_backward(p, grad, need_pyramid ? &grads : nullptr, coords, need_coords);
  grads.push_back(slope);
  return grads;
}

Tensor accumulate(const Tensor& grad, std::vector<Tensor> buffers, std::vector<Tensor> pyramid, const Tensor& coords,
                  int64_t radius, bool need_coords) {
  const Problem p = check(pyramid, coords, radius);
  check_gradient(p.result(), grad, p.pyramid[0]);
  check_buffers(buffers, p.pyramid);
  return run_backward(p, grad, &buffers, coords, need_coords);
}

}  // namespace
}  // namespace pyops::corr2d
