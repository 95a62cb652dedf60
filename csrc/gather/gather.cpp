// Schemas of the stem, and its operators on the CPU. What scatters is turned round: entries are sorted by the point they
// come from, counting, so that each point sums its own in their order.
#include <torch/csrc/stable/ops.h>

#include <cstring>

#include "gather_args.h"
#include "gather_sums.h"

namespace pyops::gather {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kGrain = 1 << 14;  // numbers worth a thread

int64_t rows_worth_a_thread(int64_t each) { return std::max<int64_t>(1, kGrain / std::max<int64_t>(1, each)); }

#define PYOPS_SUMS(T, A)                                                                                             \
  PYOPS_MULTIVERSION void sum_places(const T* rows, int64_t stride, const int64_t* places, const A* weights,         \
                                     int64_t count, int64_t limit, int64_t channels, T* to) {                        \
    sum_rows<T, int64_t, A>(rows, stride, {places, weights, count, limit}, channels, to);                            \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void sum_segments(const T* rows, int64_t stride, const int32_t* places, const A* weights,       \
                                       const int32_t* starts, int64_t n, int64_t limit, int64_t channels, T* to) {   \
    for (int64_t i = 0; i < n; ++i, to += channels) {                                                                \
      const int64_t first = starts[i];                                                                               \
      sum_rows<T, int32_t, A>(rows, stride,                                                                          \
                              {places + first, weights ? weights + first : nullptr, starts[i + 1] - first, limit},   \
                              channels, to);                                                                         \
    }                                                                                                                \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void dot_places(const T* rows, int64_t stride, const T* other, const int64_t* places,           \
                                     int64_t count, int64_t limit, int64_t channels, A* to) {                        \
    for (int64_t i = 0; i < count; ++i)                                                                              \
      to[i] =                                                                                                        \
          uint64_t(places[i]) < uint64_t(limit) ? dot_rows<T, A>(rows + places[i] * stride, other, channels) : A(0); \
  }
PYOPS_SUMS(float, float)
PYOPS_SUMS(Half, float)
PYOPS_SUMS(BFloat16, float)
PYOPS_SUMS(double, double)
#undef PYOPS_SUMS

// Rows of few numbers are moved without a call.
template <int kCount, class T>
void copy_rows(const T* from, int64_t stride, const int64_t* places, int64_t n, int64_t points, int64_t channels,
               T* to) {
  const int64_t count = kCount ? kCount : channels;
  for (int64_t i = 0; i < n; ++i, to += count) {
    if (exists(places[i], points)) std::memcpy(to, from + places[i] * stride, size_t(count) * sizeof(T));
    else std::memset(to, 0, size_t(count) * sizeof(T));
  }
}

template <class T>
void gather(const Problem& p, const Tensor& values, const Tensor& indices, const Tensor& out) {
  const Rows<const T> from(values);
  const Tensor places_holder = in_order(indices);
  const int64_t* const places = static_cast<const int64_t*>(places_holder.const_data_ptr());
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  parallel_for(0, p.rows(), rows_worth_a_thread(p.channels), [&](int64_t i, int64_t end) {
    while (i < end) {
      const int64_t b = i / p.queries, n = std::min(end, (b + 1) * p.queries) - i;
      const auto copy = [&](auto few) {
        copy_rows<decltype(few)::value>(from.data + b * from.batch, from.row, places + i, n, p.points, p.channels,
                                        to + i * p.channels);
      };
      switch (p.channels) {
        case 1: copy(std::integral_constant<int, 1>()); break;
        case 2: copy(std::integral_constant<int, 2>()); break;
        case 3: copy(std::integral_constant<int, 3>()); break;
        case 4: copy(std::integral_constant<int, 4>()); break;
        case 8: copy(std::integral_constant<int, 8>()); break;
        case 16: copy(std::integral_constant<int, 16>()); break;
        default: copy(std::integral_constant<int, 0>());
      }
      i += n;
    }
  });
}

template <class A>
const A* data_of(const Tensor* t) {
  return t ? static_cast<const A*>(t->const_data_ptr()) : nullptr;
}

// The gradient of the values: `weights` [B, M, each] are null where rows were gathered as they are.
template <class T>
void scatter(const Problem& p, const Tensor& grad, const Tensor& indices, const Tensor* weights, const Tensor& out) {
  using A = Arithmetic<T>;
  const Rows<const T> from(grad);
  const Tensor places_holder = in_order(indices);
  const int64_t* const places = static_cast<const int64_t*>(places_holder.const_data_ptr());
  const A* const factors = data_of<A>(weights);
  const int64_t entries = p.entries();
  std::vector<int32_t> starts(p.batch * (p.points + 1)), rows(p.batch * entries);
  std::vector<A> sorted(factors ? p.batch * entries : 0);
  parallel_for(0, p.batch, 1, [&](int64_t b, int64_t end) {
    for (; b < end; ++b) {
      int32_t *const start = starts.data() + b * (p.points + 1), *const row = rows.data() + b * entries;
      const int64_t* const place = places + b * entries;
      for (int64_t i = 0; i < entries; ++i)
        if (exists(place[i], p.points)) ++start[place[i] + 1];
      for (int64_t n = 0; n < p.points; ++n) start[n + 1] += start[n];
      std::vector<int32_t> next(start, start + p.points);
      int64_t query = 0, left = p.each;
      for (int64_t i = 0; i < entries; ++i) {
        if (exists(place[i], p.points)) {
          const int32_t at = next[place[i]]++;
          row[at] = int32_t(query);
          if (factors) sorted[b * entries + at] = factors[b * entries + i];
        }
        if (--left == 0) ++query, left = p.each;
      }
    }
  });
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  const int64_t work = p.channels * (1 + entries / std::max<int64_t>(1, p.points));
  parallel_for(0, p.batch * p.points, rows_worth_a_thread(work), [&](int64_t i, int64_t end) {
    while (i < end) {
      const int64_t b = i / p.points, n = std::min(end, (b + 1) * p.points) - i;
      sum_segments(from.data + b * from.batch, from.row, rows.data() + b * entries,
                   factors ? sorted.data() + b * entries : nullptr, starts.data() + i + b, n, p.queries, p.channels,
                   to + i * p.channels);
      i += n;
    }
  });
}

template <class T>
void blend(const Problem& p, const Tensor& values, const Tensor& indices, const Tensor& weights, const Tensor& out) {
  using A = Arithmetic<T>;
  const Rows<const T> from(values);
  const Tensor places_holder = in_order(indices);
  const int64_t* const places = static_cast<const int64_t*>(places_holder.const_data_ptr());
  const A* const factors = data_of<A>(&weights);
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  parallel_for(0, p.rows(), rows_worth_a_thread(p.channels * p.each), [&](int64_t i, int64_t end) {
    for (; i < end; ++i)
      sum_places(from.data + i / p.queries * from.batch, from.row, places + i * p.each, factors + i * p.each, p.each,
                 p.points, p.channels, to + i * p.channels);
  });
}

template <class T>
void weigh(const Problem& p, const Tensor& grad, const Tensor& values, const Tensor& indices, const Tensor& out) {
  using A = Arithmetic<T>;
  const Rows<const T> from(values), upstream(grad);
  const Tensor places_holder = in_order(indices);
  const int64_t* const places = static_cast<const int64_t*>(places_holder.const_data_ptr());
  A* const to = static_cast<A*>(out.mutable_data_ptr());
  parallel_for(0, p.rows(), rows_worth_a_thread(p.channels * p.each), [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t b = i / p.queries;
      dot_places(from.data + b * from.batch, from.row,
                 upstream.data + b * upstream.batch + i % p.queries * upstream.row, places + i * p.each, p.each,
                 p.points, p.channels, to + i * p.each);
    }
  });
}

// ---- operators ---------------------------------------------------------------------------------------------------------

Tensor gather_points(const Tensor& values, const Tensor& indices) {
  const Problem p = check(values, indices);
  const Tensor out = new_tensor(values, {p.batch, p.queries, p.channels}, values.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(values.scalar_type(), "values",
                    [&](auto zero) { gather<decltype(zero)>(p, values, indices, out); });
  return out;
}

Tensor gather_points_backward(const Tensor& grad, const Tensor& indices, int64_t points) {
  const Problem p = check_gradient(grad, indices, points);
  const Tensor out = new_tensor(grad, {p.batch, p.points, p.channels}, grad.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(grad.scalar_type(), "grad",
                    [&](auto zero) { scatter<decltype(zero)>(p, grad, indices, nullptr, out); });
  return out;
}

ScalarType arithmetic_of(const Tensor& t) {
  return t.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

Tensor blend_points(const Tensor& values, const Tensor& indices, const Tensor& weights) {
  const Problem p = check_blend(values, indices, weights);
  const Tensor out = new_tensor(values, {p.batch, p.queries, p.channels}, values.scalar_type());
  if (out.numel() == 0) return out;
  const Tensor factors = contiguous_as(weights, arithmetic_of(values));
  dispatch_floating(values.scalar_type(), "values",
                    [&](auto zero) { blend<decltype(zero)>(p, values, indices, factors, out); });
  return out;
}

std::tuple<Tensor, Tensor> blend_points_backward(const Tensor& grad, const Tensor& values, const Tensor& indices,
                                                 const Tensor& weights, bool need_values, bool need_weights) {
  const Problem p = check_blend_gradient(grad, values, indices, weights);
  const Tensor grad_values = new_gradient(values, need_values);
  const auto arithmetic = arithmetic_of(values);
  Tensor grad_weights = new_tensor(weights, need_weights ? sizes_of(weights) : std::vector<int64_t>{0}, arithmetic);
  dispatch_floating(values.scalar_type(), "values", [&](auto zero) {
    using T = decltype(zero);
    const Tensor factors = contiguous_as(weights, arithmetic);
    if (grad_values.numel() > 0) scatter<T>(p, grad, indices, &factors, grad_values);
    if (grad_weights.numel() > 0) weigh<T>(p, grad, values, indices, grad_weights);
  });
  return {grad_values, contiguous_as(grad_weights, weights.scalar_type())};
}

}  // namespace
}  // namespace pyops::gather

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("gather_points(Tensor values, Tensor indices) -> Tensor");
  m.def("gather_points_backward(Tensor grad, Tensor indices, SymInt points) -> Tensor");
  m.def("blend_points(Tensor values, Tensor indices, Tensor weights) -> Tensor");
  m.def(
      "blend_points_backward(Tensor grad, Tensor values, Tensor indices, Tensor weights, bool need_values, "
      "bool need_weights) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("gather_points", TORCH_BOX(&pyops::gather::gather_points));
  m.impl("gather_points_backward", TORCH_BOX(&pyops::gather::gather_points_backward));
  m.impl("blend_points", TORCH_BOX(&pyops::gather::blend_points));
  m.impl("blend_points_backward", TORCH_BOX(&pyops::gather::blend_points_backward));
}
