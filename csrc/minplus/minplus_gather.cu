// Min-plus products of a sparse matrix on CUDA. A warp makes a piece of a row of the result, and all rows of a block of
// columns come before the next, so that these columns of the dense matrix stay in the cache of the device. The backward
// finds where the minima were in the same way; then a warp adds up a row of a gradient, or a piece of one, in the order
// of its sums.
#include "../common/segments.cuh"
#include "minplus.cuh"
#include "minplus_gather_args.h"

namespace pyops::minplus {
namespace {

constexpr int kPiece = kWarp * kOwned;  // columns of a warp

template <class T>
struct Given {
  Matrices<const T> lengths, rows;
  Matrices<const int64_t> indices;
};

template <class T>
Given<T> given(const Tensor& lengths, const Tensor& indices, const Tensor& rows) {
  return {matrices_of<const T>(lengths), matrices_of<const T>(rows), matrices_of<const int64_t>(indices)};
}

// f(line, column) for the warps of all pieces of `lines` rows; column is that of the lane.
template <class F>
__device__ __forceinline__ void for_pieces(int64_t lines, int64_t columns, const F& f) {
  const int64_t items = lines * ceil_div<int64_t>(columns, kPiece);
  const int lane = int(threadIdx.x) % kWarp;
  for (int64_t i = global_thread() / kWarp; i < items; i += grid_threads() / kWarp)
    f(i % lines, i / lines * kPiece + lane);
}

// take(j, i, sum) for the entries j of a line and the columns i of a thread.
template <class T, class F>
__device__ __forceinline__ void for_sums(const Given<T>& g, const Sparse& p, int64_t line, int64_t column,
                                         const F& take) {
  const int64_t b = line / p.queries, m = line % p.queries;
  const int64_t* const indices = g.indices.data + b * g.indices.batch + m * g.indices.row;
  const T* const lengths = g.lengths.data + b * g.lengths.batch + m * g.lengths.row;
  for (int64_t j = 0; j < p.each; ++j) {
    const int64_t index = indices[j * g.indices.column];
    if (!p.has(index)) continue;
    const float length = decode<T, float>(lengths[j * g.lengths.column]);
    const T* const row = g.rows.data + b * g.rows.batch + index * g.rows.row;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int64_t c = column + i * kWarp;
      if (c < p.columns) take(int(j), i, length + decode<T, float>(row[c * g.rows.column]));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) reach(const Given<T> g, const Sparse p, T* out) {
  for_pieces(p.lines(), p.columns, [&](int64_t line, int64_t column) {
    float best[kOwned];
#pragma unroll
    for (int i = 0; i < kOwned; ++i) best[i] = kInfinity;
    for_sums(g, p, line, column, [&](int, int i, float sum) { best[i] = least(best[i], sum); });
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int64_t c = column + i * kWarp;
      if (c < p.columns) out[line * p.columns + c] = encode<T, float>(best[i]);
    }
  });
}

// j(m, l) of all results, [B, M, L].
template <class T>
__global__ void __launch_bounds__(kThreads) find_entries(const Given<T> g, const Sparse p, int* out) {
  for_pieces(p.lines(), p.columns, [&](int64_t line, int64_t column) {
    float best[kOwned];
    int index[kOwned];
#pragma unroll
    for (int i = 0; i < kOwned; ++i) best[i] = kInfinity, index[i] = -1;
    for_sums(g, p, line, column, [&](int j, int i, float sum) {
      if (precedes(sum, best[i])) best[i] = sum, index[i] = j;
    });
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int64_t c = column + i * kWarp;
      if (c < p.columns) out[line * p.columns + c] = index[i];
    }
  });
}

// to[n][l] = sum over the entries (m, j) that lead to n, in their order, of grad[m][l] where j is that of the minimum.
template <class T>
__global__ void __launch_bounds__(kThreads)
    sum_rows(const Matrices<const T> grad, const int* found, const int64_t* order, const int64_t* starts,
             const Sparse p, T* out) {
  for_pieces(p.batch * p.points, p.columns, [&](int64_t row, int64_t column) {
    float sum[kOwned] = {};
    for (int64_t k = starts[row]; k < starts[row + 1]; ++k) {
      const int64_t line = order[k] / p.each;
      const int j = int(order[k] % p.each);
      const T* const upstream = grad.data + line / p.queries * grad.batch + line % p.queries * grad.row;
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        const int64_t c = column + i * kWarp;
        if (c < p.columns && found[line * p.columns + c] == j) sum[i] += decode<T, float>(upstream[c * grad.column]);
      }
    }
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      const int64_t c = column + i * kWarp;
      if (c < p.columns) out[row * p.columns + c] = encode<T, float>(sum[i]);
    }
  });
}

unsigned blocks_of(int64_t lines, int64_t columns) {
  return blocks_for(lines * ceil_div<int64_t>(columns, kPiece), kThreads / kWarp, 1 << 20);
}

Tensor forward(const Tensor& lengths, const Tensor& indices, const Tensor& rows) {
  const Sparse p = check_sparse(lengths, indices, rows);
  const Tensor out = new_tensor(rows, {p.batch, p.queries, p.columns}, rows.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(rows);
  dispatch_float(rows.scalar_type(), "rows", [&](auto zero) {
    using T = decltype(zero);
    launch("min_plus_gather", reach<T>, blocks_of(p.lines(), p.columns), kThreads, 0, scope.stream(),
           given<T>(lengths, indices, rows), p, static_cast<T*>(out.mutable_data_ptr()));
  });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& lengths, const Tensor& indices,
                                    const Tensor& rows, bool need_lengths, bool need_rows) {
  const char* const name = "min_plus_gather_backward";
  const Sparse p = check_sparse_gradient(grad, lengths, indices, rows);
  const Tensor grad_lengths = new_gradient(lengths, need_lengths, false);
  const Tensor grad_rows = new_gradient(rows, need_rows, false);
  const Tensor found = new_tensor(rows, {p.batch, p.queries, p.columns}, ScalarType::Int);
  const DeviceScope scope(rows);
  int* const at = static_cast<int*>(found.mutable_data_ptr());
  const int64_t size = p.queries * p.columns;
  dispatch_float(rows.scalar_type(), "rows", [&](auto zero) {
    using T = decltype(zero);
    const auto from = matrices_of<const T>(grad);
    if (found.numel() > 0)
      launch(name, find_entries<T>, blocks_of(p.lines(), p.columns), kThreads, 0, scope.stream(),
             given<T>(lengths, indices, rows), p, at);
    if (need_lengths)
      launch_gather(name, Gather{at, size, p.columns, 1, p.queries, p.columns, p.each, p.entries(), p.each, 1}, p.batch,
                    from.data, from.batch, from.row, from.column, static_cast<T*>(grad_lengths.mutable_data_ptr()),
                    scope.stream());
    if (grad_rows.numel() > 0) {
      const auto segments = segments::find(name, in_order(indices), p.batch, p.entries(), p.points, scope.stream());
      launch(name, sum_rows<T>, blocks_of(p.batch * p.points, p.columns), kThreads, 0, scope.stream(), from,
             static_cast<const int*>(at), segments.entries(), segments.begins(), p,
             static_cast<T*>(grad_rows.mutable_data_ptr()));
    }
  });
  return {grad_lengths, grad_rows};
}

}  // namespace
}  // namespace pyops::minplus

PYOPS_CUDA_KERNELS(m) {
  m.impl("min_plus_gather", TORCH_BOX(&pyops::minplus::forward));
  m.impl("min_plus_gather_backward", TORCH_BOX(&pyops::minplus::backward));
}
