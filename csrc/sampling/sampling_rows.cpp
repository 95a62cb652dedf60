// The row functions of sampling_rows.h: those on floats once for each instruction set, those on doubles plainly.
#include "sampling_rows.h"

#include "../common/elements.h"
#include "../common/pixel.h"

namespace pyops::sampling {
namespace {

using simd::f32x4;
using simd::f32x8;

// ---- element types ---------------------------------------------------------------------------------------------------

template <class A, class T>
PYOPS_HD void load_typed(const T* from, int64_t stride, int64_t n, A* to) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i] = decode<T, A>(from[i * stride]);
}

template <class A, class T>
PYOPS_HD void store_typed(const A* from, int64_t n, T* to, int64_t stride) {
  if (stride == 1)
    for (int64_t i = 0; i < n; ++i) to[i] = encode<T, A>(from[i]);
  else
    for (int64_t i = 0; i < n; ++i) to[i * stride] = encode<T, A>(from[i]);
}

template <class A, class T>
void gather_typed(const T* row, int64_t stride, const int* const (&pixel)[2], int n, A* const (&to)[2]) {
  for (int k = 0; k < n; ++k)
    for (int side = 0; side < 2; ++side) {
      const int64_t i = pixel[side][k];
      to[side][k] = i < 0 ? A(0) : decode<T, A>(row[i * stride]);
    }
}

template <class T>
void load_as(const T* from, int64_t stride, int64_t n, double* to) {
  load_typed<double>(from, stride, n, to);
}
template <class T>
void store_as(const double* from, int64_t n, T* to, int64_t stride) {
  store_typed<double>(from, n, to, stride);
}
#define PYOPS_ROW_IO(T)                                                                   \
  PYOPS_MULTIVERSION void load_as(const T* from, int64_t stride, int64_t n, float* to) {  \
    load_typed<float>(from, stride, n, to);                                               \
  }                                                                                       \
  PYOPS_MULTIVERSION void store_as(const float* from, int64_t n, T* to, int64_t stride) { \
    store_typed<float>(from, n, to, stride);                                              \
  }
PYOPS_ROW_IO(float)
PYOPS_ROW_IO(Half)
PYOPS_ROW_IO(BFloat16)
PYOPS_ROW_IO(uint8_t)
PYOPS_ROW_IO(uint16_t)
PYOPS_ROW_IO(double)
#undef PYOPS_ROW_IO

template <class F>
void dispatch_element(ScalarType dtype, const F& f) {
  if (dtype == ScalarType::Double) f(double());
  else dispatch_pixel(dtype, "image", f);
}

// ---- dot products ------------------------------------------------------------------------------------------------------------

PYOPS_HD float total_of(f32x8 v) {
  const f32x4 four = __builtin_shufflevector(v, v, 0, 1, 2, 3) + __builtin_shufflevector(v, v, 4, 5, 6, 7);
  const f32x4 two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
  return two[0] + two[1];
}

constexpr int64_t kBlock = 256;  // terms whose sum a float holds

PYOPS_HD float dot_block(const float* a, const float* b, int64_t n) {
  f32x8 even{}, odd{};
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    even += simd::load<f32x8>(a + i) * simd::load<f32x8>(b + i);
    odd += simd::load<f32x8>(a + i + 8) * simd::load<f32x8>(b + i + 8);
  }
  if (i + 8 <= n) even += simd::load<f32x8>(a + i) * simd::load<f32x8>(b + i), i += 8;
  float rest = 0;
  for (; i < n; ++i) rest += a[i] * b[i];
  return (n < 8 ? 0.f : total_of(even + odd)) + rest;
}

PYOPS_HD double dot(const float* a, const float* b, int64_t n) {
  if (n <= kBlock) return dot_block(a, b, n);
  double sum = 0;
  for (int64_t i = 0; i < n; i += kBlock) sum += dot_block(a + i, b + i, std::min(kBlock, n - i));
  return sum;
}

PYOPS_HD double dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

// ---- sums of rows ----------------------------------------------------------------------------------------------------

template <int count, class A>
PYOPS_HD A combine(const A* const (&rows)[4], const A (&weight)[4], int64_t i) {
  A sum = weight[0] * rows[0][i];
  for (int r = 1; r < count; ++r) sum += weight[r] * rows[r][i];
  return sum;
}

template <int count, class A>
PYOPS_HD void add_some(A* __restrict sum, const A* const* row, const A* factor, bool fresh, int64_t n) {
  const A* rows[4];
  A weight[4];
  for (int r = 0; r < count; ++r) rows[r] = row[r], weight[r] = factor[r];
  if (fresh)
    for (int64_t i = 0; i < n; ++i) sum[i] = combine<count>(rows, weight, i);
  else
    for (int64_t i = 0; i < n; ++i) sum[i] += combine<count>(rows, weight, i);
}

