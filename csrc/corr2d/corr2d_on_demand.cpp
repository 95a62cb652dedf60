// Correlations of images on demand, on the CPU, image by image.
//
// Backward: rows of first are taken in blocks. A task has a row of a block: it finds the factor by which each tap counts,
// and gathers the gradient to first. Then a task has a level and a band of channels of second: it adds the features of
// all pixels of the block, in order, to the taps. So sums do not depend on the number of threads.
#include "corr2d_features.h"

namespace pyops::corr2d {
namespace {

constexpr int64_t kBlock = 1 << 21;  // factors at a time

// The coordinates of an image's pixels, and where they lie in a level.
template <class A>
struct Places {
  const A *x, *y;
  int radius;

  Places(const OnDemand& p, const Tensor& coords, int64_t b)
      : x(data_of<A>(coords) + 2 * b * p.pixels()), y(x + p.pixels()), radius(p.radius) {}

  static A inverse(int64_t level) { return A(std::ldexp(1., -int(level))); }
  Place<A> across(int64_t pixel, int64_t level) const { return {x[pixel] * inverse(level), radius}; }
  Place<A> down(int64_t pixel, int64_t level) const { return {y[pixel] * inverse(level), radius}; }
};

Tensor places_of(const Tensor& first, const Tensor& coords) {
  return contiguous_as(coords, first.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float);
}

Tensor forward(const Tensor& first, const Tensor& second, const Tensor& coords, int64_t radius, int64_t levels,
               std::optional<double> scale) {
  const OnDemand p = check(first, second, coords, radius, levels, scale);
  const Tensor out = new_tensor(first, p.result(), first.scalar_type()), at = places_of(first, coords);
  if (out.numel() == 0) return out;
  dispatch_floating(first.scalar_type(), "first", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const auto from = pixels_of<T>(first), other = pixels_of<T>(second);
    const int64_t window = p.window(), taps = window + 1, plane = p.pixels();
    const Features<A> features(p, second);
    for (int64_t b = 0; b < p.batch; ++b) {
      features.load(other, b, p.channels);
      const Places<A> places(p, at, b);
      torch::stable::parallel_for(0, p.height, 1, [&](int64_t row, int64_t end) {
        std::vector<A> pixels(p.width * features.stride), found(taps * taps);
        for (; row < end; ++row) {
          turn(from.data + b * from.batch + row * from.row, from.channel, from.column, p.channels, p.width,
               features.stride, pixels.data());
          for (int64_t l = 0; l < levels; ++l)  // neighbours share most of their windows of a level
            for (int64_t w = 0; w < p.width; ++w) {
              const int64_t pixel = row * p.width + w;
              const Place<A> x = places.across(pixel, l), y = places.down(pixel, l);
              features.correlate(l, pixels.data() + w * features.stride, y.first, x.first, taps, found.data());
              T* const to = data_of<T>(out) + (b * levels + l) * window * window * plane + pixel;
              for (int64_t j = 0; j < window; ++j) {
                const A *const upper = found.data() + j * taps, *const lower = upper + taps;
                const auto blend = [&](int64_t i) { return (1 - y.fraction) * upper[i] + y.fraction * lower[i]; };
                for (int64_t i = 0; i < window; ++i)
                  to[(i * window + j) * plane] =
                      encode<T, A>(A(p.scale) * ((1 - x.fraction) * blend(i) + x.fraction * blend(i + 1)));
              }
            }
        }
      });
    }
  });
  return out;
}

// What the tasks of a block share.
template <class T, class A>
struct Backward {
  const OnDemand& p;
  const Features<A>& features;
  Places<A> places;
  int64_t b, window, taps, stride;
  const T* grads;  // of the image
  bool need_first, need_coords;
  std::vector<A>&pixels, &factors;  // of the block: features of first, and factors by pixel and level

  A* factors_of(int64_t pixel, int64_t level) const {
    return factors.data() + (pixel * p.levels + level) * taps * taps;
  }

