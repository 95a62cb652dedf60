// Lookups in planes of correlations on CUDA: a thread has a pixel and a column of its window in a level, neighbouring
// threads neighbouring pixels, so that what a warp writes is one run of memory. All levels are one launch.
//
// Backward: a thread has a pixel and a column of taps, so no two write to one place.
#include "corr2d.cuh"
#include "corr2d_lookup_backward.h"

namespace pyops::corr2d {
namespace {

// All levels, as an argument of a kernel.
template <class T>
struct Levels {
  Level<T> level[kMostLevels];

  explicit Levels(const std::vector<Tensor>& pyramid) {
    const auto all = levels_of<T>(pyramid);
    for (size_t i = 0; i < all.size(); ++i) level[i] = all[i];
  }
};

struct Sizes {
  int64_t batch, pixels, levels;
  int radius;

  explicit Sizes(const Problem& p) : batch(p.batch), pixels(p.pixels()), levels(p.levels), radius(p.radius) {}

  __device__ int64_t window() const { return 2 * radius + 1; }
  // Of x (0) or y (1), in level l.
  __device__ Place<float> place(const float* coords, int64_t b, int64_t pixel, int axis, int64_t l) const {
    return {coords[(2 * b + axis) * pixels + pixel] / float(int64_t(1) << l), radius};
  }
  // Where channel (level, column, row) of a pixel of a result lies.
  __device__ int64_t channel(int64_t b, int64_t l, int64_t i, int64_t j, int64_t pixel) const {
    return (((b * levels + l) * window() + i) * window() + j) * pixels + pixel;
  }
};

// A plane, 0 outside of it.
template <class T>
struct Plane {
  const T* data;
  int64_t rows, columns;

