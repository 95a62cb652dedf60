// What kernels of lookups on demand read: features at every level, coordinates, gradients.
#pragma once

#include "corr2d.cuh"

namespace pyops::corr2d {

constexpr int kWarp = 32;
constexpr int kTaps = 10;  // sums of a thread at a time in either of two rows: a radius of 4, in registers
constexpr int kPart = 64;  // columns of second that a warp owns

template <class T>
struct View {
  const T* data;
  int64_t batch, channel, row, column;  // strides in elements

  __device__ float at(int64_t b, int64_t c, int64_t y, int64_t x) const {
    return decode<T, float>(data[b * batch + c * channel + y * row + x * column]);
  }
};

template <class T>
View<T> view_of(const Tensor& t) {
  return {static_cast<const T*>(t.const_data_ptr()), t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

struct Sizes {
  int64_t batch, channels, height, width, rows, columns, levels;
  int radius;
  float scale;

  explicit Sizes(const OnDemand& p)
      : batch(p.batch),
        channels(p.channels),
        height(p.height),
        width(p.width),
        rows(p.rows),
        columns(p.columns),
        levels(p.levels),
        radius(p.radius),
        scale(float(p.scale)) {}

  __device__ int64_t pixels() const { return height * width; }
  __device__ int64_t window() const { return 2 * radius + 1; }
  // Of x (0) or y (1), in level l.
  __device__ Place<float> place(const float* coords, int64_t b, int64_t pixel, int axis, int64_t l) const {
    return {coords[(2 * b + axis) * pixels() + pixel] / float(int64_t(1) << l), radius};
  }
  // Where channel (level, column i, row j) of a pixel of the result lies.
  __device__ int64_t channel(int64_t b, int64_t l, int64_t i, int64_t j, int64_t pixel) const {
    return (((b * levels + l) * window() + i) * window() + j) * pixels() + pixel;
  }
  // Where the factor of tap (row j, column i) lies.
  __device__ int64_t factor(int64_t b, int64_t l, int64_t j, int64_t i, int64_t pixel) const {
    return (((b * levels + l) * (window() + 1) + j) * (window() + 1) + i) * pixels() + pixel;
  }
  // The scaled gradient to a value of a window, 0 outside of it.
  template <class T>
  __device__ float grad_of(const T* grad, int64_t b, int64_t l, int64_t i, int64_t j, int64_t pixel) const {
    if (i < 0 || i >= window() || j < 0 || j >= window()) return 0.f;
    return scale * decode<T, float>(grad[channel(b, l, i, j, pixel)]);
  }
  // Calls f(b, level, row, pixel) for every pixel, level and each of `count` rows.
  template <class F>
  __device__ __forceinline__ void for_rows(int64_t count, const F& f) const {
    const int64_t n = pixels();
    for (int64_t i = global_thread(); i < batch * levels * count * n; i += grid_threads())
      f(i / n / count / levels, i / n / count % levels, i / n % count, i % n);
  }
};

// Level 0 is second itself, the others its means [B, C, U >> l, V >> l]; all contiguous.
template <class T>
struct Seconds {
  const T* first;
  Pyramid<const float> others;

  // Calls f with what reads a row of a channel of a level.
  template <class F>
  __device__ void with_row(const Sizes& s, int64_t b, int64_t c, int64_t l, int64_t y, const F& f) const {
    const int64_t start = ((b * s.channels + c) * (s.rows >> l) + y) * (s.columns >> l);
    if (l == 0) {
      const T* const row = first + start;
      f([&](int64_t t) { return decode<T, float>(row[t]); });
    } else {
      const float* const row = others.data[l] + start;
      f([&](int64_t t) { return row[t]; });
    }
  }
};

// Averages second for every level.
template <class T>
Seconds<T> seconds_of(const OnDemand& p, const Tensor& second, const std::vector<Tensor>& means, cudaStream_t stream) {
  Seconds<T> seconds{static_cast<const T*>(second.const_data_ptr()), {}};
  Pyramid<float> to{};
  for (int64_t l = 1; l < p.levels; ++l) seconds.others.data[l] = to.data[l] = data_of<float>(means[l - 1]);
  const Planes planes{p.batch * p.channels, p.rows, p.columns, p.levels};
  if (p.levels > 1)
    launch("levels of second", pool_planes<T, float>, dim3(blocks_for(planes.planes, 1)), kThreads, 0, stream,
           seconds.first, planes, to);
  return seconds;
}

// Correlations of a pixel with taps from (row, column) on, kTaps of each of two rows, 0 outside; unscaled.
template <class T>
__device__ void correlate(const View<T>& first, const Seconds<T>& second, const Sizes& s, int64_t b, int64_t pixel,
                          int64_t l, int64_t row, int64_t column, float (&upper)[kTaps], float (&lower)[kTaps]) {
  const int64_t columns = s.columns >> l, y = pixel / s.width, x = pixel % s.width;
#pragma unroll
  for (int k = 0; k < kTaps; ++k) upper[k] = lower[k] = 0;
  const auto add = [&](int64_t c, int64_t line, float own, float (&sum)[kTaps]) {
    if (uint64_t(line) >= uint64_t(s.rows >> l)) return;
    second.with_row(s, b, c, l, line, [&](const auto& at) {
#pragma unroll
      for (int k = 0; k < kTaps; ++k)
        if (uint64_t(column + k) < uint64_t(columns)) sum[k] += own * at(column + k);
    });
  };
  for (int64_t c = 0; c < s.channels; ++c) {
    const float own = first.at(b, c, y, x);
    add(c, row, own, upper), add(c, row + 1, own, lower);
  }
}

}  // namespace pyops::corr2d
