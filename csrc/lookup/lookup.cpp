// Lookups in volumes of costs on the CPU: a vector holds neighbouring pixels, whose lines are read tap by tap.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/pixel.h"
#include "../common/simd.h"
#include "lookup_args.h"
#include "lookup_backward.h"

namespace pyops::lookup {
namespace {

using simd::kLanes;
using simd::Vector;

constexpr int64_t kGrain = 1 << 14;  // taps worth a thread

constexpr int kTiles = 32;  // vectors of a run: their taps of one line stay in the first-level cache

// Up to kTiles * kLanes<A> pixels of image `b` that follow each other, from `pixel` on.
template <class A>
struct Run {
  int64_t b, pixel, count, pixels, width;
  const A* position;

  PYOPS_HD int tiles() const { return int(ceil_div<int64_t>(count, kLanes<A>)); }
  PYOPS_HD int64_t pixel_of(int tile) const { return pixel + tile * kLanes<A>; }
  PYOPS_HD int64_t count_of(int tile) const { return std::min<int64_t>(kLanes<A>, count - tile * kLanes<A>); }
};

template <class T, class A>
PYOPS_HD Vector<A> load_pixels(const T* from, int64_t count = kLanes<A>) {
  if (std::is_same_v<T, A> && count == kLanes<A>) return simd::load<Vector<A>>(from);
  A element[kLanes<A>] = {};
  for (int64_t k = 0; k < count; ++k) element[k] = decode<T, A>(from[k]);
  return simd::load<Vector<A>>(element);
}

template <class T, class A>
PYOPS_HD void store_pixels(T* to, Vector<A> value, int64_t count = kLanes<A>) {
  if (std::is_same_v<T, A> && count == kLanes<A>) return simd::store(to, value);
  A element[kLanes<A>];
  simd::store(element, value);
  for (int64_t k = 0; k < count; ++k) to[k] = encode<T, A>(element[k]);
}

// The taps of a vector of pixels on one kind of lines of one level; lanes beyond the last pixel repeat it.
template <class T, class A>
struct Taps {
  static constexpr int n = kLanes<A>;
  using Mask = decltype(Vector<A>() > Vector<A>());
  int first[n];
  int64_t start[n], tap, taps;  // where a line's first tap lies, in elements; where the next
  int64_t next;
  int64_t row;  // where the least of all first taps lies
  Vector<A> fraction;
  Mask moved;           // the first tap is not the least
  bool inside;          // all taps of all pixels
  bool rows, two_rows;  // neighbours lie side by side: tap j of all of them in a row, or in it and the next

  PYOPS_HD void place(const Lines<T>& lines, const Run<A>& run, int tile, int radius) {
    tap = lines.tap, taps = lines.taps, next = lines.channel;
    const int64_t pixel = run.pixel_of(tile), count = run.count_of(tile);
    int least = 1 << 30, most = -(1 << 30);
    int64_t column = pixel % run.width;
    A fractions[n], shifts[n];
    for (int k = 0; k < n; ++k) {
      const int64_t i = pixel + (k < count ? k : count - 1);
      const Place<A> place = lines.template place<A>(run.position[i], column, radius);
      first[k] = place.first, fractions[k] = place.fraction;
      start[k] = i * lines.pixel + place.first * lines.tap;
      if (lines.tap == 1) {
        const T* const line = lines.data + run.b * lines.batch + start[k];
        __builtin_prefetch(line), __builtin_prefetch(line + 2 * radius + 1);
      }
      least = std::min(least, place.first), most = std::max(most, place.first);
      if (k + 1 < count && ++column == run.width) column = 0;
    }
    fraction = simd::load<Vector<A>>(fractions);
    for (int k = 0; k < n; ++k) shifts[k] = A(first[k] - least);
    moved = simd::load<Vector<A>>(shifts) > A(0);
    row = pixel * lines.pixel + least * lines.tap;
    inside = least >= 0 && most + 2 * radius + 2 <= taps;
    rows = inside && lines.pixel == 1 && count == n && most - least <= 1, two_rows = most > least;
  }

  PYOPS_HD bool has(int lane, int64_t j) const { return uint64_t(first[lane] + j) < uint64_t(taps); }

  PYOPS_HD Vector<A> read(const T* line, int64_t j) const {
    if (rows) {
      __builtin_prefetch(line + row + j * tap + next);
      const Vector<A> all = load_pixels<T, A>(line + row + j * tap);
      return two_rows ? moved ? load_pixels<T, A>(line + row + (j + 1) * tap) : all : all;
    }
    const auto at = [&](int k) { return decode<T, A>(line[start[k] + j * tap]); };
    const auto if_any = [&](int k) { return has(k, j) ? at(k) : A(0); };
    if constexpr (n == 8) {
      if (inside) return Vector<A>{at(0), at(1), at(2), at(3), at(4), at(5), at(6), at(7)};
      return Vector<A>{if_any(0), if_any(1), if_any(2), if_any(3), if_any(4), if_any(5), if_any(6), if_any(7)};
    } else {
      if (inside) return Vector<A>{at(0), at(1), at(2), at(3)};
      return Vector<A>{if_any(0), if_any(1), if_any(2), if_any(3)};
    }
  }

