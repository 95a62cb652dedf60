// Correlations of images on demand, on CUDA. Second is averaged for every level first, in float32; a thread then has a
// pixel, a level and a row of its window, and neighbouring threads neighbouring pixels, so that reads of a channel run
// along rows.
//
// Backward: the factor by which each tap counts is found first. Gradients to first by pixel and channel. To second by
// row: a warp owns a part of a row of a level, in 32 channels, and adds the pixels whose windows meet it, in order.
#include "corr2d.cuh"
#include "corr2d_on_demand.cuh"

namespace pyops::corr2d {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    look_up(const View<T> first, const Seconds<T> second, const float* coords, const Sizes s, T* out) {
  s.for_rows(s.window(), [&](int64_t b, int64_t l, int64_t j, int64_t pixel) {
    const auto x = s.place(coords, b, pixel, 0, l), y = s.place(coords, b, pixel, 1, l);
    for (int64_t i = 0; i < s.window(); i += kTaps - 1) {  // the last tap is the first of the next turn
      float upper[kTaps], lower[kTaps];
      correlate(first, second, s, b, pixel, l, y.first + j, x.first + i, upper, lower);
      const auto blend = [&](int k) { return (1 - y.fraction) * upper[k] + y.fraction * lower[k]; };
#pragma unroll
      for (int k = 0; k < kTaps - 1; ++k)
        if (i + k < s.window())
          out[s.channel(b, l, i + k, j, pixel)] =
              encode<T, float>(s.scale * ((1 - x.fraction) * blend(k) + x.fraction * blend(k + 1)));
    }
  });
}

// The share of a row of a window: `out` is [B, levels, window, 2, H * W].
template <class T>
__global__ void __launch_bounds__(kThreads)
    slope(const View<T> first, const Seconds<T> second, const float* coords, const T* grad, const Sizes s, float* out) {
  s.for_rows(s.window(), [&](int64_t b, int64_t l, int64_t j, int64_t pixel) {
    const auto x = s.place(coords, b, pixel, 0, l), y = s.place(coords, b, pixel, 1, l);
    float across = 0, down = 0;
    for (int64_t i = 0; i < s.window(); i += kTaps - 1) {
      float upper[kTaps], lower[kTaps];
      correlate(first, second, s, b, pixel, l, y.first + j, x.first + i, upper, lower);
      const auto blend = [&](int k) { return (1 - y.fraction) * upper[k] + y.fraction * lower[k]; };
#pragma unroll
      for (int k = 0; k < kTaps - 1; ++k) {
        const float g = s.grad_of(grad, b, l, i + k, j, pixel);
        across += g * (blend(k + 1) - blend(k));
        down += g * ((1 - x.fraction) * (lower[k] - upper[k]) + x.fraction * (lower[k + 1] - upper[k + 1]));
      }
    }
    const int64_t at = ((b * s.levels + l) * s.window() + j) * 2 * s.pixels() + pixel;
    out[at] = across / float(int64_t(1) << l), out[at + s.pixels()] = down / float(int64_t(1) << l);
  });
}

// Nothing moves with a coordinate that is NaN.
__global__ void __launch_bounds__(kThreads)
    sum_slopes(const float* shares, const float* coords, const Sizes s, float* out) {
  const int64_t axes = 2 * s.pixels(), each = s.levels * s.window();
  for (int64_t i = global_thread(); i < s.batch * axes; i += grid_threads()) {
    float sum = 0;
    for (int64_t k = 0; k < each; ++k) sum += shares[(i / axes * each + k) * axes + i % axes];
    out[i] = coords[i] == coords[i] ? sum : 0.f;
  }
}

// Of every tap of a window: what the correlation with it gets. `out` is [B, levels, taps, taps, H * W], row by row.
template <class T>
__global__ void __launch_bounds__(kThreads)
    find_factors(const float* coords, const T* grad, const Sizes s, float* out) {
  const int64_t taps = s.window() + 1;
  s.for_rows(taps, [&](int64_t b, int64_t l, int64_t i, int64_t pixel) {
    const auto x = s.place(coords, b, pixel, 0, l), y = s.place(coords, b, pixel, 1, l);
    float last = 0;
    for (int64_t j = 0; j < taps; ++j) {
      const float now =
          (1 - x.fraction) * s.grad_of(grad, b, l, i, j, pixel) + x.fraction * s.grad_of(grad, b, l, i - 1, j, pixel);
      out[s.factor(b, l, j, i, pixel)] = (1 - y.fraction) * now + y.fraction * last;
      last = now;
    }
  });
}

// A thread has a channel of a pixel.
template <class T>
__global__ void __launch_bounds__(kThreads)
    gather_first(const Seconds<T> second, const float* coords, const float* factors, const Sizes s, T* out) {
  const int64_t plane = s.pixels(), taps = s.window() + 1;
  for (int64_t i = global_thread(); i < s.batch * s.channels * plane; i += grid_threads()) {
    const int64_t b = i / plane / s.channels, c = i / plane % s.channels, pixel = i % plane;
    float sum = 0;
    for (int64_t l = 0; l < s.levels; ++l) {
      const auto x = s.place(coords, b, pixel, 0, l), y = s.place(coords, b, pixel, 1, l);
      for (int64_t j = 0; j < taps; ++j) {
        if (uint64_t(y.first + j) >= uint64_t(s.rows >> l)) continue;
        second.with_row(s, b, c, l, y.first + j, [&](const auto& at) {
          for (int64_t k = 0; k < taps; ++k)
            if (uint64_t(x.first + k) < uint64_t(s.columns >> l))
              sum += factors[s.factor(b, l, j, k, pixel)] * at(x.first + k);
        });
      }
    }
    out[i] = encode<T, float>(sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    scatter_second(const View<T> first, const float* coords, const float* factors, const Sizes s, const int64_t l,
                   float* out) {
  // No thread reads what another one writes.
  __shared__ float shared[kPart][kThreads];
  const int64_t rows = s.rows >> l, columns = s.columns >> l, taps = s.window() + 1;
  const int64_t parts = ceil_div<int64_t>(columns, kPart), bands = ceil_div<int64_t>(s.channels, kWarp);
  const int lane = int(threadIdx.x) % kWarp;
  for (int64_t i = global_thread() / kWarp; i < s.batch * bands * rows * parts; i += grid_threads() / kWarp) {
    const int64_t from = i % parts * kPart, y = i / parts % rows, b = i / parts / rows / bands;
    const int64_t c = i / parts / rows % bands * kWarp + lane, end = from + kPart < columns ? from + kPart : columns;
    if (c >= s.channels) continue;
    for (int64_t k = 0; k < end - from; ++k) shared[k][threadIdx.x] = 0;
    for (int64_t pixel = 0; pixel < s.pixels(); ++pixel) {
      const int64_t j = y - s.place(coords, b, pixel, 1, l).first;
      if (j < 0 || j >= taps) continue;
      const int64_t column = s.place(coords, b, pixel, 0, l).first;
      const int64_t begin = column > from ? column : from, stop = column + taps < end ? column + taps : end;
      if (begin >= stop) continue;
      const float f = first.at(b, c, pixel / s.width, pixel % s.width);
      for (int64_t k = begin; k < stop; ++k)
        shared[k - from][threadIdx.x] += factors[s.factor(b, l, j, k - column, pixel)] * f;
    }
    float* const to = out + ((b * s.channels + c) * rows + y) * columns;
    for (int64_t k = from; k < end; ++k) to[k] = shared[k - from][threadIdx.x];
  }
}

Tensor forward(const Tensor& first, const Tensor& second, const Tensor& coords, int64_t radius, int64_t levels,
               std::optional<double> scale) {
  const OnDemand p = check(first, second, coords, radius, levels, scale);
  const Tensor out = new_tensor(first, p.result(), first.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(first);
  const Tensor at = contiguous_as(coords, ScalarType::Float), dense = in_order(second);
  const auto means = new_pooled(second, levels, ScalarType::Float);
  dispatch_float(first.scalar_type(), "first", [&](auto zero) {
    using T = decltype(zero);
    launch("corr2d_lookup_on_demand", look_up<T>,
           dim3(blocks_for(p.batch * levels * p.window() * p.pixels(), kThreads)), kThreads, 0, scope.stream(),
           view_of<T>(first), seconds_of<T>(p, dense, means, scope.stream()),
           static_cast<const float*>(data_of<float>(at)), Sizes(p), data_of<T>(out));
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& first, const Tensor& second,
                                            const Tensor& coords, int64_t radius, int64_t levels,
                                            std::optional<double> scale, bool need_first, bool need_second,
                                            bool need_coords) {
  const OnDemand p = check(first, second, coords, radius, levels, scale);
  check_gradient(p.result(), grad, first);
  const DeviceScope scope(first);
  const Tensor at = contiguous_as(coords, ScalarType::Float), dense = in_order(second), from = in_order(grad);
  const Tensor grad_first = new_gradient(first, need_first, false),
               grad_second = new_gradient(second, need_second, false);
  const Tensor slopes = new_gradient(at, need_coords, false);
  if (grad.numel() > 0 && (need_first || need_second || need_coords)) {
    const auto means = new_pooled(second, levels, ScalarType::Float);
    dispatch_float(first.scalar_type(), "first", [&](auto zero) {
      using T = decltype(zero);
      const cudaStream_t stream = scope.stream();
      const auto own = view_of<T>(first);
      const auto others = seconds_of<T>(p, dense, means, stream);
      const Sizes sizes(p);
      const float* const places = data_of<float>(at);
      const T* const grads = data_of<T>(from);
      const int64_t windows = p.batch * levels * p.pixels(), taps = p.window() + 1;
      if (need_coords) {
        const Tensor shares = new_tensor(first, {p.batch, levels, p.window(), 2, p.height, p.width}, ScalarType::Float);
        launch("the slope of a lookup on demand", slope<T>, dim3(blocks_for(windows * p.window(), kThreads)), kThreads,
               0, stream, own, others, places, grads, sizes, data_of<float>(shares));
        launch("the sum of slopes", sum_slopes, dim3(blocks_for(slopes.numel(), kThreads)), kThreads, 0, stream,
               static_cast<const float*>(data_of<float>(shares)), places, sizes, data_of<float>(slopes));
      }
      if (!need_first && !need_second) return;
      const Tensor factors = new_tensor(first, {p.batch, levels, taps, taps, p.height, p.width}, ScalarType::Float);
      launch("the factors of taps", find_factors<T>, dim3(blocks_for(windows * taps, kThreads)), kThreads, 0, stream,
             places, grads, sizes, data_of<float>(factors));
      const float* const found = data_of<float>(factors);
      if (need_first)
        launch("the gradient to first", gather_first<T>, dim3(blocks_for(grad_first.numel(), kThreads)), kThreads, 0,
               stream, others, places, found, sizes, data_of<T>(grad_first));
      if (!need_second) return;
      const Tensor whole = new_tensor(second, sizes_of(second), ScalarType::Float);
      const auto sums = new_pooled(second, levels, ScalarType::Float);
      Pyramid<const float> summed{};
      for (int64_t l = 0; l < levels; ++l) {
        float* const to = data_of<float>(l == 0 ? whole : sums[l - 1]);
        const int64_t parts = ceil_div<int64_t>(p.columns >> l, kPart), bands = ceil_div<int64_t>(p.channels, kWarp);
        launch("the gradient to second", scatter_second<T>,
               dim3(blocks_for(p.batch * bands * (p.rows >> l) * parts, kThreads / kWarp)), kThreads, 0, stream, own,
               places, found, sizes, l, to);
        summed.data[l] = to;
      }
      const Planes planes{p.batch * p.channels, p.rows, p.columns, levels};
      launch("levels of the gradient to second", spread_planes<float, T>,
             dim3(blocks_for(grad_second.numel(), kThreads)), kThreads, 0, stream, summed, planes,
             data_of<T>(grad_second));
    });
  }
  return {grad_first, grad_second, contiguous_as(slopes, coords.scalar_type())};
}

}  // namespace
}  // namespace pyops::corr2d

PYOPS_CUDA_KERNELS(m) {
  m.impl("corr2d_lookup_on_demand", TORCH_BOX(&pyops::corr2d::forward));
  m.impl("corr2d_lookup_on_demand_backward", TORCH_BOX(&pyops::corr2d::backward));
}
