// context_upsample on CUDA: a thread has a fine pixel, and the gradient to a coarse pixel as many threads as there are
// fine columns in it.
//
// 96x312 to 384x1248 in float32: the weights once, 17.3 MB, 1.9 MB of result, and 0.1 MB of coarse pixels from the
// caches: 5 us at 4 TB/s. 8.6 MFLOP are nothing beside it. Nine loads of a thread are on their way at once.
#include "../sampling/sampling_axes.cuh"
#include "disparity_args.h"

namespace pyops::disparity {
namespace {

using sampling::kAllLanes;
using sampling::kMostRows;
using sampling::kThreads;
using sampling::load_float;
using sampling::Picture;
using sampling::picture_of;
using sampling::store_pixel;
using sampling::with_pixel;

// blockIdx.x has `each` pixels of a row, blockIdx.y and .z the rows and images.
dim3 blocks_of(const Upsampling& p, int64_t columns, int64_t rows, int64_t each) {
  return dim3(blocks_for(columns, each), blocks_for(rows, 1, kMostRows), blocks_for(p.batch, 1, kMostRows));
}

// The nine coarse pixels around one, 0 beyond the image.
__device__ __forceinline__ void load_near(const Upsampling& p, const Picture& disparity, int64_t b, int row, int column,
                                          float (&near)[kNeighbours]) {
  with_pixel<float>(disparity.type, [&](auto zero) {
    using T = decltype(zero);
    const T* const data = static_cast<const T*>(disparity.at.data) + b * disparity.at.batch;
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      const int y = row + k / 3 - 1, x = column + k % 3 - 1;
      const bool exists = y >= 0 && y < p.height && x >= 0 && x < p.width;
      near[k] = exists ? decode<T, float>(data[y * disparity.at.row + x * disparity.at.column]) : 0.f;
    }
  });
}

template <class W>
__global__ void __launch_bounds__(kThreads)
    upsample(const Upsampling p, const Picture disparity, const Picture weights, const Picture out) {
  const int64_t x = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (x >= p.columns()) return;
  const int column = int(x) / p.scale;
  for (int64_t b = blockIdx.z; b < p.batch; b += gridDim.z)
    for (int64_t y = blockIdx.y; y < p.rows(); y += gridDim.y) {
      const W* const from =
          static_cast<const W*>(weights.at.data) + b * weights.at.batch + y * weights.at.row + x * weights.at.column;
      W weight[kNeighbours];
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) weight[k] = from[k * weights.at.channel];
      float near[kNeighbours], sum = 0.f;
      load_near(p, disparity, b, int(y) / p.scale, column, near);
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) sum += decode<W, float>(weight[k]) * near[k];
      store_pixel(out, b * out.at.batch + y * out.at.row + x, sum);
    }
}

template <class W>
__global__ void __launch_bounds__(kThreads)
    weight_gradients(const Upsampling p, const Picture grad, const Picture disparity, const Picture to) {
  const int64_t x = int64_t(blockIdx.x) * kThreads + threadIdx.x;
  if (x >= p.columns()) return;
  const int column = int(x) / p.scale;
  for (int64_t b = blockIdx.z; b < p.batch; b += gridDim.z)
    for (int64_t y = blockIdx.y; y < p.rows(); y += gridDim.y) {
      const float g = load_float<float>(grad, b * grad.at.batch + y * grad.at.row + x * grad.at.column);
      float near[kNeighbours];
      load_near(p, disparity, b, int(y) / p.scale, column, near);
      W* const out = static_cast<W*>(to.at.data) + b * to.at.batch + y * to.at.row + x * to.at.column;
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) out[k * to.at.channel] = encode<W, float>(g * near[k]);
    }
}

