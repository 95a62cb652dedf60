// Min-plus products on the CPU. Both operands are packed into panels once; threads then take blocks of the result. The
// backward finds the indices of the least sums anew: keeping them would cost a forward that no gradient follows twice
// its time.
#include "../common/pixel.h"
#include "minplus_cpu.h"

namespace pyops::minplus {
namespace {

template <class T>
void multiply(const Problem& p, const Tensor& a, const Tensor& b, const Tensor& out) {
  using A = Arithmetic<T>;
  const Operands<A> from(p, matrices_of<T>(a), matrices_of<T>(b));
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  for_blocks(p, [&](const Block& at) {
    T* const start = to + (at.matrix * p.rows + at.row) * p.columns + at.column;
    thread_local std::vector<A> sums;
    A* block = nullptr;
    int64_t stride = kBlockColumns;
    if constexpr (std::is_same_v<T, A>) {
      block = start, stride = p.columns;
    } else {
      sums.resize(kBlockRows * kBlockColumns);
      block = sums.data();
    }
    for (int64_t r = 0; r < at.rows; ++r) std::fill(block + r * stride, block + r * stride + at.columns, kInfinity<A>);
    update(from, at, block, stride);
    if constexpr (!std::is_same_v<T, A>)
      for (int64_t r = 0; r < at.rows; ++r) encode_row(block + r * stride, at.columns, start + r * p.columns);
  });
}

// to[m][k] = sum over n with indices[m][n] = k of grad[m][n], in the order of n.
template <class T>
void gather_rows(const Problem& p, const int32_t* indices, const Matrices<T>& grad, T* to) {
  using A = Arithmetic<T>;
  const int64_t grain = std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, p.columns + p.inner));
  parallel_for(0, p.batch * p.rows, grain, [&](int64_t i, int64_t end) {
    std::vector<A> sums(p.inner);
    for (; i < end; ++i) {
      const int32_t* const from = indices + i * p.columns;
      const T* const upstream = grad.data + i / p.rows * grad.batch + i % p.rows * grad.row;
      std::fill(sums.begin(), sums.end(), A(0));
      for (int64_t n = 0; n < p.columns; ++n)
        if (from[n] >= 0) sums[from[n]] += decode<T, A>(upstream[n * grad.column]);
      encode_row(sums.data(), p.inner, to + i * p.inner);
    }
  });
}

template <class T>
void backpropagate(const Problem& p, const Tensor& grad_tensor, const Tensor& a, const Tensor& b, const Tensor& grad_a,
                   const Tensor& grad_b, bool need_a, bool need_b) {
  using A = Arithmetic<T>;
  const auto grad = matrices_of<T>(grad_tensor);
  const Operands<A> from(p, matrices_of<T>(a), matrices_of<T>(b));
  const std::vector<int32_t> indices = find_indices<A>(p, from);
  if (need_a) gather_rows<T>(p, indices.data(), grad, static_cast<T*>(grad_a.mutable_data_ptr()));
  if (!need_b) return;
  const auto upstream = [&](int64_t matrix, int64_t m, int64_t n) {
    return decode<T, A>(grad.data[matrix * grad.batch + m * grad.row + n * grad.column]);
  };
  gather_columns<T, A>(p, indices.data(), upstream, static_cast<T*>(grad_b.mutable_data_ptr()));
}

Tensor forward(const Tensor& a, const Tensor& b) {
  const Problem p = check(a, b);
  const Tensor out = new_tensor(a, p.product(), a.scalar_type());
  if (out.numel() == 0) return out;
  dispatch_floating(a.scalar_type(), "a", [&](auto zero) { multiply<decltype(zero)>(p, a, b, out); });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& a, const Tensor& b, bool need_a, bool need_b) {
  const Problem p = check_gradient(grad, a, b);
  const Tensor grad_a = new_gradient(a, need_a, false), grad_b = new_gradient(b, need_b, false);
  if ((need_a && a.numel() > 0) || (need_b && b.numel() > 0)) {
    dispatch_floating(a.scalar_type(), "a",
                      [&](auto zero) { backpropagate<decltype(zero)>(p, grad, a, b, grad_a, grad_b, need_a, need_b); });
  }
  return {grad_a, grad_b};
}

}  // namespace
}  // namespace pyops::minplus

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("min_plus_matmul(Tensor a, Tensor b) -> Tensor");
  m.def("min_plus_matmul_backward(Tensor grad, Tensor a, Tensor b, bool need_a, bool need_b) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("min_plus_matmul", TORCH_BOX(&pyops::minplus::forward));
  m.impl("min_plus_matmul_backward", TORCH_BOX(&pyops::minplus::backward));
}
