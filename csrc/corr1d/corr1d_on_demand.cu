// Correlations along rows on demand, on CUDA. Right is averaged for every level first, in float32; a thread then has a
// pixel and a level, and neighbouring threads neighbouring pixels, so that reads of a channel run along rows.
//
// Backward: gradients to left by pixel and channel; to right by channel: a thread adds a whole row of it, in order.
#include "../lookup/lookup.h"
#include "corr1d.cuh"

namespace pyops::corr1d {
namespace {

constexpr int kTaps = 10;  // sums of a thread at a time: a radius of 4, in registers

template <class T>
struct View {
  const T* data;
  int64_t batch, channel, row, column;  // strides in elements
};

template <class T>
View<T> view_of(const Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct Sizes {
  int64_t batch, channels, height, width, columns, levels;
  int radius;
  float scale;

  explicit Sizes(const Problem& p)
      : batch(p.batch),
        channels(p.channels),
        height(p.height),
        width(p.width),
        columns(p.columns),
        levels(p.levels),
        radius(p.radius),
        scale(float(p.scale)) {}

  __device__ int64_t window() const { return 2 * radius + 1; }
  __device__ lookup::Place<float> place(float x, int64_t level) const {
    return {x / float(int64_t(1) << level), radius};
  }
  // Of the result's gradient to window entry d of a pixel; 0 outside of the window.
  template <class T>
  __device__ float grad_of(const T* grad, int64_t b, int64_t level, int64_t d, int64_t pixel) const {
    if (d < 0 || d >= window()) return 0.f;
    return scale * decode<T, float>(grad[((b * levels + level) * window() + d) * height * width + pixel]);
  }
  // Of tap j: what the correlation with it gets.
  template <class T>
  __device__ float factor(const T* grad, int64_t b, int64_t level, int64_t j, int64_t pixel, float fraction) const {
    return (1 - fraction) * grad_of(grad, b, level, j, pixel) + fraction * grad_of(grad, b, level, j - 1, pixel);
  }
};

// Level 0 is right itself, the others its means [B, C, H, V >> l].
template <class T>
struct Rights {
  View<T> first;
  Levels<const float> others;

  // A channel of a row of a level; neighbouring entries `step` apart.
  template <class F>
  __device__ void with_row(const Sizes& s, int64_t b, int64_t c, int64_t y, int64_t level, const F& f) const {
    if (level == 0) {
      const T* const row = first.data + b * first.batch + c * first.channel + y * first.row;
      f([&](int64_t t) { return decode<T, float>(row[t * first.column]); });
    } else {
      const int64_t n = s.columns >> level;
      const float* const row = others.data[level] + ((b * s.channels + c) * s.height + y) * n;
      f([&](int64_t t) { return row[t]; });
    }
  }
};

// Correlations of a pixel with `n` taps from `first` on, 0 outside; unscaled.
template <class T>
__device__ void correlate(const View<T>& left, const Rights<T>& right, const Sizes& s, int64_t b, int64_t y, int64_t x,
                          int64_t level, int64_t first, float (&sum)[kTaps]) {
  const int64_t taps = s.columns >> level;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) sum[k] = 0;
  const T* const pixel = left.data + b * left.batch + y * left.row + x * left.column;
  for (int64_t c = 0; c < s.channels; ++c) {
    const float l = decode<T, float>(pixel[c * left.channel]);
    right.with_row(s, b, c, y, level, [&](const auto& at) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k)
        if (uint64_t(first + k) < uint64_t(taps)) sum[k] += l * at(first + k);
    });
  }
}

