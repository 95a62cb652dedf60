// Columns of features: those of a place lie together, `stride` of them, a multiple of a vector, what pads them 0. Their
// products, and how features [C][W] are turned into them and back.
#pragma once

#include <algorithm>

#include "elements.h"
#include "tensor.h"

namespace pyops::columns {
namespace {

using simd::kLanes;
using simd::Vector;

constexpr int kGroup = 10;  // products at a time: a radius of 4, in registers

template <class A>
PYOPS_HD A sum_of(Vector<A> v) {
  A element[kLanes<A>], sum = 0;
  simd::store(element, v);
  for (const A x : element) sum += x;
  return sum;
}

// Products of column `left` with kCount columns from `right` on, `stride` entries each.
template <int kCount, class A>
PYOPS_HD void multiply(const A* left, const A* right, int64_t stride, A* to) {
  Vector<A> sum[kCount];
#pragma GCC unroll 10
  for (int k = 0; k < kCount; ++k) sum[k] = simd::splat(A(0));
  for (int64_t c = 0; c < stride; c += kLanes<A>) {
    const auto l = simd::load<Vector<A>>(left + c);
#pragma GCC unroll 10
    for (int k = 0; k < kCount; ++k) sum[k] += l * simd::load<Vector<A>>(right + k * stride + c);
  }
#pragma GCC unroll 10
  for (int k = 0; k < kCount; ++k) to[k] = sum_of<A>(sum[k]);
}

#define PYOPS_PRODUCTS(A)                                                                                 \
  PYOPS_MULTIVERSION void multiply_all(const A* left, const A* right, int64_t stride, int64_t n, A* to) { \
    int64_t k = 0;                                                                                        \
    for (; k + kGroup <= n; k += kGroup) multiply<kGroup>(left, right + k * stride, stride, to + k);      \
    for (; k + 4 <= n; k += 4) multiply<4>(left, right + k * stride, stride, to + k);                     \
    for (; k < n; ++k) multiply<1>(left, right + k * stride, stride, to + k);                             \
  }
PYOPS_PRODUCTS(float)
PYOPS_PRODUCTS(double)
#undef PYOPS_PRODUCTS

// The part of a window of `n` taps from `first` on that lies within `taps`: [begin, end).
PYOPS_HD void clip(int first, int64_t n, int64_t taps, int64_t& begin, int64_t& end) {
  begin = std::min<int64_t>(n, std::max<int64_t>(0, -int64_t(first)));
  end = std::max<int64_t>(begin, std::min<int64_t>(n, taps - first));
}

template <class T, class A>
PYOPS_HD Vector<A> load_some(const T* from, int64_t step, int64_t n) {
  if (step == 1) return simd::load_elements<T, A>(from, std::min<int64_t>(n, kLanes<A>));
  A element[kLanes<A>] = {};
  for (int64_t k = 0; k < std::min<int64_t>(n, kLanes<A>); ++k) element[k] = decode<T, A>(from[k * step]);
  return simd::load<Vector<A>>(element);
}

// Features of one row, from [C][W] of any strides to [W][stride] and back; what pads the channels is 0.
#define PYOPS_TURNS(T, A)                                                                                            \
  PYOPS_MULTIVERSION void turn(const T* from, int64_t channel, int64_t column, int64_t channels, int64_t columns,    \
                               int64_t stride, A* to) {                                                              \
    constexpr int64_t n = kLanes<A>;                                                                                 \
    for (int64_t c = 0; c < channels; c += n)                                                                        \
      for (int64_t x = 0; x < columns; x += n) {                                                                     \
        Vector<A> v[n];                                                                                              \
        for (int64_t i = 0; i < n; ++i) {                                                                            \
          const bool any = c + i < channels;                                                                         \
          v[i] = load_some<T, A>(any ? from + (c + i) * channel + x * column : from, column, any ? columns - x : 0); \
        }                                                                                                            \
        simd::transpose(v);                                                                                          \
        for (int64_t i = 0; i < std::min(n, columns - x); ++i) simd::store(to + (x + i) * stride + c, v[i]);         \
      }                                                                                                              \
  }                                                                                                                  \
  PYOPS_MULTIVERSION void turn_back(const A* from, int64_t stride, int64_t channels, int64_t columns, T* to,         \
                                    int64_t channel) {                                                               \
    constexpr int64_t n = kLanes<A>;                                                                                 \
    for (int64_t c = 0; c < channels; c += n)                                                                        \
      for (int64_t x = 0; x < columns; x += n) {                                                                     \
        Vector<A> v[n];                                                                                              \
        for (int64_t i = 0; i < n; ++i)                                                                              \
          v[i] = simd::load<Vector<A>>(from + std::min(x + i, columns - 1) * stride + c);                            \
        simd::transpose(v);                                                                                          \
        for (int64_t i = 0; i < std::min(n, channels - c); ++i)                                                      \
          simd::store_elements<T, A>(to + (c + i) * channel + x, v[i], std::min(columns - x, n));                    \
      }                                                                                                              \
  }
PYOPS_TURNS(float, float)
PYOPS_TURNS(Half, float)
PYOPS_TURNS(BFloat16, float)
PYOPS_TURNS(double, double)
#undef PYOPS_TURNS

}  // namespace
}  // namespace pyops::columns
