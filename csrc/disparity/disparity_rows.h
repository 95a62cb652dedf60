// What the CPU kernels do with one row of floats or doubles. What works on floats is compiled once for each instruction
// set. Rows of any element type and stride become such rows by load_row and store_row of sampling.
#pragma once

#include <algorithm>

#include "../sampling/sampling_rows.h"
#include "disparity.h"

namespace pyops::disparity {

// ---- context_upsample ------------------------------------------------------------------------------------------------

// to[scale * i + j] = from[i] for j < scale; may write up to kOverhang numbers beyond the last.
constexpr int64_t kOverhang = 8;
template <class A>
void replicate(const A* from, int64_t n, int scale, A* to);

// Three lines, for dy = -1, 0, 1, of coarse pixels replicated as often as there are fine ones in each: the neighbour dx
// of fine pixel x is line[dy + 1][x + dx * scale].
template <class A>
struct Near {
  const A* line[3];
  int64_t scale;
};

// Nine rows in steps of `plane` numbers.
template <class A>
struct Planes {
  A* data;
  int64_t plane;
};

// out[x] = sum_k weights[k][x] * near[k][x]
template <class A>
void combine(const Near<A>& near, const Planes<const A>& weights, int64_t n, A* out);

// to[k][x] = grad[x] * near[k][x]
template <class A>
void multiply(const Near<A>& near, const A* grad, int64_t n, const Planes<A>& to);

// sums[i] += grad * weights[i] for three rows in steps of `plane` each.
template <class A>
void add_products(const A* grad, const Planes<const A>& weights, int64_t n, const Planes<A>& sums);

// From sums over fine pixels, by the dx they look at, to coarse ones: to[i] = the sum over dx and j < scale of
// sums[dx + 1][scale * (i - dx) + j], as far as there are any. `line` has room for scale * n.
template <class A>
void fold(const Planes<A>& sums, int64_t n, int scale, A* line, A* to);

// ---- disparity_warp --------------------------------------------------------------------------------------------------

// The taps of a row, see Tap. `inside` is 0 or 1.
template <class A>
struct Taps {
  std::vector<int> left;
  std::vector<A> fraction, inside;

  explicit Taps(int width) : left(width), fraction(width), inside(width) {}
};

template <class A>
void place_taps(const A* disparity, int width, Taps<A>& taps);

// `line` has one number more than the row.
template <class A>
void blend_taps(const Taps<A>& taps, const A* line, int width, A* out);

// slopes += grad * d sample / d disparity, as if all were inside.
template <class A>
void add_slopes(const Taps<A>& taps, const A* line, const A* grad, int width, A* slopes);

// The transpose of blend_taps. sums[2 * i] is what samples right of pixel i give to it, sums[2 * i + 1] what they give
// to pixel i + 1: neighbours that look at neighbours then never wait for each other's sums.
template <class A>
void spread_taps(const Taps<A>& taps, const A* grad, int width, double* sums);
template <class A>
void join_sums(const double* sums, int width, A* to);

}  // namespace pyops::disparity
