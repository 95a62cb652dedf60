// Group-wise correlation on the CPU: a task takes rows of groups one by one. Features of a row, and in the backward as
// much of its gradients as a cache holds, are unpacked to arithmetic once; every result is written once.
#include <torch/csrc/stable/ops.h>

#include "../common/pixel.h"
#include "groupwise_args.h"
#include "groupwise_rows.h"

namespace pyops::groupwise {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kGrain = 1 << 17;  // multiplications worth a thread
constexpr int64_t kSlab = 1 << 15;  // gradients of a row that are unpacked at a time, where eight disparities are fewer

// ---- what is compiled for every instruction set ------------------------------------------------------------------------

#define PYOPS_ROWS(A)                                                                                                \
  PYOPS_MULTIVERSION void correlate_row(const A* left, const A* right, int64_t stride, int64_t channels, A scale,    \
                                        int64_t width, int64_t disparities, A* to, int64_t to_stride) {              \
    rows::correlate_row<A>(left, right, stride, channels, scale, width, disparities, to, to_stride);                 \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void gather_row(const A* grad, int64_t grad_step, const A* other, int64_t other_step,           \
                                     int64_t disparities, int64_t channels, int64_t width, A* to, int64_t stride) {  \
    rows::gather_row<A>(grad, grad_step, other, other_step, disparities, channels, width, to, stride);               \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void normalize_rows(A* features, int64_t stride, int64_t channels, int64_t width, A* inverse) { \
    rows::normalize_rows<A>(features, stride, channels, width, inverse);                                             \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void project_rows(A* grad, const A* features, int64_t stride, int64_t channels, int64_t width,  \
                                       const A* inverse, A* along) {                                                 \
    rows::project_rows<A>(grad, features, stride, channels, width, inverse, along);                                  \
  }
PYOPS_ROWS(float)
PYOPS_ROWS(double)
#undef PYOPS_ROWS

#define PYOPS_ROW_IO(T, A)                                                                    \
  PYOPS_MULTIVERSION void load_row(const T* from, int64_t step, int64_t n, A* to) {           \
    if (step == 1)                                                                            \
      for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i]);                          \
    else                                                                                      \
      for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i * step]);                   \
  }                                                                                           \
  PYOPS_MULTIVERSION void store_row(const A* from, A scale, int64_t step, int64_t n, T* to) { \
    if (step == 1)                                                                            \
      for (int64_t i = 0; i < n; ++i) to[i] = encode<T, A>(from[i] * scale);                  \
    else                                                                                      \
      for (int64_t i = 0; i < n; ++i) to[i * step] = encode<T, A>(from[i] * scale);           \
  }
PYOPS_ROW_IO(float, float)
PYOPS_ROW_IO(Half, float)
PYOPS_ROW_IO(BFloat16, float)
PYOPS_ROW_IO(double, double)
#undef PYOPS_ROW_IO

// ---- rows of groups ----------------------------------------------------------------------------------------------------

struct Row {
  int64_t b, g, y;
};

// Neighbours in memory follow each other: rows of a plane, or groups of a pixel.
Row row_at(const Problem& p, bool channels_inside, int64_t i) {
  const int64_t rest = i % (p.groups * p.height), b = i / (p.groups * p.height);
  if (channels_inside) return {b, rest % p.groups, rest / p.groups};
  return {b, rest / p.height, rest % p.height};
}

template <class T>
T* start_of(const Pixels<T>& features, const Problem& p, const Row& at) {
  return features.data + at.b * features.batch + at.g * p.each() * features.channel + at.y * features.row;
}

// The features of a group in one row, left and right, with zeros around: `margin` of them before each row.
template <class A>
struct Features {
  int64_t margin, stride;
  std::vector<A> memory, inverse;
  A *left, *right;

  explicit Features(const Problem& p)
      : margin(ceil_div(p.disparities, rows::kLanes<A>) * rows::kLanes<A>),
        stride(margin + ceil_div(p.width + p.disparities + rows::kLanes<A>, rows::kLanes<A>) * rows::kLanes<A>),
        memory(2 * p.each() * stride),
        inverse(2 * p.width),
        left(memory.data() + margin),
        right(left + p.each() * stride) {}

  template <class T>
  void load(const Problem& p, const Pixels<T>& l, const Pixels<T>& r, const Row& at) {
    load_side(p, l, at, left), load_side(p, r, at, right);
    if (!p.normalize) return;
    normalize_rows(left, stride, p.each(), p.width, inverse.data());
    normalize_rows(right, stride, p.each(), p.width, inverse.data() + p.width);
  }

 private:
  template <class T>
  void load_side(const Problem& p, const Pixels<T>& from, const Row& at, A* to) {
    const T* start = start_of(from, p, at);
    for (int64_t c = 0; c < p.each(); ++c) load_row(start + c * from.channel, from.column, p.width, to + c * stride);
  }
};

template <class F>
void for_rows(const Problem& p, const F& f) {
  const int64_t work = std::max<int64_t>(1, p.each() * p.disparities * p.width);
  parallel_for(0, p.rows(), std::max<int64_t>(1, kGrain / work), f);
}