  __device__ Plane(const Level<T>& level, int64_t index)
      : data(level.data + index * level.rows * level.columns), rows(level.rows), columns(level.columns) {}
  __device__ float at(int64_t y, int64_t x) const {
    const bool exists = uint64_t(y) < uint64_t(rows) && uint64_t(x) < uint64_t(columns);
    return exists ? decode<T, float>(data[y * columns + x]) : 0.f;
  }
};

// Calls f(b, pixel, column) for every pixel and each of `columns`.
template <class F>
__device__ __forceinline__ void for_columns(const Sizes& s, int64_t columns, const F& f) {
  for (int64_t i = global_thread(); i < s.batch * columns * s.pixels; i += grid_threads())
    f(i / s.pixels / columns, i % s.pixels, i / s.pixels % columns);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    look_up(const Levels<T> levels, const Sizes s, const float* coords, T* out) {
  const int64_t l = blockIdx.y, window = s.window();
  for_columns(s, window, [&](int64_t b, int64_t pixel, int64_t i) {
    const auto x = s.place(coords, b, pixel, 0, l), y = s.place(coords, b, pixel, 1, l);
    const Plane<T> plane(levels.level[l], b * s.pixels + pixel);
    const int64_t column = x.first + i;
    float left = plane.at(y.first, column), right = plane.at(y.first, column + 1);
    T* to = out + s.channel(b, l, i, 0, pixel);
    for (int64_t j = 1; j <= window; ++j, to += s.pixels) {
      const float next_left = plane.at(y.first + j, column), next_right = plane.at(y.first + j, column + 1);
      *to = encode<T, float>((1 - x.fraction) * ((1 - y.fraction) * left + y.fraction * next_left) +
                             x.fraction * ((1 - y.fraction) * right + y.fraction * next_right));
      left = next_left, right = next_right;
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    spread(const Levels<T> buffers, const Sizes s, const float* coords, const T* grad) {
  const int64_t l = blockIdx.y, window = s.window();
  const Level<T>& level = buffers.level[l];
  for_columns(s, window + 1, [&](int64_t b, int64_t pixel, int64_t i) {
    const auto x = s.place(coords, b, pixel, 0, l), y = s.place(coords, b, pixel, 1, l);
    const int64_t column = x.first + i;
    if (uint64_t(column) >= uint64_t(level.columns)) return;
    T* const plane = level.data + (b * s.pixels + pixel) * level.rows * level.columns;
    float last = 0;
    for (int64_t j = 0; j <= window; ++j) {
      const auto grad_of = [&](int64_t k) {
        return k >= 0 && k < window && j < window ? decode<T, float>(grad[s.channel(b, l, k, j, pixel)]) : 0.f;
      };
      const float now = (1 - x.fraction) * grad_of(i) + x.fraction * grad_of(i - 1);
      const int64_t row = y.first + j;
      if (uint64_t(row) < uint64_t(level.rows)) {
        T& to = plane[row * level.columns + column];
        to = encode<T, float>(decode<T, float>(to) + ((1 - y.fraction) * now + y.fraction * last));
      }
      last = now;
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    slope(const Levels<T> levels, const Sizes s, const float* coords, const T* grad, float* out) {
  const int64_t window = s.window();
  for_columns(s, 1, [&](int64_t b, int64_t pixel, int64_t) {
    float across = 0, down = 0;
    for (int64_t l = 0; l < s.levels; ++l) {
      const auto x = s.place(coords, b, pixel, 0, l), y = s.place(coords, b, pixel, 1, l);
      const Plane<T> plane(levels.level[l], b * s.pixels + pixel);
      float sum_across = 0, sum_down = 0;
      for (int64_t i = 0; i < window; ++i) {
        const int64_t column = x.first + i;
        float left = plane.at(y.first, column), right = plane.at(y.first, column + 1);
        for (int64_t j = 0; j < window; ++j) {
          const float next_left = plane.at(y.first + j + 1, column), next_right = plane.at(y.first + j + 1, column + 1);
          const float g = decode<T, float>(grad[s.channel(b, l, i, j, pixel)]);
          sum_across += g * ((1 - y.fraction) * (right - left) + y.fraction * (next_right - next_left));
          sum_down += g * ((1 - x.fraction) * (next_left - left) + x.fraction * (next_right - right));
          left = next_left, right = next_right;
        }
      }
      across += sum_across / float(int64_t(1) << l), down += sum_down / float(int64_t(1) << l);
    }
    // Nothing moves with a coordinate that is NaN.
    const int64_t at = 2 * b * s.pixels + pixel;
    out[at] = coords[at] == coords[at] ? across : 0.f;
    out[at + s.pixels] = coords[at + s.pixels] == coords[at + s.pixels] ? down : 0.f;
  });
}

dim3 grid_of(const Problem& p, int64_t columns, bool by_level) {
  return dim3(blocks_for(p.batch * p.pixels() * columns, kThreads), by_level ? unsigned(p.levels) : 1u);
}

Tensor forward(std::vector<Tensor> pyramid, const Tensor& coords, int64_t radius) {
  const Problem p = check(pyramid, coords, radius);
  const Tensor out = new_tensor(p.pyramid[0], p.result(), p.pyramid[0].scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(coords);
  const Tensor at = contiguous_as(coords, ScalarType::Float);
  dispatch_float(out.scalar_type(), "pyramid", [&](auto zero) {
    using T = decltype(zero);
    launch("corr2d_lookup", look_up<T>, grid_of(p, p.window(), true), kThreads, 0, scope.stream(), Levels<T>(p.pyramid),
           Sizes(p), static_cast<const float*>(data_of<float>(at)), data_of<T>(out));
  });
  return out;
}

Tensor run_backward(const Problem& p, const Tensor& grad, const std::vector<Tensor>* buffers, const Tensor& coords,
                    bool need_coords) {
  const DeviceScope scope(coords);
  const Tensor at = contiguous_as(coords, ScalarType::Float), from = in_order(grad);
  const Tensor to = new_gradient(at, need_coords, false);
  if (grad.numel() > 0)
    dispatch_float(grad.scalar_type(), "grad", [&](auto zero) {
      using T = decltype(zero);
      const T* const grads = data_of<T>(from);
      const float* const places = data_of<float>(at);
      if (buffers)
        launch("the gradient of a lookup", spread<T>, grid_of(p, p.window() + 1, true), kThreads, 0, scope.stream(),
               Levels<T>(*buffers), Sizes(p), places, grads);
      if (need_coords)
        launch("the slope of a lookup", slope<T>, grid_of(p, 1, false), kThreads, 0, scope.stream(),
               Levels<T>(p.pyramid), Sizes(p), places, grads, data_of<float>(to));
    });
  return contiguous_as(to, coords.scalar_type());
}

}  // namespace
}  // namespace pyops::corr2d

PYOPS_CUDA_KERNELS(m) {
  m.impl("corr2d_lookup", TORCH_BOX(&pyops::corr2d::forward));
  m.impl("corr2d_lookup_backward", TORCH_BOX(&pyops::corr2d::backward));
  m.impl("corr2d_lookup_accumulate", TORCH_BOX(&pyops::corr2d::accumulate));
}
