// Correlations along rows on demand, on the CPU: a task takes row by row. Features of a row are turned so that those of
// a column lie together, right also averaged for every level; then each correlation is a product of two vectors.
#include <torch/csrc/stable/ops.h>

#include <algorithm>

#include "../common/columns.h"
#include "corr1d_args.h"

namespace pyops::corr1d {
namespace {

using namespace columns;
using simd::kLanes;
using simd::Vector;

// Adds to column `to_left` the kCount columns from `right` on, each by its factor, and to those in `to_right` `left`.
template <int kCount, class A>
PYOPS_HD void add_products(const A* factor, const A* left, const A* right, int64_t stride, A* to_left, A* to_right) {
  Vector<A> f[kCount];
#pragma GCC unroll 10
  for (int k = 0; k < kCount; ++k) f[k] = simd::splat(factor[k]);
  for (int64_t c = 0; c < stride; c += kLanes<A>) {
    const auto l = simd::load<Vector<A>>(left + c);
    auto sum = simd::load<Vector<A>>(to_left + c);
#pragma GCC unroll 10
    for (int k = 0; k < kCount; ++k) {
      sum += f[k] * simd::load<Vector<A>>(right + k * stride + c);
      A* const to = to_right + k * stride + c;
      simd::store(to, simd::load<Vector<A>>(to) + f[k] * l);
    }
    simd::store(to_left + c, sum);
  }
}

#define PYOPS_PRODUCTS(A)                                                                                             \
  PYOPS_MULTIVERSION void add_all(const A* factor, const A* left, const A* right, int64_t stride, int64_t n,          \
                                  A* to_left, A* to_right) {                                                          \
    int64_t k = 0;                                                                                                    \
    for (; k + 5 <= n; k += 5)                                                                                        \
      add_products<5>(factor + k, left, right + k * stride, stride, to_left, to_right + k * stride);                  \
    for (; k < n; ++k) add_products<1>(factor + k, left, right + k * stride, stride, to_left, to_right + k * stride); \
  }                                                                                                                   \
  /* Means of pairs of columns. */                                                                                    \
  PYOPS_MULTIVERSION void average(const A* from, int64_t n, int64_t stride, A* to) {                                  \
    for (int64_t j = 0; j < n; ++j)                                                                                   \
      for (int64_t c = 0; c < stride; ++c)                                                                            \
        to[j * stride + c] = (from[2 * j * stride + c] + from[(2 * j + 1) * stride + c]) * A(0.5);                    \
  }                                                                                                                   \
  PYOPS_MULTIVERSION void repeat(const A* from, int64_t n, int64_t stride, A* to) {                                   \
    for (int64_t j = 0; j < n; ++j)                                                                                   \
      for (int64_t c = 0; c < stride; ++c) {                                                                          \
        const A half = from[j * stride + c] * A(0.5);                                                                 \
        to[2 * j * stride + c] += half, to[(2 * j + 1) * stride + c] += half;                                         \
      }                                                                                                               \
  }
PYOPS_PRODUCTS(float)
PYOPS_PRODUCTS(double)
#undef PYOPS_PRODUCTS

// Columns of a row: left, and every level of right, one after the other.
template <class A>
struct Columns {
  int64_t stride;
  std::vector<int64_t> taps, start;  // of each level: how many columns, where in `right`
  std::vector<A> left, right;

  explicit Columns(const Problem& p) : stride(ceil_div(p.channels, kLanes<A>) * kLanes<A>), left(p.width * stride) {
    int64_t all = 0;
    for (int64_t l = 0; l < p.levels; ++l) {
      taps.push_back(p.columns >> l), start.push_back(all * stride);
      all += taps.back();
    }
    right.resize(all * stride);
  }

