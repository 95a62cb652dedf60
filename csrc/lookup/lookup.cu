// Lookups in volumes of costs on CUDA: a thread has one line of one pixel, neighbouring threads neighbouring pixels.
//
// All levels and channels are one launch. What a warp writes of one tap is one run of memory; what it reads of volumes
// is one where neighbours have similar disparities.
#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "lookup_args.h"
#include "lookup_backward.h"

namespace pyops::lookup {
namespace {

constexpr int kThreads = 128;

// The lines of all levels, as an argument of a kernel.
template <class T>
struct Kinds {
  Lines<T> lines[2 * kMostLevels];
  int count;

  explicit Kinds(const std::vector<Lines<T>>& all) : count(int(all.size())) {
    for (int i = 0; i < count; ++i) lines[i] = all[i];
  }
};

struct Sizes {
  int64_t batch, pixels, width, channels;  // channels of the result
  int radius;

  explicit Sizes(const Problem& p)
      : batch(p.batch), pixels(p.pixels()), width(p.width), channels(p.lines() * p.window()), radius(p.radius) {}
};

template <class T>
__device__ __forceinline__ float tap(const Lines<T>& lines, const T* line, int64_t t) {
  return uint64_t(t) < uint64_t(lines.taps) ? decode<T, float>(line[t * lines.tap]) : 0.f;
}

// Calls f(lines of the kind, channel of them) for the line of number `y`.
template <class T, class F>
__device__ __forceinline__ void with_line(const Kinds<T>& kinds, int64_t y, const F& f) {
  int k = 0;
  while (y >= kinds.lines[k].channels) y -= kinds.lines[k++].channels;
  f(kinds.lines[k], y);
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    look_up(const Kinds<T> kinds, const Sizes s, const float* position, T* out) {
  with_line(kinds, blockIdx.y, [&](const Lines<T>& lines, int64_t c) {
    const int window = 2 * s.radius + 1;
    for (int64_t i = global_thread(); i < s.batch * s.pixels; i += grid_threads()) {
      const int64_t b = i / s.pixels, pixel = i % s.pixels;
      const auto place = lines.place(position[i], pixel % s.width, s.radius);
      const T* const line = lines.data + b * lines.batch + c * lines.channel + pixel * lines.pixel;
      T* to = out + (b * s.channels + lines.out + c * window) * s.pixels + pixel;
      float before = tap(lines, line, place.first);
      for (int d = 0; d < window; ++d, to += s.pixels) {
        const float after = tap(lines, line, int64_t(place.first) + d + 1);
        *to = encode<T, float>((1 - place.fraction) * before + place.fraction * after);
        before = after;
      }
    }
  });
}

// Adds to lines laid out like those of `kinds`, which only one thread writes.
template <class T>
__global__ void __launch_bounds__(kThreads)
    spread(const Kinds<T> kinds, const Sizes s, const float* position, const T* grad) {
  with_line(kinds, blockIdx.y, [&](const Lines<T>& lines, int64_t c) {
    const int window = 2 * s.radius + 1;
    for (int64_t i = global_thread(); i < s.batch * s.pixels; i += grid_threads()) {
      const int64_t b = i / s.pixels, pixel = i % s.pixels;
      const auto place = lines.place(position[i], pixel % s.width, s.radius);
      T* const line = lines.data + b * lines.batch + c * lines.channel + pixel * lines.pixel;
      const T* from = grad + (b * s.channels + lines.out + c * window) * s.pixels + pixel;
      float last = 0;
      for (int j = 0; j <= window; ++j, from += s.pixels) {
        const float now = j < window ? decode<T, float>(*from) : 0.f;
        const int64_t t = int64_t(place.first) + j;
        if (uint64_t(t) < uint64_t(lines.taps)) {
          T& to = line[t * lines.tap];
          to = encode<T, float>(decode<T, float>(to) + ((1 - place.fraction) * now + place.fraction * last));
        }
        last = now;
      }
    }
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads)
    slope(const Kinds<T> kinds, const Sizes s, const float* position, const T* grad, float* out) {
  const int window = 2 * s.radius + 1;
  for (int64_t i = global_thread(); i < s.batch * s.pixels; i += grid_threads()) {
    const int64_t b = i / s.pixels, pixel = i % s.pixels;
    const T* from = grad + b * s.channels * s.pixels + pixel;
    float sum = 0;
    for (int k = 0; k < kinds.count; ++k) {
      const Lines<T>& lines = kinds.lines[k];
      const auto place = lines.place(position[i], pixel % s.width, s.radius);
      float part = 0;
      for (int64_t c = 0; c < lines.channels; ++c) {
        const T* const line = lines.data + b * lines.batch + c * lines.channel + pixel * lines.pixel;
        float before = tap(lines, line, place.first);
        for (int d = 0; d < window; ++d, from += s.pixels) {
          const float after = tap(lines, line, int64_t(place.first) + d + 1);
          // A NaN place has a NaN slope, though its taps are numbers.
          part += decode<T, float>(*from) * (after - before);
          before = after;
        }
      }
      sum += part * float(lines.slope());
    }
    out[i] = position[i] == position[i] ? sum : 0.f;
  }
}

dim3 grid_of(const Problem& p, bool by_line) {
  return dim3(blocks_for(p.batch * p.pixels(), kThreads), by_line ? unsigned(p.lines()) : 1u);
}

Tensor forward(std::vector<Tensor> volumes, std::vector<Tensor> pyramid, const Tensor& position, int64_t radius) {
  const Problem p = check(volumes, pyramid, position, radius);
  const Tensor out = new_tensor(p.pyramid[0], p.result(), p.pyramid[0].scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(position);
  const Tensor at = contiguous_as(position, ScalarType::Float);
  dispatch_float(out.scalar_type(), "pyramid", [&](auto zero) {
    using T = decltype(zero);
    launch("corr1d_lookup", look_up<T>, grid_of(p, true), kThreads, 0, scope.stream(),
           Kinds<T>(lines_of<T>(p, p.volumes, p.pyramid)), Sizes(p), static_cast<const float*>(at.const_data_ptr()),
           static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

Tensor look_up_pyramid(std::vector<Tensor> pyramid, const Tensor& x, int64_t radius) {
  return forward({}, std::move(pyramid), x, radius);
}

Tensor run_backward(const Problem& p, const Tensor& grad, const std::vector<Tensor>* volumes,
                    const std::vector<Tensor>* pyramid, const Tensor& position, bool need_position) {
  const DeviceScope scope(position);
  const Tensor at = contiguous_as(position, ScalarType::Float), from = in_order(grad);
  const Tensor to = new_tensor(at, need_position ? sizes_of(position) : std::vector<int64_t>{0}, at.scalar_type());
  if (grad.numel() > 0)
    dispatch_float(grad.scalar_type(), "grad", [&](auto zero) {
      using T = decltype(zero);
      const T* const grads = static_cast<const T*>(from.const_data_ptr());
      const float* const places = static_cast<const float*>(at.const_data_ptr());
      if (volumes)
        launch("the gradient of a lookup", spread<T>, grid_of(p, true), kThreads, 0, scope.stream(),
               Kinds<T>(lines_of<T>(p, *volumes, *pyramid)), Sizes(p), places, grads);
      if (need_position)
        launch("the slope of a lookup", slope<T>, grid_of(p, false), kThreads, 0, scope.stream(),
               Kinds<T>(lines_of<T>(p, p.volumes, p.pyramid)), Sizes(p), places, grads,
               static_cast<float*>(to.mutable_data_ptr()));
    });
  return contiguous_as(to, position.scalar_type());
}

}  // namespace
}  // namespace pyops::lookup

PYOPS_CUDA_KERNELS(m) {
  m.impl("corr1d_lookup", TORCH_BOX(&pyops::lookup::look_up_pyramid));
  m.impl("geometry_lookup", TORCH_BOX(&pyops::lookup::forward));
  m.impl("lookup_backward", TORCH_BOX(&pyops::lookup::backward));
  m.impl("lookup_accumulate", TORCH_BOX(&pyops::lookup::accumulate));
}