  PYOPS_HD void add(T* line, int64_t j, Vector<A> value, int64_t count) const {
    if (rows) {
      const Vector<A> nothing = simd::splat(A(0));
      T* const to = line + row + j * tap;
      store_pixels<T, A>(to, load_pixels<T, A>(to) + (moved ? nothing : value));
      if (two_rows) store_pixels<T, A>(to + tap, load_pixels<T, A>(to + tap) + (moved ? value : nothing));
      return;
    }
    A element[n];
    simd::store(element, value);
    for (int k = 0; k < count; ++k) {
      if (!inside && !has(k, j)) continue;
      T& to = line[start[k] + j * tap];
      to = encode<T, A>(decode<T, A>(to) + element[k]);
    }
  }
};

template <class T, class A>
PYOPS_HD void look_up_lines(const Lines<T>& lines, const Run<A>& run, int radius, T* out) {
  Taps<T, A> all[kTiles];
  const int tiles = run.tiles();
  for (int i = 0; i < tiles; ++i) all[i].place(lines, run, i, radius);
  const int64_t window = 2 * radius + 1;
  for (int64_t c = 0; c < lines.channels; ++c) {
    const T* const line = lines.data + run.b * lines.batch + c * lines.channel;
    for (int i = 0; i < tiles; ++i) {
      const Taps<T, A>& taps = all[i];
      const int64_t count = run.count_of(i);
      const Vector<A> f = taps.fraction, rest = simd::splat(A(1)) - f;
      T* to = out + (lines.out + c * window) * run.pixels + run.pixel_of(i);
      Vector<A> before = taps.read(line, 0);
      for (int64_t d = 0; d < window; ++d, to += run.pixels) {
        const Vector<A> after = taps.read(line, d + 1);
        const Vector<A> value = rest * before + f * after;
        before = after;
        store_pixels<T, A>(to, value, count);
      }
    }
  }
}

// Adds what `grad` gives to the lines to `buffer`, laid out like them, unless it is null; what it gives to the position
// to `slopes`, unless that is null.
template <class T, class A>
PYOPS_HD void backpropagate_lines(const Lines<T>& lines, T* buffer, const Run<A>& run, int radius, const T* grad,
                                  Vector<A>* slopes) {
  Taps<T, A> all[kTiles];
  const int tiles = run.tiles();
  for (int i = 0; i < tiles; ++i) all[i].place(lines, run, i, radius);
  const Vector<A> nothing = simd::splat(A(0)), slope = simd::splat(A(lines.slope()));
  const int64_t window = 2 * radius + 1;
  for (int64_t c = 0; c < lines.channels; ++c) {
    const int64_t line = run.b * lines.batch + c * lines.channel;
    for (int i = 0; i < tiles; ++i) {
      const Taps<T, A>& taps = all[i];
      const int64_t count = run.count_of(i);
      const Vector<A> f = taps.fraction, rest = simd::splat(A(1)) - f;
      const T* from = grad + (lines.out + c * window) * run.pixels + run.pixel_of(i);
      Vector<A> last = nothing, before = nothing, sum = nothing;
      if (slopes) before = taps.read(lines.data + line, 0);
      for (int64_t j = 0; j <= window; ++j, from += run.pixels) {
        const Vector<A> now = j < window ? load_pixels<T, A>(from, count) : nothing;
        if (buffer) taps.add(buffer + line, j, rest * now + f * last, count);
        last = now;
        if (!slopes || j == window) continue;
        const Vector<A> after = taps.read(lines.data + line, j + 1);
        sum += now * (after - before);
        before = after;
      }
      if (slopes) slopes[i] += sum * slope;
    }
  }
}

// Nothing moves with a position that is NaN.
template <class A>
PYOPS_HD void store_slopes(const Run<A>& run, int tile, Vector<A> slope, A* to) {
  const int64_t pixel = run.pixel_of(tile), count = run.count_of(tile);
  const Vector<A> position = load_pixels<A, A>(run.position + pixel, count);
  store_pixels<A, A>(to + pixel, position == position ? slope : simd::splat(A(0)), count);
}

#define PYOPS_LOOKUPS(T, A)                                                                                          \
  PYOPS_MULTIVERSION void look_up(const Lines<T>* lines, int64_t kinds, const Run<A>& run, int radius, T* out) {     \
    for (int64_t k = 0; k < kinds; ++k) look_up_lines<T, A>(lines[k], run, radius, out);                             \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void backpropagate(const Lines<T>* lines, T* const* buffers, int64_t kinds, const Run<A>& run,  \
                                        int radius, const T* grad, A* to) {                                          \
    Vector<A> slopes[kTiles];                                                                                        \
    for (int i = 0; i < kTiles; ++i) slopes[i] = simd::splat(A(0));                                                  \
    for (int64_t k = 0; k < kinds; ++k)                                                                              \
      backpropagate_lines<T, A>(lines[k], buffers ? buffers[k] : nullptr, run, radius, grad, to ? slopes : nullptr); \
    for (int i = 0; to && i < run.tiles(); ++i) store_slopes(run, i, slopes[i], to);                                 \
  }
PYOPS_LOOKUPS(float, float)
PYOPS_LOOKUPS(Half, float)
PYOPS_LOOKUPS(BFloat16, float)
PYOPS_LOOKUPS(double, double)
#undef PYOPS_LOOKUPS

template <class A, class F>
void for_runs(const Problem& p, const Tensor& position, const F& f) {
  constexpr int64_t most = kTiles * kLanes<A>;
  const int64_t across = ceil_div<int64_t>(p.pixels(), most), work = most * p.lines() * (p.window() + 1);
  torch::stable::parallel_for(0, p.batch * across, std::max<int64_t>(1, kGrain / work), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t b = i / across, pixel = i % across * most;
      f(Run<A>{b, pixel, std::min<int64_t>(most, p.pixels() - pixel), p.pixels(), p.width,
               static_cast<const A*>(position.const_data_ptr()) + b * p.pixels()});
    }
  });
}

Tensor positions(const Problem& p, const Tensor& position) {
  const bool wide = p.pyramid[0].scalar_type() == ScalarType::Double;
  return contiguous_as(position, wide ? ScalarType::Double : ScalarType::Float);
}

Tensor forward(std::vector<Tensor> volumes, std::vector<Tensor> pyramid, const Tensor& position, int64_t radius) {
  const Problem p = check(volumes, pyramid, position, radius);
  const Tensor out = new_tensor(p.pyramid[0], p.result(), p.pyramid[0].scalar_type()), at = positions(p, position);
  if (out.numel() == 0) return out;
  dispatch_floating(p.pyramid[0].scalar_type(), "pyramid", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const auto lines = lines_of<T>(p, p.volumes, p.pyramid);
    T* const to = static_cast<T*>(out.mutable_data_ptr());
    for_runs<A>(p, at, [&](const Run<A>& run) {
      look_up(lines.data(), int64_t(lines.size()), run, p.radius, to + run.b * p.lines() * p.window() * p.pixels());
    });
  });
  return out;
}

