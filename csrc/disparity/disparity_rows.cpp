// The row functions of disparity_rows.h.
#include "disparity_rows.h"

#include "../common/simd.h"

namespace pyops::disparity {
namespace {

using simd::f32x8;
using simd::f64x4;

// ---- context_upsample ------------------------------------------------------------------------------------------------

// Eight copies at once; those too many are overwritten by the next.
PYOPS_HD void replicate_each(const float* from, int64_t n, int scale, float* to) {
  for (int64_t i = 0; i < n; ++i, to += scale) {
    const f32x8 copies = simd::splat(from[i]);
    for (int j = 0; j < scale; j += 8) simd::store(to + j, copies);
  }
}
PYOPS_HD void replicate_each(const double* from, int64_t n, int scale, double* to) {
  for (int64_t i = 0; i < n; ++i, to += scale) std::fill(to, to + scale, from[i]);
}

template <class A>
PYOPS_HD void combine_each(const Near<A>& near, const Planes<const A>& weights, int64_t n, A* __restrict out) {
  const A* line[3] = {near.line[0] - near.scale, near.line[1] - near.scale, near.line[2] - near.scale};
  const int64_t scale = near.scale, plane = weights.plane;
  const A* w = weights.data;
  for (int64_t x = 0; x < n; ++x) {
    A sum = 0;
    for (int k = 0; k < kNeighbours; ++k) sum += w[k * plane + x] * line[k / 3][x + k % 3 * scale];
    out[x] = sum;
  }
}

template <class A>
PYOPS_HD void multiply_each(const Near<A>& near, const A* grad, int64_t n, const Planes<A>& to) {
  for (int k = 0; k < kNeighbours; ++k) {
    const A* line = near.line[k / 3] + (k % 3 - 1) * near.scale;
    A* __restrict out = to.data + k * to.plane;
    for (int64_t x = 0; x < n; ++x) out[x] = grad[x] * line[x];
  }
}

template <class A>
PYOPS_HD void add_three(const A* grad, const Planes<const A>& weights, int64_t n, const Planes<A>& sums) {
  for (int k = 0; k < 3; ++k) {
    A* __restrict sum = sums.data + k * sums.plane;
    const A* w = weights.data + k * weights.plane;
    for (int64_t x = 0; x < n; ++x) sum[x] += grad[x] * w[x];
  }
}

template <class A>
PYOPS_HD void fold_each(const Planes<A>& sums, int64_t n, int scale, A* __restrict line, A* __restrict to) {
  const A *left = sums.data + scale, *middle = sums.data + sums.plane, *right = middle + sums.plane - scale;
  const int64_t length = n * scale, inner = length - scale;
  for (int64_t x = 0; x < scale; ++x) line[x] = middle[x];
  for (int64_t x = scale; x < length; ++x) line[x] = middle[x] + right[x];
  for (int64_t x = 0; x < inner; ++x) line[x] += left[x];
  for (int64_t i = 0; i < n; ++i) {
    A sum = 0;
    for (int j = 0; j < scale; ++j) sum += line[i * scale + j];
    to[i] = sum;
  }
}

// ---- disparity_warp --------------------------------------------------------------------------------------------------

template <class A>
PYOPS_HD void place_each(const A* disparity, int width, int* __restrict left, A* __restrict fraction,
                         A* __restrict inside) {
  for (int x = 0; x < width; ++x) {
    const Tap<A> tap = tap_at(x, disparity[x], width);
    left[x] = tap.left, fraction[x] = tap.fraction, inside[x] = tap.inside ? A(1) : A(0);
  }
}

// Both pixels of eight samples from x on, each pair by one load.
PYOPS_HD void gather_pairs(const int* left, const float* line, f32x8& first, f32x8& second) {
  f64x4 low, high;
  for (int i = 0; i < 4; ++i) {
    std::memcpy(reinterpret_cast<double*>(&low) + i, line + left[i], 8);
    std::memcpy(reinterpret_cast<double*>(&high) + i, line + left[i + 4], 8);
  }
  first = __builtin_shufflevector((f32x8)low, (f32x8)high, 0, 2, 4, 6, 8, 10, 12, 14);
  second = __builtin_shufflevector((f32x8)low, (f32x8)high, 1, 3, 5, 7, 9, 11, 13, 15);
}

template <class A>
PYOPS_HD A blend(A fraction, A first, A second) {
  return (A(1) - fraction) * first + fraction * second;
}

PYOPS_HD void blend_each(const int* left, const float* fraction, const float* line, int width, float* out) {
  int x = 0;
  for (; x + 8 <= width; x += 8) {
    f32x8 first, second;
    gather_pairs(left + x, line, first, second);
    const f32x8 f = simd::load<f32x8>(fraction + x);
    simd::store(out + x, (1.f - f) * first + f * second);
  }
  for (; x < width; ++x) out[x] = blend(fraction[x], line[left[x]], line[left[x] + 1]);
}
PYOPS_HD void blend_each(const int* left, const double* fraction, const double* line, int width, double* out) {
  for (int x = 0; x < width; ++x) out[x] = blend(fraction[x], line[left[x]], line[left[x] + 1]);
}

PYOPS_HD void add_each_slope(const int* left, const float* line, const float* grad, int width, float* slopes) {
  int x = 0;
  for (; x + 8 <= width; x += 8) {
    f32x8 first, second;
    gather_pairs(left + x, line, first, second);
    simd::store(slopes + x, simd::load<f32x8>(slopes + x) + simd::load<f32x8>(grad + x) * (first - second));
  }
  for (; x < width; ++x) slopes[x] += grad[x] * (line[left[x]] - line[left[x] + 1]);
}
PYOPS_HD void add_each_slope(const int* left, const double* line, const double* grad, int width, double* slopes) {
  for (int x = 0; x < width; ++x) slopes[x] += grad[x] * (line[left[x]] - line[left[x] + 1]);
}

template <class A>
PYOPS_HD void spread_each(const int* left, const A* fraction, const A* grad, int width, double* __restrict sums) {
  for (int x = 0; x < width; ++x) {
    if (fraction[x] != fraction[x]) continue;
    double* const pair = sums + 2 * int64_t(left[x]);
    pair[0] += double((A(1) - fraction[x]) * grad[x]), pair[1] += double(fraction[x] * grad[x]);
  }
}

template <class A>
PYOPS_HD void join_each(const double* sums, int width, A* __restrict to) {
  to[0] = A(sums[0]);
  for (int i = 1; i < width; ++i) to[i] = A(sums[2 * int64_t(i)] + sums[2 * int64_t(i) - 1]);
}

}  // namespace

#define PYOPS_ROW_FUNCTIONS(A, VERSIONS)                                                                        \
  template <>                                                                                                   \
  VERSIONS void replicate(const A* from, int64_t n, int scale, A* to) {                                         \
    replicate_each(from, n, scale, to);                                                                         \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void combine(const Near<A>& near, const Planes<const A>& weights, int64_t n, A* out) {               \
    combine_each(near, weights, n, out);                                                                        \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void multiply(const Near<A>& near, const A* grad, int64_t n, const Planes<A>& to) {                  \
    multiply_each(near, grad, n, to);                                                                           \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void add_products(const A* grad, const Planes<const A>& weights, int64_t n, const Planes<A>& sums) { \
    add_three(grad, weights, n, sums);                                                                          \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void fold(const Planes<A>& sums, int64_t n, int scale, A* line, A* to) {                             \
    fold_each(sums, n, scale, line, to);                                                                        \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void place_taps(const A* disparity, int width, Taps<A>& taps) {                                      \
    place_each(disparity, width, taps.left.data(), taps.fraction.data(), taps.inside.data());                   \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void blend_taps(const Taps<A>& taps, const A* line, int width, A* out) {                             \
    blend_each(taps.left.data(), taps.fraction.data(), line, width, out);                                       \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void add_slopes(const Taps<A>& taps, const A* line, const A* grad, int width, A* slopes) {           \
    add_each_slope(taps.left.data(), line, grad, width, slopes);                                                \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void spread_taps(const Taps<A>& taps, const A* grad, int width, double* sums) {                      \
    spread_each(taps.left.data(), taps.fraction.data(), grad, width, sums);                                     \
  }                                                                                                             \
  template <>                                                                                                   \
  VERSIONS void join_sums(const double* sums, int width, A* to) {                                               \
    join_each(sums, width, to);                                                                                 \
  }
PYOPS_ROW_FUNCTIONS(float, PYOPS_MULTIVERSION)
PYOPS_ROW_FUNCTIONS(double, )
#undef PYOPS_ROW_FUNCTIONS

}  // namespace pyops::disparity