// A coarse pixel gathers from the fine pixels in it and around it, each weight once. `lanes`, a power of two up to 32,
// share its columns, so that a warp reads neighbours; they add up in an order of their own number alone.
template <class W>
__global__ void __launch_bounds__(kThreads)
    disparity_gradient(const Upsampling p, const Picture grad, const Picture weights, const Picture to, int lanes) {
  const int lane = int(threadIdx.x) % lanes;
  const int64_t x = int64_t(blockIdx.x) * (kThreads / lanes) + int(threadIdx.x) / lanes;
  for (int64_t b = blockIdx.z; b < p.batch; b += gridDim.z)
    for (int64_t y = blockIdx.y; y < p.height; y += gridDim.y) {
      float sum = 0.f;
      for (int64_t row = y - 1; row <= y + 1; ++row) {
        if (row < 0 || row >= p.height || x >= p.width) continue;
        const W* const planes =
            static_cast<const W*>(weights.at.data) + b * weights.at.batch + 3 * (y - row + 1) * weights.at.channel;
        for (int64_t fine = row * p.scale; fine < (row + 1) * p.scale; ++fine)
          for (int j = lane; j < p.scale; j += lanes) {
#pragma unroll
            for (int k = 0; k < 3; ++k) {
              const int64_t column = x + 1 - k, at = column * p.scale + j;
              if (column < 0 || column >= p.width) continue;
              const float g = load_float<float>(grad, b * grad.at.batch + fine * grad.at.row + at * grad.at.column);
              const W weight = planes[k * weights.at.channel + fine * weights.at.row + at * weights.at.column];
              sum += g * decode<W, float>(weight);
            }
          }
      }
      for (int offset = lanes / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
      if (lane == 0 && x < p.width) store_pixel(to, b * to.at.batch + y * to.at.row + x * to.at.column, sum);
    }
}

Tensor context_upsample(const Tensor& disparity, const Tensor& weights) {
  const Upsampling p = check_upsample(disparity, weights);
  check_no_double(p.as_double);
  const Tensor out = new_upsampled(p, disparity);
  if (out.numel() == 0) return out;
  const DeviceScope scope(disparity);
  dispatch_float(weights.scalar_type(), "weights", [&](auto zero) {
    launch("context_upsample", upsample<decltype(zero)>, blocks_of(p, p.columns(), p.rows(), kThreads), kThreads, 0,
           scope.stream(), p, picture_of(disparity), picture_of(weights), picture_of(out));
  });
  return out;
}

std::tuple<Tensor, Tensor> context_upsample_backward(const Tensor& grad, const Tensor& disparity, const Tensor& weights,
                                                     bool need_disparity, bool need_weights) {
  const Upsampling p = check_upsample(disparity, weights);
  check_no_double(p.as_double || is_double(grad));
  check_gradient(p, grad, disparity);
  const Tensor to_disparity = new_gradient(disparity, need_disparity), to_weights = new_gradient(weights, need_weights);
  if (grad.numel() == 0) return {to_disparity, to_weights};
  const DeviceScope scope(disparity);
  const Picture upstream = picture_of(grad);
  int lanes = 1;
  while (lanes < 32 && lanes < p.scale) lanes *= 2;
  dispatch_float(weights.scalar_type(), "weights", [&](auto zero) {
    using W = decltype(zero);
    if (need_weights)
      launch("context_upsample_backward (weights)", weight_gradients<W>, blocks_of(p, p.columns(), p.rows(), kThreads),
             kThreads, 0, scope.stream(), p, upstream, picture_of(disparity), picture_of(to_weights));
    if (need_disparity)
      launch("context_upsample_backward (disparity)", disparity_gradient<W>,
             blocks_of(p, p.width, p.height, kThreads / lanes), kThreads, 0, scope.stream(), p, upstream,
             picture_of(weights), picture_of(to_disparity), lanes);
  });
  return {to_disparity, to_weights};
}

}  // namespace
}  // namespace pyops::disparity

PYOPS_CUDA_KERNELS(m) {
  m.impl("context_upsample", TORCH_BOX(&pyops::disparity::context_upsample));
  m.impl("context_upsample_backward", TORCH_BOX(&pyops::disparity::context_upsample_backward));
}