  template <class T>
  void load(const Problem& p, const Pixels<T>& l, const Pixels<T>& r, int64_t b, int64_t y) {
    turn(l.data + b * l.batch + y * l.row, l.channel, l.column, p.channels, p.width, stride, left.data());
    turn(r.data + b * r.batch + y * r.row, r.channel, r.column, p.channels, p.columns, stride, right.data());
    for (int64_t i = 1; i < p.levels; ++i) average(level(i - 1), taps[i], stride, level(i));
  }
  A* level(int64_t l) { return right.data() + start[l]; }
  A* column(int64_t x) { return left.data() + x * stride; }
};

template <class F>
void for_rows(const Problem& p, const F& f) {
  torch::stable::parallel_for(0, p.batch * p.height, 1, f);
}

// Correlations of a pixel with the window of a level, 0 outside; unscaled.
template <class A>
void window_of(Columns<A>& columns, int64_t x, int64_t l, int first, int64_t n, A* to) {
  int64_t begin, end;
  clip(first, n, columns.taps[l], begin, end);
  std::fill(to, to + begin, A(0)), std::fill(to + end, to + n, A(0));
  if (begin < end)
    multiply_all(columns.column(x), columns.level(l) + (first + begin) * columns.stride, columns.stride, end - begin,
                 to + begin);
}

Tensor forward(const Tensor& left, const Tensor& right, const Tensor& x, int64_t radius, int64_t levels,
               std::optional<double> scale) {
  const Problem p = check(left, right, x, radius, levels, scale);
  const Tensor out = new_tensor(left, p.result(), left.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(left.scalar_type(), "left", [&](auto zero) {
    using T = decltype(zero);
    using A = Arithmetic<T>;
    const Tensor at = contiguous_as(x, sizeof(A) == 8 ? ScalarType::Double : ScalarType::Float);
    const A* const places = static_cast<const A*>(at.const_data_ptr());
    const auto l = pixels_of<T>(left), r = pixels_of<T>(right);
    T* const to = static_cast<T*>(out.mutable_data_ptr());
    for_rows(p, [&](int64_t i, int64_t end) {
      Columns<A> columns(p);
      std::vector<A> taps(p.window() + 1);
      for (; i < end; ++i) {
        const int64_t b = i / p.height, y = i % p.height;
        columns.load(p, l, r, b, y);
        for (int64_t k = 0; k < levels; ++k)  // neighbours share most of their windows of a level
          for (int64_t w = 0; w < p.width; ++w) {
            const lookup::Place<A> place(places[i * p.width + w] * A(std::ldexp(1., -int(k))), p.radius);
            window_of(columns, w, k, place.first, p.window() + 1, taps.data());
            T* const from = to + ((b * levels + k) * p.window() * p.height + y) * p.width + w;
            for (int64_t d = 0; d < p.window(); ++d)
              from[d * p.height * p.width] =
                  encode<T, A>(A(p.scale) * ((1 - place.fraction) * taps[d] + place.fraction * taps[d + 1]));
          }
      }
    });
  });
  return out;
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& grad, const Tensor& left, const Tensor& right,
                                            const Tensor& x, int64_t radius, int64_t levels,
                                            std::optional<double> scale, bool need_features, bool need_x) {
  const Problem p = check(left, right, x, radius, levels, scale);
  check_gradient(p, grad, left);
  const Tensor grad_left = new_gradient(left, need_features, false),
               grad_right = new_gradient(right, need_features, false);
  const auto arithmetic = left.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  const Tensor slope = new_tensor(x, need_x ? sizes_of(x) : std::vector<int64_t>{0}, arithmetic);
  if (grad.numel() > 0)
    dispatch_floating(left.scalar_type(), "left", [&](auto zero) {
      using T = decltype(zero);
      using A = Arithmetic<T>;
      const Tensor at = contiguous_as(x, arithmetic), from = in_order(grad);
      const A* const places = static_cast<const A*>(at.const_data_ptr());
      const T* const grads = static_cast<const T*>(from.const_data_ptr());
      const auto l = pixels_of<T>(left), r = pixels_of<T>(right);
      const int64_t plane = p.height * p.width, n = p.window() + 1;
      for_rows(p, [&](int64_t i, int64_t end) {
        Columns<A> columns(p), to(p);
        std::vector<A> factor(n), taps(n), value(n);
        for (; i < end; ++i) {
          const int64_t b = i / p.height, y = i % p.height;
          columns.load(p, l, r, b, y);
          std::fill(to.left.begin(), to.left.end(), A(0)), std::fill(to.right.begin(), to.right.end(), A(0));
          A* const slopes = need_x ? static_cast<A*>(slope.mutable_data_ptr()) + i * p.width : nullptr;
          if (slopes) std::fill(slopes, slopes + p.width, A(0));
          for (int64_t k = 0; k < levels; ++k)
            for (int64_t w = 0; w < p.width; ++w) {
              const A position = places[i * p.width + w], inverse = A(std::ldexp(1., -int(k)));
              const lookup::Place<A> place(position * inverse, p.radius);
              const T* const g = grads + ((b * levels + k) * p.window() * p.height + y) * p.width + w;
              A last = 0;
              for (int64_t j = 0; j < n; ++j) {
                value[j] = j < n - 1 ? A(p.scale) * decode<T, A>(g[j * plane]) : A(0);
                factor[j] = (1 - place.fraction) * value[j] + place.fraction * last;
                last = value[j];
              }
              if (need_features) {
                int64_t begin, stop;
                clip(place.first, n, columns.taps[k], begin, stop);
                const int64_t offset = (place.first + begin) * columns.stride;
                if (begin < stop)
                  add_all(factor.data() + begin, columns.column(w), columns.level(k) + offset, columns.stride,
                          stop - begin, to.column(w), to.level(k) + offset);
              }
              if (slopes && position == position) {
                window_of(columns, w, k, place.first, n, taps.data());
                for (int64_t d = 0; d < n - 1; ++d) slopes[w] += inverse * value[d] * (taps[d + 1] - taps[d]);
              }
            }
          if (!need_features) continue;
          for (int64_t k = levels - 1; k > 0; --k) repeat(to.level(k), to.taps[k], to.stride, to.level(k - 1));
          const auto store = [&](const Tensor& t, const A* values, int64_t width) {
            T* const start = static_cast<T*>(t.mutable_data_ptr()) + (b * p.channels * p.height + y) * width;
            turn_back(values, to.stride, p.channels, width, start, p.height * width);
          };
          store(grad_left, to.left.data(), p.width), store(grad_right, to.right.data(), p.columns);
        }
      });
    });
  return {grad_left, grad_right, contiguous_as(slope, x.scalar_type())};
}

}  // namespace
}  // namespace pyops::corr1d

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "corr1d_lookup_on_demand(Tensor left, Tensor right, Tensor x, SymInt radius, SymInt levels, float? scale) -> "
      "Tensor");
  m.def(
      "corr1d_lookup_on_demand_backward(Tensor grad, Tensor left, Tensor right, Tensor x, SymInt radius, "
      "SymInt levels, float? scale, bool need_features, bool need_x) -> (Tensor, Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("corr1d_lookup_on_demand", TORCH_BOX(&pyops::corr1d::forward));
  m.impl("corr1d_lookup_on_demand_backward", TORCH_BOX(&pyops::corr1d::backward));
}
