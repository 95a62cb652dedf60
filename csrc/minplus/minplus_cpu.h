// What the CPU kernels of min-plus products and of shortest paths share: panels of matrices, and blocks of products.
#pragma once

#include <atomic>

#include "../common/elements.h"
#include "minplus_args.h"
#include "minplus_tiles.h"

namespace pyops::minplus {
namespace {

using tiles::Integer;
using tiles::kColumns;
using tiles::kInfinity;
using tiles::kRows;
using torch::stable::parallel_for;

constexpr int64_t kBlockRows = 16 * kRows, kBlockColumns = 512;  // of a result: what a thread takes at a time
constexpr int64_t kPackGrain = 1 << 14;                          // numbers worth a thread

// ---- what is compiled for every instruction set ----------------------------------------------------------------------

// A panel: `wide` rows of a, or columns of b, `step` apart, of which `count` exist; tells whether NaN or -inf are in it.
template <class T, class A, int64_t wide>
PYOPS_HD bool pack_panel(const T* from, int64_t step, int64_t next, int64_t count, int64_t depth, A* to) {
  bool special = false;
  for (int64_t k = 0; k < depth; ++k)
    for (int64_t i = 0; i < wide; ++i) {
      const A value = i < count ? decode<T, A>(from[k * next + i * step]) : kInfinity<A>;
      special |= !(value > -kInfinity<A>);
      to[k * wide + i] = value;
    }
  return special;
}

// Halves are packed for products alone.
#define PYOPS_PANELS(T, A)                                                                                        \
  [[maybe_unused]] PYOPS_MULTIVERSION bool pack_rows(const T* from, int64_t step, int64_t next, int64_t count,    \
                                                     int64_t depth, A* to) {                                      \
    return pack_panel<T, A, kRows>(from, step, next, count, depth, to);                                           \
  }                                                                                                               \
  [[maybe_unused]] PYOPS_MULTIVERSION bool pack_columns(const T* from, int64_t step, int64_t next, int64_t count, \
                                                        int64_t depth, A* to) {                                   \
    if (step == 1 && count == kColumns<A>) return pack_panel<T, A, kColumns<A>>(from, 1, next, count, depth, to); \
    return pack_panel<T, A, kColumns<A>>(from, step, next, count, depth, to);                                     \
  }                                                                                                               \
  PYOPS_MULTIVERSION void encode_row(const A* from, int64_t n, T* to) {                                           \
    for (int64_t i = 0; i < n; ++i) to[i] = encode<T, A>(from[i]);                                                \
  }
PYOPS_PANELS(float, float)
PYOPS_PANELS(Half, float)
PYOPS_PANELS(BFloat16, float)
PYOPS_PANELS(double, double)
#undef PYOPS_PANELS

#define PYOPS_BLOCKS(A)                                                                                               \
  PYOPS_MULTIVERSION void update_block(const A* a, const A* b, int64_t depth, int64_t rows, int64_t columns, A* to,   \
                                       int64_t stride) {                                                              \
    tiles::update_block<false>(a, b, depth, rows, columns, to, stride);                                               \
  }                                                                                                                   \
  PYOPS_MULTIVERSION void update_block_nan(const A* a, const A* b, int64_t depth, int64_t rows, int64_t columns,      \
                                           A* to, int64_t stride) {                                                   \
    tiles::update_block<true>(a, b, depth, rows, columns, to, stride);                                                \
  }                                                                                                                   \
  PYOPS_MULTIVERSION void find_block(const A* a, const A* b, int64_t depth, int64_t rows, int64_t columns, A* to,     \
                                     Integer<A>* indices, int64_t stride) {                                           \
    tiles::find_block<false>(a, b, depth, rows, columns, to, indices, stride);                                        \
  }                                                                                                                   \
  PYOPS_MULTIVERSION void find_block_nan(const A* a, const A* b, int64_t depth, int64_t rows, int64_t columns, A* to, \
                                         Integer<A>* indices, int64_t stride) {                                       \
    tiles::find_block<true>(a, b, depth, rows, columns, to, indices, stride);                                         \
  }
PYOPS_BLOCKS(float)
PYOPS_BLOCKS(double)
#undef PYOPS_BLOCKS

// ---- panels of whole matrices ----------------------------------------------------------------------------------------

// The panels of one operand, of as many matrices as differ.
template <class A>
struct Panels {
  int64_t depth, wide, count, matrices;  // entries, rows or columns of a panel; panels of a matrix
  std::vector<A> data;
  std::atomic<bool> special{false};  // NaN or -inf somewhere

  Panels(int64_t depth, int64_t wide, int64_t size, int64_t matrices)
      : depth(depth), wide(wide), count(ceil_div(size, wide)), matrices(matrices), data(matrices * count * panel()) {}

  int64_t panel() const { return depth * wide; }
  const A* of(int64_t matrix, int64_t first) const {  // `first`: a multiple of `wide`
    return data.data() + (matrix % matrices * count + first / wide) * panel();
  }