Tensor look_up_pyramid(std::vector<Tensor> pyramid, const Tensor& x, int64_t radius) {
  return forward({}, std::move(pyramid), x, radius);
}

// Adds to the buffers, where there are any, and returns the gradient to the position, where wanted.
Tensor run_backward(const Problem& p, const Tensor& grad, const std::vector<Tensor>* volumes,
                    const std::vector<Tensor>* pyramid, const Tensor& position, bool need_position) {
  const Tensor at = positions(p, position), from = in_order(grad);
  const Tensor slope = new_tensor(at, need_position ? sizes_of(position) : std::vector<int64_t>{0}, at.scalar_type());
  if (grad.numel() > 0 && (volumes || need_position)) {
    dispatch_floating(p.pyramid[0].scalar_type(), "pyramid", [&](auto zero) {
      using T = decltype(zero);
      using A = Arithmetic<T>;
      const auto lines = lines_of<T>(p, p.volumes, p.pyramid);
      std::vector<T*> buffers;
      if (volumes)
        for (const auto& buffer : lines_of<T>(p, *volumes, *pyramid)) buffers.push_back(buffer.data);
      const T* const grads = static_cast<const T*>(from.const_data_ptr());
      A* const to = need_position ? static_cast<A*>(slope.mutable_data_ptr()) : nullptr;
      for_runs<A>(p, at, [&](const Run<A>& run) {
        backpropagate(lines.data(), volumes ? buffers.data() : nullptr, int64_t(lines.size()), run, p.radius,
                      grads + run.b * p.lines() * p.window() * p.pixels(), to ? to + run.b * p.pixels() : nullptr);
      });
    });
  }
  return contiguous_as(slope, position.scalar_type());
}

}  // namespace
}  // namespace pyops::lookup

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("corr1d_lookup(Tensor[] pyramid, Tensor x, SymInt radius) -> Tensor");
  m.def("geometry_lookup(Tensor[] volumes, Tensor[] pyramid, Tensor disparity, SymInt radius) -> Tensor");
  m.def(
      "lookup_backward(Tensor grad, Tensor[] volumes, Tensor[] pyramid, Tensor position, SymInt radius, "
      "bool need_costs, bool need_position) -> Tensor[]");
  m.def(
      "lookup_accumulate(Tensor grad, Tensor(a!)[] to_volumes, Tensor(b!)[] to_pyramid, Tensor[] volumes, "
      "Tensor[] pyramid, Tensor position, SymInt radius, bool need_position) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("corr1d_lookup", TORCH_BOX(&pyops::lookup::look_up_pyramid));
  m.impl("geometry_lookup", TORCH_BOX(&pyops::lookup::forward));
  m.impl("lookup_backward", TORCH_BOX(&pyops::lookup::backward));
  m.impl("lookup_accumulate", TORCH_BOX(&pyops::lookup::accumulate));
}
