// Min-plus products of a sparse matrix on the CPU. Threads take blocks of columns, so wide that the processor fetches
// ahead in each row, and so narrow that rows may stay in the cache until another query reads them. The backward finds
// where the minima were anew, and adds up the gradient of the rows in the order of the queries, a block of columns each
// thread.
#include "../common/elements.h"
#include "minplus_gather_args.h"
#include "minplus_tiles.h"

namespace pyops::minplus {
namespace {

using simd::kLanes;
using simd::Vector;
using tiles::Integer;
using tiles::kInfinity;
using tiles::Mask;
using torch::stable::parallel_for;

constexpr int64_t kPiece = 16 << 10;         // bytes of a row in a block
constexpr int64_t kSums = int64_t(4) << 20;  // bytes of the sums of gradients of a block
constexpr int64_t kChunk = 512;              // columns at a time in the backward
constexpr int64_t kQueries = 64;             // of a piece of work
constexpr int64_t kGrain = 1 << 15;          // sums worth a thread

// ---- what is compiled for every instruction set ----------------------------------------------------------------------

// The entries of a query that lead somewhere, and which they are.
template <class T, class A>
struct Entries {
  const T** from;  // the rows
  A* lengths;
  int32_t *places, *which;
  int64_t count;

  PYOPS_HD void list(const Sparse& p, const T* given, const int64_t* indices, const T* rows, int64_t stride) {
    count = 0;
    for (int64_t j = 0; j < p.each; ++j) {
      if (!p.has(indices[j])) continue;
      from[count] = rows + indices[j] * stride;
      lengths[count] = decode<T, A>(given[j]);
      places[count] = int32_t(indices[j]), which[count] = int32_t(j);
      ++count;
    }
  }
};

template <int kVectors, class T, class A>
PYOPS_HD void reach_vectors(const Entries<T, A>& entries, int64_t c, T* to, int64_t n = kLanes<A>) {
  Vector<A> best[kVectors];
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) best[v] = simd::splat(kInfinity<A>);
  for (int64_t i = 0; i < entries.count; ++i) {
    const T* const from = entries.from[i] + c;
    const Vector<A> length = simd::splat(entries.lengths[i]);
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v)
      best[v] = tiles::least<true>(best[v], length + simd::load_elements<T, A>(from + v * kLanes<A>, n));
  }
#pragma GCC unroll 4
  for (int v = 0; v < kVectors; ++v) simd::store_elements<T, A>(to + v * kLanes<A>, best[v], n);
}

// Positions in the list of entries, -1 where there is none; `to` has room for a whole vector.
template <class T, class A>
PYOPS_HD void find_vector(const Entries<T, A>& entries, int64_t c, int64_t n, Integer<A>* to) {
  Vector<A> best = simd::splat(kInfinity<A>);
  Mask<A> index = tiles::splat_index(Integer<A>(-1)), at = tiles::splat_index(Integer<A>(0));
  for (int64_t i = 0; i < entries.count; ++i, at += 1) {
    const Vector<A> sum = simd::splat(entries.lengths[i]) + simd::load_elements<T, A>(entries.from[i] + c, n);
    const Mask<A> better = (sum < best) | ((sum != sum) & (best == best));
    index = better ? at : index;
    best = better ? sum : best;
  }
  simd::store(to, index);
}

// Columns [first, end) of `queries` rows of the result.
template <class T, class A>
PYOPS_HD void reach_block(const Sparse& p, const T* lengths, const int64_t* indices, const T* rows, int64_t stride,
                          int64_t queries, int64_t first, int64_t end, Entries<T, A> entries, T* to) {
  constexpr int64_t lanes = kLanes<A>;
  for (int64_t m = 0; m < queries; ++m) {
    entries.list(p, lengths + m * p.each, indices + m * p.each, rows, stride);
    int64_t c = first;
    for (; c + 4 * lanes <= end; c += 4 * lanes) reach_vectors<4>(entries, c, to + m * p.columns + c);
    for (; c < end; c += lanes) reach_vectors<1>(entries, c, to + m * p.columns + c, std::min(lanes, end - c));
  }
}

