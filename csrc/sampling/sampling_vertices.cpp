// Interval vertices on the CPU: softmax and cumulative sum, in double from the exponentials on.
#include <cmath>

#include "sampling_cpu.h"

namespace pyops::sampling {
namespace {

// exp(logit - greatest logit); returns their sum, which is NaN where softmax is.
template <class A>
double exponentials(const A* logits, int64_t n, A* to) {
  const A greatest = *std::max_element(logits, logits + n);
  double total = 0;
  for (int64_t i = 0; i < n; ++i) total += to[i] = std::exp(logits[i] - greatest);
  return total;
}

}  // namespace

template <class A>
void vertices_from_logits(const A* logits, int64_t n, A* vertices) {
  A nothing = 0;
  for (int64_t i = 0; i < n; ++i) nothing += A(0) * logits[i];  // NaN where a logit is not finite
  const double total = exponentials(logits, n, vertices + 1);
  double sum = 0;
  for (int64_t k = 0; k <= n; ++k) {
    const double before = sum;
    if (k < n) sum += vertices[k + 1];
    vertices[k] = A(vertex_of(before, total, int(k), int(n) + 1)) + nothing;
  }
}

template <class A>
void logit_gradients(const double* grad, const A* logits, int64_t n, A* to) {
  const double total = exponentials(logits, n, to);
  double tail = 0, mean = 0;
  for (int64_t i = n - 1; i >= 0; --i) {
    mean += to[i] / total * tail;
    tail += grad[i];
  }
  tail = 0;
  for (int64_t i = n - 1; i >= 0; --i) {
    to[i] = A(logit_gradient(to[i] / total, tail, mean));
    tail += grad[i];
  }
}

template void vertices_from_logits(const float*, int64_t, float*);
template void vertices_from_logits(const double*, int64_t, double*);
template void logit_gradients(const double*, const float*, int64_t, float*);
template void logit_gradients(const double*, const double*, int64_t, double*);

namespace {

template <class F>
void dispatch_arithmetic(const Tensor& t, const F& f) {
  is_double(t) ? f(double()) : f(float());
}

Tensor interval_vertices(const Tensor& logits) {
  check_logits(logits);
  const Tensor out = new_tensor(logits, vertex_sizes(logits), logits.scalar_type());
  const int64_t n = logits.size(logits.dim() - 1), rows = logits.numel() / n;
  dispatch_arithmetic(logits, [&](auto arithmetic) {
    using A = decltype(arithmetic);
    const Tensor values = contiguous_as(logits, kDtype<A>);
    const A* from = values.template const_data_ptr<A>();
    char* to = static_cast<char*>(out.mutable_data_ptr());
    parallel_for(0, rows, grain_of(8 * n), [&](int64_t row, int64_t end) {
      std::vector<A> vertices(n + 1);
      for (; row < end; ++row) {
        vertices_from_logits(from + row * n, n, vertices.data());
        store_row(out.scalar_type(), vertices.data(), n + 1, to + row * (n + 1) * int64_t(out.element_size()), 1);
      }
    });
  });
  return out;
}

Tensor interval_vertices_backward(const Tensor& grad, const Tensor& logits) {
  check_logits(logits);
  PYOPS_CHECK(is_floating(grad) && sizes_of(grad) == vertex_sizes(logits),
              "grad must be floating point and have the shape of the vertices");
  check_same_device(grad, logits, "grad");
  const Tensor out = new_tensor(logits, sizes_of(logits), logits.scalar_type());
  const int64_t n = logits.size(logits.dim() - 1), rows = logits.numel() / n;
  dispatch_arithmetic(logits, [&](auto arithmetic) {
    using A = decltype(arithmetic);
    const Tensor values = contiguous_as(logits, kDtype<A>), upstream = contiguous_as(grad, ScalarType::Double);
    const A* from = values.template const_data_ptr<A>();
    const double* gradient = upstream.const_data_ptr<double>();
    char* to = static_cast<char*>(out.mutable_data_ptr());
    parallel_for(0, rows, grain_of(8 * n), [&](int64_t row, int64_t end) {
      std::vector<A> result(n);
      for (; row < end; ++row) {
        logit_gradients(gradient + row * (n + 1), from + row * n, n, result.data());
        store_row(out.scalar_type(), result.data(), n, to + row * n * int64_t(out.element_size()), 1);
      }
    });
  });
  return out;
}

}  // namespace
}  // namespace pyops::sampling

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("interval_vertices(Tensor logits) -> Tensor");
  m.def("interval_vertices_backward(Tensor grad, Tensor logits) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("interval_vertices", TORCH_BOX(&pyops::sampling::interval_vertices));
  m.impl("interval_vertices_backward", TORCH_BOX(&pyops::sampling::interval_vertices_backward));
}
