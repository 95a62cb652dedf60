// Lookups in volumes of costs on the CPU: a vector holds neighbouring pixels, whose lines are read tap by tap.
#include <torch/csrc/stable/ops.h>

#include "lookup_args.h"
#include "lookup_backward.h"
#include "lookup_taps.h"
#include "lookup_windows.h"

namespace pyops::lookup {
namespace {

constexpr int64_t kGrain = 1 << 14;  // taps worth a thread

// Where row `row` of a channel lies, or what comes after its `rows` rows: those of the next channel.
template <class T>
PYOPS_HD int64_t rows_ahead(const Lines<T>& lines, int64_t row, int64_t rows) {
  return row < rows ? row * lines.tap : lines.channel + (row - rows) * lines.tap;
}

// Taps in rows are read row by row, a whole run of each, as memory has them.
template <class T, class A>
PYOPS_HD void look_up_lines(const Lines<T>& lines, const Run<A>& run, const Positions<A>& positions, int radius,
                            T* out) {
  Taps<T, A> all[kTiles];
  const int tiles = run.tiles();
  for (int i = 0; i < tiles; ++i) all[i].place(lines, run, positions, i, radius);
  const int64_t window = 2 * radius + 1;
  const Vector<A> one = simd::splat(A(1));
  for (int64_t c = 0; c < lines.channels; ++c) {
    const T* const line = lines.data + run.b * lines.batch + c * lines.channel;
    const Windows<T, A> to{out + (lines.out + c * window) * run.pixels, run.pixels};
    for (int64_t d = 0; lines.pixel == 1 && d < window; ++d) {
      const int64_t tap = lines.tap;
      const T *const here = line + d * tap, *const ahead = line + rows_ahead(lines, d + 4, window + 2);
      T* at = to.at(d, run, 0);
      for (int i = 0; i < tiles; ++i, at += kLanes<A>) {
        const Taps<T, A>& taps = all[i];
        if (!taps.rows) continue;
        __builtin_prefetch(ahead + taps.row);
        __builtin_prefetch(at + run.pixels, 1);
        Vector<A> row[3];
        for (int j = 0; j < 3; ++j)
          row[j] = taps.inside || taps.has_row(d + j) ? simd::load_elements<T, A>(here + taps.row + j * tap)
                                                      : simd::splat(A(0));
        const Vector<A> before = taps.moved ? row[1] : row[0], after = taps.moved ? row[2] : row[1];
        simd::store_elements<T, A>(at, (one - taps.fraction) * before + taps.fraction * after);
      }
    }
    for (int i = 0; i < tiles; ++i) {
      const Taps<T, A>& taps = all[i];
      if (taps.rows) continue;
      const Vector<A> f = taps.fraction, rest = one - f;
      const int64_t count = run.count_of(i);
      Vector<A> before = taps.read(line, 0);
      for (int64_t d = 0; d < window; ++d) {
        const Vector<A> after = taps.read(line, d + 1);
        simd::store_elements<T, A>(to.at(d, run, i), rest * before + f * after, count);
        before = after;
      }
    }
  }
}

// Adds what `grad` gives to the lines to `buffer`, laid out like them, unless it is null; what it gives to the position
// to `slopes`, unless that is null.
template <class T, class A>
PYOPS_HD void backpropagate_lines(const Lines<T>& lines, T* buffer, const Run<A>& run, const Positions<A>& positions,
                                  int radius, const T* grad, Vector<A>* slopes) {
  Taps<T, A> all[kTiles];
  const int tiles = run.tiles();
  for (int i = 0; i < tiles; ++i) all[i].place(lines, run, positions, i, radius);
  const Vector<A> nothing = simd::splat(A(0)), one = simd::splat(A(1)), slope = simd::splat(A(lines.slope()));
  const int64_t window = 2 * radius + 1;
  for (int64_t c = 0; c < lines.channels; ++c) {
    const int64_t line = run.b * lines.batch + c * lines.channel;
    const Windows<const T, A> from{grad + (lines.out + c * window) * run.pixels, run.pixels};
    for (int64_t j = 0; lines.pixel == 1 && j < window + 2; ++j)
      for (int i = 0; i < tiles; ++i) {
        const Taps<T, A>& taps = all[i];
        if (!taps.rows) continue;
        const auto value = [&](int64_t d) PYOPS_INLINED {
          return d >= 0 && d < window ? simd::load_elements<T, A>(from.at(d, run, i)) : nothing;
        };
        const Vector<A> grads[] = {value(j), value(j - 1), value(j - 2)};
        const Vector<A> now = taps.moved ? grads[1] : grads[0], last = taps.moved ? grads[2] : grads[1];
        if (buffer) taps.add_row(buffer + line, j, (one - taps.fraction) * now + taps.fraction * last);
        if (slopes) slopes[i] += (last - now) * taps.read_row(lines.data + line, j) * slope;
      }
    for (int i = 0; i < tiles; ++i) {
      const Taps<T, A>& taps = all[i];
      if (taps.rows) continue;
      const int64_t count = run.count_of(i);
      Vector<A> last = nothing;
      for (int64_t j = 0; j <= window; ++j) {
        const Vector<A> now = j < window ? simd::load_elements<T, A>(from.at(j, run, i), count) : nothing;
        if (buffer) taps.add(buffer + line, j, (one - taps.fraction) * now + taps.fraction * last, count);
        if (slopes) slopes[i] += (last - now) * taps.read(lines.data + line, j) * slope;
        last = now;
      }
    }
  }
}

// Nothing moves with a position that is NaN.
template <class A>
PYOPS_HD void store_slopes(const Run<A>& run, int tile, Vector<A> slope, A* to) {
  const int64_t pixel = run.pixel_of(tile), count = run.count_of(tile);
  const Vector<A> position = simd::load_elements<A, A>(run.position + pixel, count);
  simd::store_elements<A, A>(to + pixel, position == position ? slope : simd::splat(A(0)), count);
}

#define PYOPS_LOOKUPS(T, A)                                                                                         \
  PYOPS_MULTIVERSION void look_up(const Lines<T>* lines, int64_t kinds, const Run<A>& run, int radius, T* out) {    \
    const Positions<A> positions(run);                                                                              \
    look_up_rows<T, A>(lines, kinds, run, positions, radius, out);                                                  \
    for (int64_t k = 0; k < kinds; ++k)                                                                             \
      if (!are_rows(lines[k].tap, lines[k].channels, radius))                                                       \
        look_up_lines<T, A>(lines[k], run, positions, radius, out);                                                 \
  }                                                                                                                 \
  PYOPS_MULTIVERSION void backpropagate(const Lines<T>* lines, T* const* buffers, int64_t kinds, const Run<A>& run, \
                                        int radius, const T* grad, A* to) {                                         \
    const Positions<A> positions(run);                                                                              \
    Vector<A> slopes[kTiles];                                                                                       \
    for (int i = 0; i < kTiles; ++i) slopes[i] = simd::splat(A(0));                                                 \
    for (int64_t k = 0; k < kinds; ++k)                                                                             \
      backpropagate_lines<T, A>(lines[k], buffers ? buffers[k] : nullptr, run, positions, radius, grad,             \
                                to ? slopes : nullptr);                                                             \
    for (int i = 0; to && i < run.tiles(); ++i) store_slopes(run, i, slopes[i], to);                                \
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