// Of one query: the sums of gradients over columns, and the row that each column comes from, if asked for.
template <class T, class A>
PYOPS_HD void trace_query(const Sparse& p, const T* grad, int64_t step, const Entries<T, A>& entries, A* sums,
                          int32_t* origins) {
  for (int64_t first = 0; first < p.columns; first += kChunk) {
    Integer<A> index[kChunk];
    const int64_t n = std::min(kChunk, p.columns - first);
    for (int64_t c = 0; c < n; c += kLanes<A>) find_vector(entries, first + c, std::min(kLanes<A>, n - c), index + c);
    if (sums) {
      for (int64_t c = 0; c < n; ++c)
        if (index[c] >= 0) sums[entries.which[index[c]]] += decode<T, A>(grad[(first + c) * step]);
    }
    if (origins)
      for (int64_t c = 0; c < n; ++c) origins[first + c] = index[c] < 0 ? -1 : entries.places[index[c]];
  }
}

#define PYOPS_QUERIES(T, A)                                                                                          \
  PYOPS_MULTIVERSION void reach(const Sparse& p, const T* lengths, const int64_t* indices, const T* rows,            \
                                int64_t stride, int64_t queries, int64_t first, int64_t end, Entries<T, A> entries,  \
                                T* to) {                                                                             \
    reach_block(p, lengths, indices, rows, stride, queries, first, end, entries, to);                                \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void trace(const Sparse& p, const T* grad, int64_t step, const Entries<T, A>& entries, A* sums, \
                                int32_t* origins) {                                                                  \
    trace_query(p, grad, step, entries, sums, origins);                                                              \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void encode_all(const A* from, int64_t n, T* to) {                                              \
    for (int64_t i = 0; i < n; ++i) to[i] = encode<T, A>(from[i]);                                                   \
  }
PYOPS_QUERIES(float, float)
PYOPS_QUERIES(Half, float)
PYOPS_QUERIES(BFloat16, float)
PYOPS_QUERIES(double, double)
#undef PYOPS_QUERIES

// ---- the whole -------------------------------------------------------------------------------------------------------

template <class T, class A>
struct Room {
  std::vector<const T*> from;
  std::vector<A> lengths;
  std::vector<int32_t> places, which;

  explicit Room(int64_t each) : from(each), lengths(each), places(each), which(each) {}
  Entries<T, A> entries() { return {from.data(), lengths.data(), places.data(), which.data(), 0}; }
};

// Rows whose elements follow each other.
Tensor with_dense_rows(const Tensor& t) {
  return t.stride(2) == 1 || t.size(2) == 1 ? t : torch::stable::contiguous(t);
}

template <class T>
const T* data_of(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}

template <class T>
void multiply(const Sparse& p, const Tensor& lengths, const Tensor& indices, const Tensor& rows, const Tensor& out) {
  using A = Arithmetic<T>;
  const auto from = matrices_of<const T>(rows);
  const int64_t wide = std::min(p.columns, kPiece / int64_t(sizeof(T))), across = ceil_div(p.columns, wide);
  const int64_t down = ceil_div(p.queries, kQueries), work = std::min(kQueries, p.queries) * wide * (p.each + 1);
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  parallel_for(0, p.batch * across * down, std::max<int64_t>(1, kGrain / work), [&](int64_t i, int64_t end) {
    Room<T, A> room(p.each);
    for (; i < end; ++i) {
      const int64_t b = i / down / across, column = i / down % across * wide, m = i % down * kQueries;
      const int64_t line = b * p.queries + m;
      reach(p, data_of<T>(lengths) + line * p.each, data_of<int64_t>(indices) + line * p.each,
            from.data + b * from.batch, from.row, std::min(kQueries, p.queries - m), column,
            std::min(column + wide, p.columns), room.entries(), to + line * p.columns);
    }
  });
}

// to[n][l] = sum over m with origins[m][l] = n of grad[m][l], in the order of m.
template <class T>
void gather_gradients(const Sparse& p, const int32_t* origins, const Matrices<T>& grad, T* to) {
  using A = Arithmetic<T>;
  const int64_t fitting = kSums / int64_t(sizeof(A)) / std::max<int64_t>(1, p.points) / 16 * 16;
  const int64_t wide = std::min(p.columns, std::max<int64_t>(16, std::min<int64_t>(256, fitting)));
  const int64_t across = ceil_div(p.columns, wide);
  const int64_t grain = std::max<int64_t>(1, kGrain / (wide * (p.queries + p.points)));
  parallel_for(0, p.batch * across, grain, [&](int64_t i, int64_t end) {
    std::vector<A> sums(p.points * wide);
    for (; i < end; ++i) {
      const int64_t b = i / across, column = i % across * wide, some = std::min(wide, p.columns - column);
      std::fill(sums.begin(), sums.end(), A(0));
      for (int64_t m = 0; m < p.queries; ++m) {
        const int32_t* const from = origins + (b * p.queries + m) * p.columns + column;
        const T* const upstream = grad.data + b * grad.batch + m * grad.row + column * grad.column;
        for (int64_t c = 0; c < some; ++c)
          if (from[c] >= 0) sums[from[c] * wide + c] += decode<T, A>(upstream[c * grad.column]);
      }
      for (int64_t n = 0; n < p.points; ++n)
        encode_all(sums.data() + n * wide, some, to + (b * p.points + n) * p.columns + column);
    }
  });
}

template <class T>
void backpropagate(const Sparse& p, const Tensor& grad_tensor, const Tensor& lengths, const Tensor& indices,
                   const Tensor& rows, const Tensor* grad_lengths, const Tensor* grad_rows) {
  using A = Arithmetic<T>;
  const auto from = matrices_of<const T>(rows);
  const auto grad = matrices_of<T>(grad_tensor);
  std::vector<int32_t> origins(grad_rows ? p.lines() * p.columns : 0);
  const int64_t work = std::max<int64_t>(1, (p.columns + 1) * (p.each + 1));
  parallel_for(0, p.lines(), std::max<int64_t>(1, kGrain / work), [&](int64_t i, int64_t end) {
    Room<T, A> room(p.each);
    Entries<T, A> entries = room.entries();
    std::vector<A> sums(p.each);
    for (; i < end; ++i) {
      const int64_t b = i / p.queries;
      entries.list(p, data_of<T>(lengths) + i * p.each, data_of<int64_t>(indices) + i * p.each,
                   from.data + b * from.batch, from.row);
      std::fill(sums.begin(), sums.end(), A(0));
      trace(p, grad.data + b * grad.batch + i % p.queries * grad.row, grad.column, entries,
            grad_lengths ? sums.data() : nullptr, grad_rows ? origins.data() + i * p.columns : nullptr);
      if (grad_lengths) encode_all(sums.data(), p.each, static_cast<T*>(grad_lengths->mutable_data_ptr()) + i * p.each);
    }
  });
  if (grad_rows) gather_gradients<T>(p, origins.data(), grad, static_cast<T*>(grad_rows->mutable_data_ptr()));
}

Tensor forward(const Tensor& lengths, const Tensor& indices, const Tensor& rows) {
  const Sparse p = check_sparse(lengths, indices, rows);
  const Tensor out = new_tensor(rows, {p.batch, p.queries, p.columns}, rows.scalar_type());
  if (out.numel() == 0) return out;
  const Tensor edges = in_order(lengths), places = in_order(indices), dense = with_dense_rows(rows);
  dispatch_floating(rows.scalar_type(), "rows",
                    [&](auto zero) { multiply<decltype(zero)>(p, edges, places, dense, out); });
  return out;
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& lengths, const Tensor& indices,
                                    const Tensor& rows, bool need_lengths, bool need_rows) {
  const Sparse p = check_sparse_gradient(grad, lengths, indices, rows);
  const Tensor grad_lengths = new_gradient(lengths, need_lengths, false),
               grad_rows = new_gradient(rows, need_rows, false);
  const Tensor edges = in_order(lengths), places = in_order(indices), dense = with_dense_rows(rows);
  const bool any_lengths = grad_lengths.numel() > 0, any_rows = grad_rows.numel() > 0;
  if (any_lengths || any_rows)
    dispatch_floating(rows.scalar_type(), "rows", [&](auto zero) {
      backpropagate<decltype(zero)>(p, grad, edges, places, dense, any_lengths ? &grad_lengths : nullptr,
                                    any_rows ? &grad_rows : nullptr);
    });
  return {grad_lengths, grad_rows};
}

}  // namespace
}  // namespace pyops::minplus

STABLE_TORCH_LIBRARY_FRAGMENT(pyops, m) {
  m.def("min_plus_gather(Tensor lengths, Tensor indices, Tensor rows) -> Tensor");
  m.def(
      "min_plus_gather_backward(Tensor grad, Tensor lengths, Tensor indices, Tensor rows, bool need_lengths, "
      "bool need_rows) -> (Tensor, Tensor)");
}

STABLE_TORCH_LIBRARY_IMPL(pyops, CPU, m) {
  m.impl("min_plus_gather", TORCH_BOX(&pyops::minplus::forward));
  m.impl("min_plus_gather_backward", TORCH_BOX(&pyops::minplus::backward));
}
