// Min-plus products on CUDA, a block for each tile of the result. The backward finds where the minima were by the same
// tiles; then a warp adds up a row of each gradient in the order of its sums.
#include "minplus.cuh"

namespace pyops::minplus {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply(const Matrices<T> a, const Matrices<T> b, const Problem p, T* out) {
  const Place at(p, blockIdx.x);
  Tile tile;
  run_tile(
      tile, at.row, at.column, p, a.row == 1, b.column != 1,
      [&](int64_t m, int64_t k) { return decode<T, float>(a.data[at.matrix * a.batch + m * a.row + k * a.column]); },
      [&](int64_t k, int64_t n) { return decode<T, float>(b.data[at.matrix * b.batch + k * b.row + n * b.column]); });
  for_owned(at.row, at.column, p, [&](int64_t m, int64_t n, int i, int j) {
    out[(at.matrix * p.rows + m) * p.columns + n] = encode<T, float>(tile.best[i][j]);
  });
}

void check_tiles(const Problem& p) { PYOPS_CHECK(tiles_of(p) < kMost, "the result must be below 2^31 tiles"); }

Tensor forward(const Tensor& a, const Tensor& b) {
  const Problem p = check(a, b);
  const Tensor out = new_tensor(a, p.product(), a.scalar_type());
  if (out.numel() == 0) return out;
  check_tiles(p);
  const DeviceScope scope(a);
  dispatch_float(a.scalar_type(), "a", [&](auto zero) {
    using T = decltype(zero);
    launch("min_plus_matmul", multiply<T>, unsigned(tiles_of(p)), kThreads, 0, scope.stream(), matrices_of<T>(a),
           matrices_of<T>(b), p, static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& a, const Tensor& b, bool need_a, bool need_b) {
  const Problem p = check_gradient(grad, a, b);
  const Tensor grad_a = new_gradient(a, need_a, false), grad_b = new_gradient(b, need_b, false);
  const Tensor indices = new_tensor(a, p.product(), ScalarType::Int);
  check_tiles(p);
  const DeviceScope scope(a);
  int* const at = static_cast<int*>(indices.mutable_data_ptr());
  const int64_t size = p.rows * p.columns;
  dispatch_float(a.scalar_type(), "a", [&](auto zero) {
    using T = decltype(zero);
    const auto from = matrices_of<const T>(grad);
    if (indices.numel() > 0)
      launch("min_plus_matmul_backward", find_indices<T, T>, unsigned(tiles_of(p)), kThreads, 0, scope.stream(),
             matrices_of<T>(a), matrices_of<T>(b), p, at);
    if (need_a)
      launch_gather("min_plus_matmul_backward (a)",
                    Gather{at, size, p.columns, 1, p.rows, p.columns, p.inner, p.rows * p.inner, p.inner, 1}, p.batch,
                    from.data, from.batch, from.row, from.column, static_cast<T*>(grad_a.mutable_data_ptr()),
                    scope.stream());
    if (need_b)
      launch_gather("min_plus_matmul_backward (b)",
                    Gather{at, size, 1, p.columns, p.columns, p.rows, p.inner, p.inner * p.columns, 1, p.columns},
                    p.batch, from.data, from.batch, from.column, from.row, static_cast<T*>(grad_b.mutable_data_ptr()),
                    scope.stream());
  });
  return {grad_a, grad_b};
}

}  // namespace
}  // namespace pyops::minplus

PYOPS_CUDA_KERNELS(m) {
  m.impl("min_plus_matmul", TORCH_BOX(&pyops::minplus::forward));
  m.impl("min_plus_matmul_backward", TORCH_BOX(&pyops::minplus::backward));
}