  // `size` rows (of columns: of the transpose) `step` apart, their entries `next` apart.
  template <class T>
  void pack(const T* from, int64_t batch, int64_t step, int64_t next, int64_t size) {
    const int64_t grain = std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, panel()));
    parallel_for(0, matrices * count, grain, [&](int64_t i, int64_t end) {
      for (; i < end; ++i) {
        const int64_t first = i % count * wide, some = std::min(wide, size - first);
        const T* const start = from + i / count * batch + first * step;
        A* const to = data.data() + i * panel();
        const bool found = wide == kRows ? pack_rows(start, step, next, some, depth, to)
                                         : pack_columns(start, step, next, some, depth, to);
        if (found) special.store(true, std::memory_order_relaxed);
      }
    });
  }
};

template <class A>
struct Operands {
  Panels<A> left, right;

  // Matrices that are one, expanded, are packed once.
  template <class Left, class Right>
  Operands(const Problem& p, const Matrices<Left>& a, const Matrices<Right>& b)
      : left(p.inner, kRows, p.rows, a.batch == 0 ? 1 : p.batch),
        right(p.inner, kColumns<A>, p.columns, b.batch == 0 ? 1 : p.batch) {
    left.pack(a.data, a.batch, a.row, a.column, p.rows);
    right.pack(b.data, b.batch, b.column, b.row, p.columns);
  }
  bool special() const { return left.special || right.special; }
};

// A block of the result, and f(it) for each by all threads.
struct Block {
  int64_t matrix, row, column, rows, columns;
};

template <class F>
void for_blocks(const Problem& p, const F& f) {
  const int64_t down = ceil_div(p.rows, kBlockRows), across = ceil_div(p.columns, kBlockColumns);
  const int64_t work = std::min(p.rows, kBlockRows) * std::min(p.columns, kBlockColumns) * (p.inner + 8);
  const int64_t grain = std::max<int64_t>(1, (int64_t(1) << 19) / std::max<int64_t>(1, work));
  parallel_for(0, p.batch * down * across, grain, [&](int64_t i, int64_t end) {
    for (; i < end; ++i) {
      const int64_t row = i / across % down * kBlockRows, column = i % across * kBlockColumns;
      f(Block{i / across / down, row, column, std::min(kBlockRows, p.rows - row),
              std::min(kBlockColumns, p.columns - column)});
    }
  });
}

template <class A>
void update(const Operands<A>& from, const Block& at, A* to, int64_t stride) {
  const A *a = from.left.of(at.matrix, at.row), *b = from.right.of(at.matrix, at.column);
  if (from.special()) update_block_nan(a, b, from.left.depth, at.rows, at.columns, to, stride);
  else update_block(a, b, from.left.depth, at.rows, at.columns, to, stride);
}

// k(m, n) of all products, [B, M, N].
template <class A>
std::vector<int32_t> find_indices(const Problem& p, const Operands<A>& from) {
  std::vector<int32_t> found(p.batch * p.rows * p.columns);
  for_blocks(p, [&](const Block& at) {
    thread_local std::vector<A> sums;
    thread_local std::vector<Integer<A>> indices;
    const int64_t stride = ceil_div(at.columns, kColumns<A>) * kColumns<A>;
    sums.resize(kBlockRows * stride), indices.resize(kBlockRows * stride);
    const A *a = from.left.of(at.matrix, at.row), *b = from.right.of(at.matrix, at.column);
    if (from.special()) find_block_nan(a, b, p.inner, at.rows, at.columns, sums.data(), indices.data(), stride);
    else find_block(a, b, p.inner, at.rows, at.columns, sums.data(), indices.data(), stride);
    for (int64_t r = 0; r < at.rows; ++r) {
      int32_t* const to = found.data() + (at.matrix * p.rows + at.row + r) * p.columns + at.column;
      for (int64_t c = 0; c < at.columns; ++c) to[c] = int32_t(indices[r * stride + c]);
    }
  });
  return found;
}

// to[k][n] = sum over m with indices[m][n] = k of grad[m][n], in the order of m, for all columns n of every matrix.
template <class T, class A, class Grad>
void gather_columns(const Problem& p, const int32_t* indices, const Grad& grad, T* to) {
  constexpr int64_t wide = 64;
  const int64_t across = ceil_div(p.columns, wide);
  const int64_t grain = std::max<int64_t>(1, kPackGrain / std::max<int64_t>(1, wide * (p.rows + p.inner)));
  parallel_for(0, p.batch * across, grain, [&](int64_t i, int64_t end) {
    std::vector<A> sums(p.inner * wide);
    for (; i < end; ++i) {
      const int64_t matrix = i / across, column = i % across * wide, some = std::min(wide, p.columns - column);
      std::fill(sums.begin(), sums.end(), A(0));
      for (int64_t m = 0; m < p.rows; ++m) {
        const int32_t* const from = indices + (matrix * p.rows + m) * p.columns + column;
        for (int64_t c = 0; c < some; ++c)
          if (from[c] >= 0) sums[from[c] * wide + c] += grad(matrix, m, column + c);
      }
      for (int64_t k = 0; k < p.inner; ++k)
        encode_row(sums.data() + k * wide, some, to + (matrix * p.inner + k) * p.columns + column);
    }
  });
}

}  // namespace
}  // namespace pyops::minplus