template <class T>
void correlate(const Problem& p, const Tensor& left_tensor, const Tensor& right_tensor, const Tensor& out_tensor) {
  using A = Arithmetic<T>;
  constexpr bool direct = std::is_same_v<T, A>;
  const auto left = pixels_of<T>(left_tensor), right = pixels_of<T>(right_tensor);
  const auto out = volume_of<T>(out_tensor);
  for_rows(p, [&](int64_t i, int64_t end) {
    Features<A> features(p);
    std::vector<A> volume(direct ? 0 : p.disparities * p.width);
    for (; i < end; ++i) {
      const Row at = row_at(p, left.channel == 1, i);
      features.load(p, left, right, at);
      T* const to = out.data + at.b * out.batch + at.g * out.group + at.y * out.row;
      if constexpr (direct) {
        correlate_row(features.left, features.right, features.stride, p.each(), A(p.scale()), p.width, p.disparities,
                      to, out.disparity);
      } else {
        correlate_row(features.left, features.right, features.stride, p.each(), A(p.scale()), p.width, p.disparities,
                      volume.data(), p.width);
        for (int64_t d = 0; d < p.disparities; ++d)
          store_row(volume.data() + d * p.width, A(1), 1, p.width, to + d * out.disparity);
      }
    }
  });
}

// One side of the backward: the gradient of the features of a group in one row, and where it goes.
template <class T>
struct Side {
  using A = Arithmetic<T>;
  bool need;
  Pixels<T> to;
  std::vector<A> grad;

  Side(const Tensor& t, bool need, int64_t floats) : need(need), to{}, grad(need ? floats : 0) {
    if (need) to = pixels_of<T>(t);
  }
  void finish(const Problem& p, const Row& at, const A* features, const A* inverse, int64_t stride, A* along) {
    if (!need) return;
    if (p.normalize) project_rows(grad.data(), features, stride, p.each(), p.width, inverse, along);
    T* const start = start_of(to, p, at);
    for (int64_t c = 0; c < p.each(); ++c)
      store_row(grad.data() + c * stride, A(p.scale()), to.column, p.width, start + c * to.channel);
  }
};

template <class T>
void backpropagate(const Problem& p, const Tensor& grad_tensor, const Tensor& left_tensor, const Tensor& right_tensor,
                   const Tensor& grad_left, const Tensor& grad_right, bool need_left, bool need_right) {
  using A = Arithmetic<T>;
  const auto left = pixels_of<T>(left_tensor), right = pixels_of<T>(right_tensor);
  const auto grad = volume_of<T>(grad_tensor);
  for_rows(p, [&](int64_t i, int64_t end) {
    Features<A> features(p);
    const int64_t stride = features.stride, n = p.each();
    Side<T> l(grad_left, need_left, n * stride), r(grad_right, need_right, n * stride);
    const int64_t most = std::min(p.disparities, std::max<int64_t>(8, kSlab / stride));
    std::vector<A> slab(most * stride), along(p.width);
    for (; i < end; ++i) {
      const Row at = row_at(p, left.channel == 1, i);
      features.load(p, left, right, at);
      std::fill(l.grad.begin(), l.grad.end(), A(0)), std::fill(r.grad.begin(), r.grad.end(), A(0));
      const T* const from = grad.data + at.b * grad.batch + at.g * grad.group + at.y * grad.row;
      for (int64_t first = 0; first < p.disparities; first += most) {
        const int64_t count = std::min(most, p.disparities - first);
        for (int64_t k = 0; k < count; ++k) {
          const int64_t d = first + k;
          A* const to = slab.data() + k * stride;
          std::fill(to, to + d, A(0));  // constant zeros there
          load_row(from + d * grad.disparity + d * grad.column, grad.column, p.width - d, to + d);
        }
        if (l.need)
          gather_row(slab.data(), stride, features.right - first, -1, count, n, p.width, l.grad.data(), stride);
        if (r.need)
          gather_row(slab.data() + first, stride + 1, features.left + first, 1, count, n, p.width, r.grad.data(),
                     stride);
      }
      l.finish(p, at, features.left, features.inverse.data(), stride, along.data());
      r.finish(p, at, features.right, features.inverse.data() + p.width, stride, along.data());
    }
  });
}

// ---- operators ---------------------------------------------------------------------------------------------------------

Tensor forward(const Tensor& left, const Tensor& right, int64_t max_disparity, int64_t groups, bool normalize) {
  const Problem p = check(left, right, max_disparity, groups, normalize);
  const Tensor out = new_tensor(left, p.volume(), left.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(left.scalar_type(), "left", [&](auto zero) { correlate<decltype(zero)>(p, left, right, out); });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& left, const Tensor& right, bool normalize,
                                    bool need_left, bool need_right) {
  const Problem p = check_gradient(grad, left, right, normalize);
  const Tensor grad_left = new_gradient(left, need_left), grad_right = new_gradient(right, need_right);
  if (grad.numel() == 0) return {grad_left, grad_right};
  dispatch_floating(left.scalar_type(), "left", [&](auto zero) {
    backpropagate<decltype(zero)>(p, grad, left, right, grad_left, grad_right, need_left, need_right);
  });
  return {grad_left, grad_right};
}

}  // namespace
}  // namespace pyops::groupwise

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def(
      "groupwise_correlation(Tensor left, Tensor right, SymInt max_disparity, SymInt groups, bool normalize) -> "
      "Tensor");
  m.def(
      "groupwise_correlation_backward(Tensor grad, Tensor left, Tensor right, bool normalize, bool need_left, "
      "bool need_right) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("groupwise_correlation", TORCH_BOX(&pyops::groupwise::forward));
  m.impl("groupwise_correlation_backward", TORCH_BOX(&pyops::groupwise::backward));
}