// Calls f(b, y, x, level) for every pixel of every level.
template <class F>
__device__ __forceinline__ void for_pixels(const Sizes& s, const F& f) {
  const int64_t pixels = s.height * s.width;
  for (int64_t i = global_thread(); i < s.batch * s.levels * pixels; i += grid_threads()) {
    const int64_t pixel = i % pixels, level = i / pixels % s.levels, b = i / pixels / s.levels;
    f(b, pixel / s.width, pixel % s.width, level);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    look_up(const View<T> left, const Rights<T> right, const float* position, const Sizes s, T* out) {
  for_pixels(s, [&](int64_t b, int64_t y, int64_t x, int64_t level) {
    const int64_t plane = s.height * s.width, pixel = y * s.width + x;
    const auto place = s.place(position[b * plane + pixel], level);
    T* const to = out + (b * s.levels + level) * s.window() * plane + pixel;
    for (int64_t d = 0; d < s.window(); d += kTaps - 1) {  // the last tap is the first of the next turn
      float sum[kTaps];
      correlate(left, right, s, b, y, x, level, place.first + d, sum);
#pragma unroll
      for (int k = 0; k < kTaps - 1; ++k)
        if (d + k < s.window())
          to[(d + k) * plane] =
              encode<T, float>(s.scale * ((1 - place.fraction) * sum[k] + place.fraction * sum[k + 1]));
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    slope(const View<T> left, const Rights<T> right, const float* position, const T* grad, const Sizes s, float* out) {
  const int64_t plane = s.height * s.width;
  for (int64_t i = global_thread(); i < s.batch * plane; i += grid_threads()) {
    const int64_t b = i / plane, pixel = i % plane;
    float total = 0;
    for (int64_t level = 0; level < s.levels; ++level) {
      const auto place = s.place(position[i], level);
      float part = 0;
      for (int64_t d = 0; d < s.window(); d += kTaps - 1) {
        float sum[kTaps];
        correlate(left, right, s, b, pixel / s.width, pixel % s.width, level, place.first + d, sum);
#pragma unroll
        for (int k = 0; k < kTaps - 1; ++k) part += s.grad_of(grad, b, level, d + k, pixel) * (sum[k + 1] - sum[k]);
      }
      total += part / float(int64_t(1) << level);
    }
    out[i] = position[i] == position[i] ? total : 0.f;
  }
}

// A thread has a channel of a pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_left(const Rights<T> right, const float* position, const T* grad, const Sizes s, T* out) {
  const int64_t plane = s.height * s.width;
  for (int64_t i = global_thread(); i < s.batch * s.channels * plane; i += grid_threads()) {
    const int64_t b = i / plane / s.channels, c = i / plane % s.channels, pixel = i % plane;
    float sum = 0;
    for (int64_t level = 0; level < s.levels; ++level) {
      const auto place = s.place(position[b * plane + pixel], level);
      right.with_row(s, b, c, pixel / s.width, level, [&](const auto& at) {
        for (int64_t j = 0; j <= s.window(); ++j)
          if (uint64_t(place.first + j) < uint64_t(s.columns >> level))
            sum += s.factor(grad, b, level, j, pixel, place.fraction) * at(place.first + j);
      });
    }
    out[i] = encode<T, float>(sum);
  }
}

// A thread has a channel of a row of a level, which is zero before.
template <class T>
__global__ void __launch_bounds__(kThreads)
    scatter_right(const View<T> left, const float* position, const T* grad, const Sizes s, const Levels<float> to) {
  const int64_t plane = s.height * s.width;
  for (int64_t i = global_thread(); i < s.batch * s.levels * s.height * s.channels; i += grid_threads()) {
    const int64_t c = i % s.channels, y = i / s.channels % s.height, level = i / s.channels / s.height % s.levels;
    const int64_t b = i / s.channels / s.height / s.levels, n = s.columns >> level;
    float* const row = to.data[level] + ((b * s.channels + c) * s.height + y) * n;
    const T* const features = left.data + b * left.batch + c * left.channel + y * left.row;
    for (int64_t x = 0; x < s.width; ++x) {
      const int64_t pixel = y * s.width + x;
      const auto place = s.place(position[b * plane + pixel], level);
      const float l = decode<T, float>(features[x * left.column]);
      for (int64_t j = 0; j <= s.window(); ++j)
        if (uint64_t(place.first + j) < uint64_t(n))
          row[place.first + j] += s.factor(grad, b, level, j, pixel, place.fraction) * l;
    }
  }
}

// Memory for the levels of right from `first` on, each [B, C, H, V >> l], in float32.
std::vector<Tensor> new_levels(const Problem& p, const Tensor& like, int64_t first) {
  std::vector<Tensor> all;
  for (int64_t l = first; l < p.levels; ++l)
    all.push_back(new_tensor(like, {p.batch, p.channels, p.height, p.columns >> l}, ScalarType::Float));
  return all;
}

template <class T>
Rights<T> rights_of(const Problem& p, const Tensor& right, const std::vector<Tensor>& means, cudaStream_t stream) {
  Rights<T> rights{view_of<T>(right), {}};
  Levels<float> to{};
  for (int64_t l = 1; l < p.levels; ++l) {
    to.data[l] = static_cast<float*>(means[l - 1].mutable_data_ptr());
    rights.others.data[l] = to.data[l];
  }
  const Pairs pairs{p.batch * p.channels * p.height, p.columns, p.levels};
  if (p.levels > 1)
    launch("levels of right", pool_lines<T, float>, dim3(blocks_for(pairs.lines, kThreads / kWarp)), kThreads, 0,
           stream, static_cast<const T*>(right.const_data_ptr()), pairs, to);
  return rights;
}

Tensor forward(const Tensor& left, const Tensor& right, const Tensor& x, int64_t radius, int64_t levels,
               std::optional<double> scale) {
  const Problem p = check(left, right, x, radius, levels, scale);
  const Tensor out = new_tensor(left, p.result(), left.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(left);
  const Tensor at = contiguous_as(x, ScalarType::Float), dense = in_order(right);
  const auto means = new_levels(p, left, 1);
  dispatch_float(left.scalar_type(), "left", [&](auto zero) {
    using T = decltype(zero);
    const auto rights = rights_of<T>(p, dense, means, scope.stream());
    launch("corr1d_lookup_on_demand", look_up<T>, dim3(blocks_for(p.batch * p.levels * p.height * p.width, kThreads)),
           kThreads, 0, scope.stream(), view_of<T>(left), rights, static_cast<const float*>(at.const_data_ptr()),
           Sizes(p), static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& left, const Tensor& right,
                                            const Tensor& x, int64_t radius, int64_t levels,
                                            std::optional<double> scale, bool need_features, bool need_x) {
  const Problem p = check(left, right, x, radius, levels, scale);
  check_gradient(p, grad, left);
  const DeviceScope scope(left);
  const Tensor grad_left = new_gradient(left, need_features, false),
               grad_right = new_gradient(right, need_features, false);
  const Tensor to_x = new_tensor(x, need_x ? sizes_of(x) : std::vector<int64_t>{0}, ScalarType::Float);
  if (grad.numel() > 0 && (need_features || need_x)) {
    const Tensor at = contiguous_as(x, ScalarType::Float), dense = in_order(right), from = in_order(grad);
    const auto means = new_levels(p, left, 1);
    dispatch_float(left.scalar_type(), "left", [&](auto zero) {
      using T = decltype(zero);
      const cudaStream_t stream = scope.stream();
      const auto rights = rights_of<T>(p, dense, means, stream);
      const float* const places = static_cast<const float*>(at.const_data_ptr());
      const T* const grads = static_cast<const T*>(from.const_data_ptr());
      const int64_t pixels = p.batch * p.height * p.width;
      if (need_x)
        launch("the slope of a lookup on demand", slope<T>, dim3(blocks_for(pixels, kThreads)), kThreads, 0, stream,
               view_of<T>(left), rights, places, grads, Sizes(p), static_cast<float*>(to_x.mutable_data_ptr()));
      if (!need_features) return;
      launch("the gradient to left", gather_left<T>, dim3(blocks_for(pixels * p.channels, kThreads)), kThreads, 0,
             stream, rights, places, grads, Sizes(p), static_cast<T*>(grad_left.mutable_data_ptr()));
      std::vector<Tensor> sums = new_levels(p, left, 0);
      Levels<float> to{};
      Levels<const float> summed{};
      for (int64_t l = 0; l < p.levels; ++l) {
        torch::stable::zero_(sums[l]);
        to.data[l] = static_cast<float*>(sums[l].mutable_data_ptr());
        summed.data[l] = to.data[l];
      }
      launch("the gradient to right", scatter_right<T>,
             dim3(blocks_for(p.batch * p.levels * p.height * p.channels, kThreads)), kThreads, 0, stream,
             view_of<T>(left), places, grads, Sizes(p), to);
      const Pairs pairs{p.batch * p.channels * p.height, p.columns, p.levels};
      launch("levels of the gradient to right", spread_levels<float, T>,
             dim3(blocks_for(pairs.lines * pairs.columns, kThreads)), kThreads, 0, stream, summed, pairs,
             static_cast<T*>(grad_right.mutable_data_ptr()));
    });
  }
  return {grad_left, grad_right, contiguous_as(to_x, x.scalar_type())};
}

}  // namespace
}  // namespace pyops::corr1d

PYOPS_CUDA_KERNELS(m) {
  m.impl("corr1d_lookup_on_demand", TORCH_BOX(&pyops::corr1d::forward));
  m.impl("corr1d_lookup_on_demand_backward", TORCH_BOX(&pyops::corr1d::backward));
}