template <class A>
PYOPS_HD void add_any(A* sum, const A* const* rows, const A* weight, int count, bool fresh, int64_t n) {
  switch (count) {
    case 1: return add_some<1>(sum, rows, weight, fresh, n);
    case 2: return add_some<2>(sum, rows, weight, fresh, n);
    case 3: return add_some<3>(sum, rows, weight, fresh, n);
    default: return add_some<4>(sum, rows, weight, fresh, n);
  }
}

template <class A>
PYOPS_HD void widen(double* __restrict wide, const A* narrow, bool fresh, int64_t n) {
  if (fresh)
    for (int64_t i = 0; i < n; ++i) wide[i] = double(narrow[i]);
  else
    for (int64_t i = 0; i < n; ++i) wide[i] += double(narrow[i]);
}

template <class A>
PYOPS_HD void narrow(A* __restrict to, const double* wide, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = A(wide[i]);
}

PYOPS_HD double add_and_step(double* sum, double weight, const double* row, const double* before, const double* other,
                             bool fresh, int64_t n) {
  double steps = 0;
  for (int64_t i = 0; i < n; ++i) {
    sum[i] = (fresh ? 0 : sum[i]) + weight * row[i];
    steps += (row[i] - before[i]) * other[i];
  }
  return steps;
}

PYOPS_HD double add_and_step(float* sum, float weight, const float* row, const float* before, const float* other,
                             bool fresh, int64_t n) {
  const f32x8 w = simd::splat(weight), zero{};
  double steps = 0;
  for (int64_t first = 0; first < n; first += 4 * kBlock) {
    const int64_t last = std::min(first + 4 * kBlock, n);
    f32x8 part[2] = {};
    int64_t i = first;
    for (; i + 16 <= last; i += 16)
      for (int half = 0; half < 2; ++half) {
        const int64_t at = i + 8 * half;
        const f32x8 value = simd::load<f32x8>(row + at);
        simd::store(sum + at, (fresh ? zero : simd::load<f32x8>(sum + at)) + w * value);
        part[half] += (value - simd::load<f32x8>(before + at)) * simd::load<f32x8>(other + at);
      }
    // Vectors here too: of a loop over numbers there would be two forms, for rows that may overlap and for others, which
    // round differently, so that results would depend on where memory lies.
    for (int64_t count; i < last; i += count) {
      count = std::min<int64_t>(8, last - i);
      const auto at = [&](const float* p) PYOPS_INLINED { return simd::load_elements<float, float>(p + i, count); };
      const f32x8 value = at(row);
      part[0] += (value - at(before)) * at(other);
      simd::store_elements<float, float>(sum + i, (fresh ? zero : at(sum)) + w * value, count);
    }
    steps += total_of(part[0] + part[1]);
  }
  return steps;
}

// ---- along a row -----------------------------------------------------------------------------------------------------

template <class A>
PYOPS_HD void sum_each(const AxisPlan<A>& plan, const A* row, A* out, A* scratch) {
  for (int k = 0; k < plan.count(); ++k) {
    const Taps<A> t = plan.taps(k, scratch);
    const A sum = A(dot(t.weight, row + t.first, t.count));
    out[k] = sum + (sum - sum);
  }
}

PYOPS_HD void add_scaled(float* to, const float* weight, float value, int n) {
  int i = 0;
  for (; i + 8 <= n; i += 8)
    simd::store(to + i, simd::load<f32x8>(to + i) + simd::splat(value) * simd::load<f32x8>(weight + i));
  for (; i < n; ++i) to[i] += weight[i] * value;
}

template <class A, class Sum>
PYOPS_HD void add_scaled(Sum* to, const A* weight, A value, int n) {
  for (int i = 0; i < n; ++i) to[i] += Sum(weight[i]) * value;
}

template <class A, class Sum>
PYOPS_HD void spread_each(const AxisPlan<A>& plan, const A* value, Sum* row, int64_t stride, A* scratch) {
  for (int k = 0; k < plan.count(); ++k) {
    const Taps<A> t = plan.taps(k, scratch);
    Sum* to = row + t.first * stride;
    if (stride == 1) add_scaled(to, t.weight, value[k], t.count);
    else
      for (int i = 0; i < t.count; ++i) to[i * stride] += Sum(t.weight[i]) * value[k];
  }
}

template <class A>
PYOPS_HD void add_bounds(const AxisPlan<A>& plan, const A* step, const A* value, double* begin, double* end,
                         A* scratch) {
  for (int k = 0; k < plan.count(); ++k) {
    const Taps<A> t = plan.taps(k, scratch);
    const A* from = step + t.segment + 1;
    begin[k] += double(value[k]) * dot(t.begin, from, t.segments);
    end[k] += double(value[k]) * dot(t.end, from, t.segments);
  }
}