  // The scaled gradients to a window, column by column, and the factors of its taps, row by row.
  void find_factors(int64_t pixel, int64_t level, A right, A below, A* value, A* factor) const {
    const T* const from = grads + level * window * window * p.pixels() + pixel;
    for (int64_t k = 0; k < window * window; ++k) value[k] = A(p.scale) * decode<T, A>(from[k * p.pixels()]);
    const auto blend = [&](int64_t i, int64_t j) {
      const A here = i < window ? value[i * window + j] : A(0), before = i > 0 ? value[(i - 1) * window + j] : A(0);
      return (1 - right) * here + right * before;
    };
    for (int64_t i = 0; i < taps; ++i) {
      A last = 0;
      for (int64_t j = 0; j < taps; ++j) {
        const A now = j < window ? blend(i, j) : A(0);
        factor[j * taps + i] = (1 - below) * now + below * last;
        last = now;
      }
    }
  }

  // Adds what a window gives to the coordinates of its pixel.
  void add_slopes(const A* value, const A* found, A right, A below, A inverse, A& across, A& down) const {
    A sum_across = 0, sum_down = 0;
    for (int64_t j = 0; j < window; ++j) {
      const A *const upper = found + j * taps, *const lower = upper + taps;
      const auto blend = [&](int64_t i) { return (1 - below) * upper[i] + below * lower[i]; };
      const auto step = [&](int64_t i) { return lower[i] - upper[i]; };
      for (int64_t i = 0; i < window; ++i) {
        const A g = value[i * window + j];
        sum_across += g * (blend(i + 1) - blend(i));
        sum_down += g * ((1 - right) * step(i) + right * step(i + 1));
      }
    }
    across += inverse * sum_across, down += inverse * sum_down;
  }

  // Row `row` of the image, row `r` of the block.
  void run_row(const Pixels<T>& from, int64_t row, int64_t r, const Tensor& grad_first, A* slopes) const {
    A* const own = pixels.data() + r * p.width * stride;
    turn(from.data + b * from.batch + row * from.row, from.channel, from.column, p.channels, p.width, stride, own);
    std::vector<A> sums(need_first ? p.width * stride : 0), value(window * window), found(taps * taps);
    A *const across = need_coords ? slopes + row * p.width : nullptr, *const down =
                                                                          need_coords ? across + p.pixels() : nullptr;
    if (need_coords) std::fill(across, across + p.width, A(0)), std::fill(down, down + p.width, A(0));
    for (int64_t l = 0; l < p.levels; ++l)
      for (int64_t w = 0; w < p.width; ++w) {
        const int64_t pixel = row * p.width + w;
        const Place<A> x = places.across(pixel, l), y = places.down(pixel, l);
        A* const factor = factors_of(r * p.width + w, l);
        find_factors(pixel, l, x.fraction, y.fraction, value.data(), factor);
        const Part part = features.part(l, y.first, x.first, taps);
        if (need_first && part.rows > 0)
          gather_all(factor + part.row * taps + part.column, taps,
                     features.row(l, y.first + part.row) + (x.first + part.column) * stride, features.line(l),
                     part.rows, part.columns, stride, sums.data() + w * stride);
        if (!need_coords) continue;
        features.correlate(l, own + w * stride, y.first, x.first, taps, found.data());
        add_slopes(value.data(), found.data(), x.fraction, y.fraction, places.inverse(l), across[w], down[w]);
      }
    for (int64_t w = 0; need_coords && w < p.width; ++w) {  // nothing moves with a coordinate that is NaN
      const int64_t pixel = row * p.width + w;
      if (places.x[pixel] != places.x[pixel]) across[w] = 0;
      if (places.y[pixel] != places.y[pixel]) down[w] = 0;
    }
    if (need_first)
      turn_back(sums.data(), stride, p.channels, p.width,
                data_of<T>(grad_first) + b * p.channels * p.pixels() + row * p.width, p.pixels());
  }

