// Lookups in planes of correlations on the CPU.
#include <torch/csrc/stable/ops.h>

#include "corr2d_lookup_backward.h"
#include "corr2d_windows.h"

namespace pyops::corr2d {
namespace {

constexpr int kTiles = 8;            // vectors of a run: of the result, whole lines of the cache
constexpr int64_t kGrain = 1 << 14;  // taps worth a thread

// Calls f(windows, next, level, tile) for all levels of a run. f fetches the rows of the next windows, one with each of
// the windows, so that memory and arithmetic do not wait for each other.
template <class T, class A, class F>
PYOPS_HD void for_windows(const Level<T>* levels, int64_t count, const Run<A>& run, int radius, const F& f) {
  Windows<T, A> windows[2];
  const int64_t tiles = run.tiles();
  const auto place = [&](int64_t i) {
    const int64_t l = i / tiles;
    windows[i % 2].place(levels[l], A(1) / A(int64_t(1) << l), run, int(i % tiles), radius);
  };
  place(0);
  for (int64_t j = 0; j < windows[0].taps; ++j) windows[0].prefetch(j);
  for (int64_t i = 0; i < count * tiles; ++i) {
    if (i + 1 < count * tiles) place(i + 1);
    f(windows[i % 2], windows[(i + 1 < count * tiles ? i + 1 : i) % 2], i / tiles, int(i % tiles));
  }
}

template <class T, class A>
PYOPS_HD void look_up_window(const Windows<T, A>& w, const Windows<T, A>& next, int64_t pixels, A* scratch, T* to) {
  constexpr int n = kLanes<A>;
  const int64_t window = w.taps - 1;
  const Vector<A> one = simd::splat(A(1)), left = one - w.right, above = one - w.below;
  A *before = scratch, *after = scratch + ceil_div<int64_t>(w.taps, n) * n * n;
  next.prefetch(0);
  w.read(0, before);
  for (int64_t j = 0; j < window; ++j) {
    next.prefetch(j + 1);
    w.read(j + 1, after);
    const auto blend = [&](int64_t i) {
      return above * simd::load<Vector<A>>(before + i * n) + w.below * simd::load<Vector<A>>(after + i * n);
    };
    Vector<A> last = blend(0);
    T* out = to + j * pixels;
    for (int64_t i = 1; i <= window; ++i, out += window * pixels) {
      const Vector<A> now = blend(i);
      simd::store_elements<T, A>(out, left * last + w.right * now, w.count);
      last = now;
    }
    std::swap(before, after);
  }
}

template <class T, class A>
PYOPS_HD void spread_window(const Windows<T, A>& w, const Windows<T, A>& next, const T* grad, int64_t pixels,
                            A* scratch, T* planes) {
  constexpr int n = kLanes<A>;
  const int64_t window = w.taps - 1, padded = ceil_div<int64_t>(w.taps, n) * n * n;
  const Vector<A> one = simd::splat(A(1)), nothing = simd::splat(A(0)), left = one - w.right, above = one - w.below;
  A *last = scratch, *now = scratch + padded, *const row = scratch + 2 * padded;
  for (int64_t i = 0; i < padded; i += n) {
    simd::store(last + i, nothing), simd::store(now + i, nothing), simd::store(row + i, nothing);
  }
  for (int64_t j = 0; j <= window; ++j) {
    Vector<A> before = nothing;
    const T* from = grad + j * pixels;
    for (int64_t i = 0; i <= window; ++i, from += window * pixels) {
      const Vector<A> g = i < window && j < window ? simd::load_elements<T, A>(from, w.count) : nothing;
      const Vector<A> value = left * g + w.right * before;
      before = g;
      simd::store(now + i * n, value);
      simd::store(row + i * n, above * value + w.below * simd::load<Vector<A>>(last + i * n));
    }
    next.prefetch(j);
    w.add(planes, j, row);
    std::swap(last, now);
  }
}

// Adds to `slopes`, of x and of y.
template <class T, class A>
PYOPS_HD void slope_of_window(const Windows<T, A>& w, const Windows<T, A>& next, const T* grad, int64_t pixels,
                              A inverse, A* scratch, Vector<A>* slopes) {
  constexpr int n = kLanes<A>;
  const int64_t window = w.taps - 1;
  const Vector<A> one = simd::splat(A(1)), left = one - w.right, above = one - w.below;
  Vector<A> across = simd::splat(A(0)), down = across;
  A *before = scratch, *after = scratch + ceil_div<int64_t>(w.taps, n) * n * n;
  next.prefetch(0);
  w.read(0, before);
  for (int64_t j = 0; j < window; ++j) {
    next.prefetch(j + 1);
    w.read(j + 1, after);
    const auto upper = [&](int64_t i) { return simd::load<Vector<A>>(before + i * n); };
    const auto lower = [&](int64_t i) { return simd::load<Vector<A>>(after + i * n); };
    Vector<A> last = above * upper(0) + w.below * lower(0), step = lower(0) - upper(0);
    const T* from = grad + j * pixels;
    for (int64_t i = 1; i <= window; ++i, from += window * pixels) {
      const Vector<A> g = simd::load_elements<T, A>(from, w.count);
      const Vector<A> now = above * upper(i) + w.below * lower(i), now_step = lower(i) - upper(i);
      across += g * (now - last), down += g * (left * step + w.right * now_step);
      last = now, step = now_step;
    }
    std::swap(before, after);
  }
  slopes[0] += across * simd::splat(inverse), slopes[1] += down * simd::splat(inverse);
}

// Nothing moves with a coordinate that is NaN.
template <class A>
PYOPS_HD void store_slopes(const A* at, Vector<A> slope, int64_t count, A* to) {
  const Vector<A> place = simd::load_elements<A, A>(at, count);
  simd::store_elements<A, A>(to, place == place ? slope : simd::splat(A(0)), count);
}

#define PYOPS_LOOKUPS(T, A)                                                                                           \
  PYOPS_MULTIVERSION void look_up(const Level<T>* levels, int64_t count, const Run<A>& run, int radius, A* scratch,   \
                                  T* out) {                                                                           \
    const int64_t square = int64_t(2 * radius + 1) * (2 * radius + 1);                                                \
    for_windows(levels, count, run, radius,                                                                           \
                [&](const Windows<T, A>& w, const Windows<T, A>& next, int64_t l, int) PYOPS_INLINED {                \
                  look_up_window<T, A>(w, next, run.pixels, scratch, out + l * square * run.pixels + w.pixel);        \
                });                                                                                                   \
  }                                                                                                                   \
  PYOPS_MULTIVERSION void spread(const Level<T>* levels, int64_t count, const Run<A>& run, int radius, const T* grad, \
                                 A* scratch) {                                                                        \
    const int64_t square = int64_t(2 * radius + 1) * (2 * radius + 1);                                                \
    for_windows(levels, count, run, radius,                                                                           \
                [&](const Windows<T, A>& w, const Windows<T, A>& next, int64_t l, int) PYOPS_INLINED {                \
                  spread_window<T, A>(w, next, grad + l * square * run.pixels + w.pixel, run.pixels, scratch,         \
                                      levels[l].data);                                                                \
                });                                                                                                   \
  }                                                                                                                   \
  PYOPS_MULTIVERSION void slope(const Level<T>* levels, int64_t count, const Run<A>& run, int radius, const T* grad,  \
                                A* scratch, A* to) {                                                                  \
    const int64_t square = int64_t(2 * radius + 1) * (2 * radius + 1);                                                \
    Vector<A> slopes[kTiles][2];                                                                                      \
    for (auto& pair : slopes) pair[0] = pair[1] = simd::splat(A(0));                                                  \
    for_windows(levels, count, run, radius,                                                                           \
                [&](const Windows<T, A>& w, const Windows<T, A>& next, int64_t l, int tile) PYOPS_INLINED {           \
                  slope_of_window<T, A>(w, next, grad + l * square * run.pixels + w.pixel, run.pixels,                \
                                        A(1) / A(int64_t(1) << l), scratch, slopes[tile]);                            \
                });                                                                                                   \
    for (int i = 0; i < run.tiles(); ++i) {                                                                           \
      const int64_t pixel = run.pixel_of(i);                                                                          \
      store_slopes<A>(run.x + pixel, slopes[i][0], run.count_of(i), to + pixel);                                      \
      store_slopes<A>(run.y + pixel, slopes[i][1], run.count_of(i), to + run.pixels + pixel);                         \
    }                                                                                                                 \
  }
PYOPS_LOOKUPS(float, float)
PYOPS_LOOKUPS(Half, float)
PYOPS_LOOKUPS(BFloat16, float)
PYOPS_LOOKUPS(double, double)
#undef PYOPS_LOOKUPS

// Calls f(run, scratch memory) in any order.
template <class A, class F>
void for_runs(const Problem& p, const Tensor& coords, const F& f) {
  constexpr int64_t most = kTiles * kLanes<A>;
  const int64_t across = ceil_div<int64_t>(p.pixels(), most), taps = p.window() + 1;
  const int64_t grain = std::max<int64_t>(1, kGrain / (most * p.levels * taps * taps));
  torch::stable::parallel_for(0, p.batch * across, grain, [&](int64_t i, int64_t end) {
    std::vector<A> scratch(3 * (taps + kLanes<A>)*kLanes<A>);
    for (; i < end; ++i) {
      const int64_t b = i / across, pixel = i % across * most;
      const A* const x = data_of<A>(coords) + 2 * b * p.pixels();
      f(Run<A>{b, pixel, std::min<int64_t>(most, p.pixels() - pixel), p.pixels(), x, x + p.pixels()}, scratch.data());
    }
  });
}

Tensor places(const Problem& p, const Tensor& coords) {
  const bool wide = p.pyramid[0].scalar_type() == ScalarType::Double;
  return contiguous_as(coords, wide ? ScalarType::Double : ScalarType::Float);
}

Tensor forward(std::vector<Tensor> pyramid, const Tensor& coords, int64_t radius) {
  const Problem p = check(pyramid, coords, radius);
  const Tensor out = new_tensor(p.pyramid[0], p.result(), p.pyramid[0].scalar_type()), at = places(p, coords);
  if (out.numel() == 0) return out;
  dispatch_floating(p.pyramid[0].scalar_type(), "pyramid", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const auto levels = levels_of<T>(p.pyramid);
    for_runs<A>(p, at, [&](const Run<A>& run, A* scratch) {
      look_up(levels.data(), p.levels, run, p.radius, scratch, data_of<T>(out) + run.b * p.channels() * p.pixels());
    });
  });
  return out;
}

Tensor run_backward(const Problem& p, const Tensor& grad, const std::vector<Tensor>* buffers, const Tensor& coords,
                    bool need_coords) {
  const Tensor at = places(p, coords), from = in_order(grad), to = new_gradient(at, need_coords, false);
  if (grad.numel() > 0)
    dispatch_floating(p.pyramid[0].scalar_type(), "pyramid", [&](auto zero) {
      using T = decltype(zero);
      using A = Arithmetic<T>;
      const auto levels = levels_of<T>(p.pyramid);
      const auto sums = buffers ? levels_of<T>(*buffers) : std::vector<Level<T>>();
      for_runs<A>(p, at, [&](const Run<A>& run, A* scratch) {
        const T* const grads = data_of<T>(from) + run.b * p.channels() * p.pixels();
        if (buffers) spread(sums.data(), p.levels, run, p.radius, grads, scratch);
        if (need_coords)
          slope(levels.data(), p.levels, run, p.radius, grads, scratch, data_of<A>(to) + 2 * run.b * p.pixels());
      });
    });
  return contiguous_as(to, coords.scalar_type());
}

}  // namespace
}  // namespace pyops::corr2d

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("corr2d_lookup(Tensor[] pyramid, Tensor coords, SymInt radius) -> Tensor");
  m.def(
      "corr2d_lookup_backward(Tensor grad, Tensor[] pyramid, Tensor coords, SymInt radius, bool need_pyramid, "
      "bool need_coords) -> Tensor[]");
  m.def(
      "corr2d_lookup_accumulate(Tensor grad, Tensor(a!)[] buffers, Tensor[] pyramid, Tensor coords, SymInt radius, "
      "bool need_coords) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("corr2d_lookup", TORCH_BOX(&pyops::corr2d::forward));
  m.impl("corr2d_lookup_backward", TORCH_BOX(&pyops::corr2d::backward));
  m.impl("corr2d_lookup_accumulate", TORCH_BOX(&pyops::corr2d::accumulate));
}