template <class A>
PYOPS_HD void blend(const AxisPlan<A>& plan, const Corners<A>& corners, const A (&weight)[2], A* __restrict out) {
  const int *left = plan.pixel(0), *right = plan.pixel(1);
  const A *left_weight = plan.side_weight(0), *right_weight = plan.side_weight(1);
  const A *a = corners.upper[0], *b = corners.upper[1], *c = corners.lower[0], *d = corners.lower[1];
  for (int k = 0; k < plan.count(); ++k) {
    const A l = a[k] * weight[0] + c[k] * weight[1], r = b[k] * weight[0] + d[k] * weight[1];
    out[k] = (left[k] < 0 ? A(0) : l * left_weight[k]) + (right[k] < 0 ? A(0) : r * right_weight[k]);
  }
}

template <class A>
PYOPS_HD double add_slopes(const AxisPlan<A>& plan, const Corners<A>& corners, const A (&weight)[2], const A* grad,
                           double* __restrict sums) {
  const A *left = plan.side_weight(0), *right = plan.side_weight(1);
  const A *a = corners.upper[0], *b = corners.upper[1], *c = corners.lower[0], *d = corners.lower[1];
  A down[kBlock];
  double total = 0;
  for (int first = 0; first < plan.count(); first += kBlock) {
    const int n = std::min<int>(kBlock, plan.count() - first);
    for (int i = 0; i < n; ++i) {
      const int k = first + i;
      sums[k] += double(grad[k]) * ((b[k] - a[k]) * weight[0] + (d[k] - c[k]) * weight[1]);
      down[i] = (c[k] - a[k]) * left[k] + (d[k] - b[k]) * right[k];
    }
    total += dot(down, grad + first, n);
  }
  return total;
}

}  // namespace

// ---- what the header promises ----------------------------------------------------------------------------------------

template <class A>
void load_row(ScalarType dtype, const void* from, int64_t stride, int64_t n, A* to) {
  dispatch_element(dtype, [&](auto t) { load_as(static_cast<const decltype(t)*>(from), stride, n, to); });
}
template <class A>
void store_row(ScalarType dtype, const A* from, int64_t n, void* to, int64_t stride) {
  dispatch_element(dtype, [&](auto t) { store_as(from, n, static_cast<decltype(t)*>(to), stride); });
}
template <class A>
void gather_row(ScalarType dtype, const void* row, int64_t stride, const int* const (&pixel)[2], int n,
                A* const (&to)[2]) {
  dispatch_element(dtype, [&](auto t) { gather_typed(static_cast<const decltype(t)*>(row), stride, pixel, n, to); });
}

#define PYOPS_ROW_FUNCTIONS(A, VERSIONS)                                                                            \
  template void load_row(ScalarType, const void*, int64_t, int64_t, A*);                                            \
  template void store_row(ScalarType, const A*, int64_t, void*, int64_t);                                           \
  template void gather_row(ScalarType, const void*, int64_t, const int* const(&)[2], int, A* const(&)[2]);          \
  template <>                                                                                                       \
  VERSIONS void add_rows(A* sum, const A* const* rows, const A* weight, int count, bool fresh, int64_t n) {         \
    add_any(sum, rows, weight, count, fresh, n);                                                                    \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS void widen_row(double* wide, const A* from, bool fresh, int64_t n) {                                     \
    widen(wide, from, fresh, n);                                                                                    \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS void narrow_row(A* to, const double* wide, int64_t n) {                                                  \
    narrow(to, wide, n);                                                                                            \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS void sum_spans(const AxisPlan<A>& plan, const A* row, A* out, A* scratch) {                              \
    sum_each(plan, row, out, scratch);                                                                              \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS void spread_spans(const AxisPlan<A>& plan, const A* value, A* row, int64_t stride, A* scratch) {         \
    spread_each(plan, value, row, stride, scratch);                                                                 \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS void add_cell_slopes(const AxisPlan<A>& plan, const A* step, const A* value, double* begin, double* end, \
                                A* scratch) {                                                                       \
    add_bounds(plan, step, value, begin, end, scratch);                                                             \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS double add_row_and_step(A* sum, A weight, const A* row, const A* before, const A* other, bool fresh,     \
                                   int64_t n) {                                                                     \
    return add_and_step(sum, weight, row, before, other, fresh, n);                                                 \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS double dot_row(const A* a, const A* b, int64_t n) {                                                      \
    return dot(a, b, n);                                                                                            \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS void blend_points(const AxisPlan<A>& plan, const Corners<A>& corners, const A(&weight)[2], A* out) {     \
    blend(plan, corners, weight, out);                                                                              \
  }                                                                                                                 \
  template <>                                                                                                       \
  VERSIONS double add_point_slopes(const AxisPlan<A>& plan, const Corners<A>& corners, const A(&weight)[2],         \
                                   const A* grad, double* sums) {                                                   \
    return add_slopes(plan, corners, weight, grad, sums);                                                           \
  }
PYOPS_ROW_FUNCTIONS(float, PYOPS_MULTIVERSION)
PYOPS_ROW_FUNCTIONS(double, )
#undef PYOPS_ROW_FUNCTIONS

template <>
void spread_spans(const AxisPlan<float>& plan, const float* value, double* row, int64_t stride, float* scratch) {
  spread_each(plan, value, row, stride, scratch);
}

}  // namespace pyops::sampling