  // Adds to vectors [band, band + count) of the channels of a level what `rows` of a block, from `row` on, give.
  void run_band(const Features<A>& to, int64_t row, int64_t rows, int64_t level, int64_t band, int64_t count) const {
    const int64_t channel = band * kLanes<A>;
    for (int64_t k = 0; k < rows * p.width; ++k) {
      const int64_t pixel = row * p.width + k;
      const int x = places.across(pixel, level).first, y = places.down(pixel, level).first;
      const Part part = to.part(level, y, x, taps);
      if (part.rows > 0)
        scatter_band(factors_of(k, level) + part.row * taps + part.column, taps, pixels.data() + k * stride + channel,
                     to.row(level, y + part.row) + (x + part.column) * stride + channel, to.line(level), part.rows,
                     part.columns, stride, count);
    }
  }
};

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& first, const Tensor& second,
                                            const Tensor& coords, int64_t radius, int64_t levels,
                                            std::optional<double> scale, bool need_first, bool need_second,
                                            bool need_coords) {
  const OnDemand p = check(first, second, coords, radius, levels, scale);
  check_gradient(p.result(), grad, first);
  const Tensor grad_first = new_gradient(first, need_first, false),
               grad_second = new_gradient(second, need_second, false);
  const Tensor at = places_of(first, coords), dense = in_order(grad), slopes = new_gradient(at, need_coords, false);
  if (grad.numel() > 0 && (need_first || need_second || need_coords))
    dispatch_floating(first.scalar_type(), "first", [&](auto zero) {
      using T = decltype(zero);
      using A = Arithmetic<T>;
      const auto from = pixels_of<T>(first), other = pixels_of<T>(second);
      const int64_t taps = p.window() + 1, each = p.width * levels * taps * taps;
      const int64_t block = std::min(p.height, std::max<int64_t>(1, kBlock / each));
      const Features<A> features(p, second);
      std::optional<Features<A>> sums;
      if (need_second) sums.emplace(p, second);
      const int64_t stride = features.stride, vectors = stride / kLanes<A>, bands = ceil_div<int64_t>(vectors, kBand);
      std::vector<A> pixels(block * p.width * stride), factors(block * each);
      for (int64_t b = 0; b < p.batch; ++b) {
        if (need_first || need_coords) features.load(other, b, p.channels);
        if (need_second) sums->clear();
        const Backward<T, A> task{p,
                                  features,
                                  Places<A>(p, at, b),
                                  b,
                                  p.window(),
                                  taps,
                                  stride,
                                  data_of<T>(dense) + b * levels * p.window() * p.window() * p.pixels(),
                                  need_first,
                                  need_coords,
                                  pixels,
                                  factors};
        A* const to = need_coords ? data_of<A>(slopes) + 2 * b * p.pixels() : nullptr;
        for (int64_t row = 0; row < p.height; row += block) {
          const int64_t rows = std::min(block, p.height - row);
          torch::stable::parallel_for(0, rows, 1, [&](int64_t r, int64_t end) {
            for (; r < end; ++r) task.run_row(from, row + r, r, grad_first, to);
          });
          if (!need_second) continue;
          torch::stable::parallel_for(0, levels * bands, 1, [&](int64_t i, int64_t end) {
            for (; i < end; ++i) {
              const int64_t band = i % bands * kBand;
              task.run_band(*sums, row, rows, i / bands, band, std::min<int64_t>(kBand, vectors - band));
            }
          });
        }
        if (need_second) sums->template store<T>(grad_second, b, p.channels);
      }
    });
  return {grad_first, grad_second, contiguous_as(slopes, coords.scalar_type())};
}

}  // namespace
}  // namespace pyops::corr2d

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "corr2d_lookup_on_demand(Tensor first, Tensor second, Tensor coords, SymInt radius, SymInt levels, "
      "float? scale) -> Tensor");
  m.def(
      "corr2d_lookup_on_demand_backward(Tensor grad, Tensor first, Tensor second, Tensor coords, SymInt radius, "
      "SymInt levels, float? scale, bool need_first, bool need_second, bool need_coords) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("corr2d_lookup_on_demand", TORCH_BOX(&pyops::corr2d::forward));
  m.impl("corr2d_lookup_on_demand_backward", TORCH_BOX(&pyops::corr2d::backward));
}
