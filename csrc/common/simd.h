// Vectors of eight floats that any compiler target can execute, and functions compiled once for each of them.
//
// These are GCC / Clang vector extensions, not intrinsics: one source gives SSE2, AVX2 and AVX-512 code (and NEON),
// and PYOPS_MULTIVERSION lets the dynamic linker choose among the clones on the machine at hand. Everything that a
// multiversioned function calls must be inlined into it, hence PYOPS_HD on every helper.
#pragma once

#include <cstring>

#include "portable.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define PYOPS_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define PYOPS_MULTIVERSION
#endif

// Behind the parameters of a lambda: compiled with the function that calls it, for the same target.
#define PYOPS_INLINED __attribute__((always_inline))

namespace pyops::simd {

typedef float f32x4 __attribute__((vector_size(16)));
typedef float f32x8 __attribute__((vector_size(32)));
typedef int32_t i32x4 __attribute__((vector_size(16)));
typedef int32_t i32x8 __attribute__((vector_size(32)));
typedef uint16_t u16x8 __attribute__((vector_size(16)));
typedef uint32_t u32x8 __attribute__((vector_size(32)));
typedef double f64x4 __attribute__((vector_size(32)));

// The vector of a type of arithmetic, and how many fit.
template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
  using type = f32x8;
};
template <>
struct VectorOf<double> {
  using type = f64x4;
};
template <class A>
using Vector = typename VectorOf<A>::type;
template <class A>
constexpr int64_t kLanes = sizeof(Vector<A>) / sizeof(A);

template <class V, class T>
PYOPS_HD V load(const T* p) {
  V v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

template <class V, class T>
PYOPS_HD void store(T* p, V v) {
  std::memcpy(p, &v, sizeof v);
}

// A shuffle of a whole vector is one broadcast to GCC; a list of eight elements, and a scalar operand too, would be
// eight insertions, hence `splat` wherever a scalar that is no constant meets a vector.
PYOPS_HD f32x8 splat(float x) {
  const f32x8 v = {x};
  return __builtin_shufflevector(v, v, 0, 0, 0, 0, 0, 0, 0, 0);
}
PYOPS_HD f64x4 splat(double x) {
  const f64x4 v = {x};
  return __builtin_shufflevector(v, v, 0, 0, 0, 0);
}
PYOPS_HD i32x8 splat(int32_t x) {
  const i32x8 v = {x};
  return __builtin_shufflevector(v, v, 0, 0, 0, 0, 0, 0, 0, 0);
}

PYOPS_HD f32x8 select(i32x8 mask, f32x8 a, f32x8 b) { return mask ? a : b; }
PYOPS_HD i32x8 select(i32x8 mask, i32x8 a, i32x8 b) { return mask ? a : b; }

PYOPS_HD f32x8 abs(f32x8 v) { return (f32x8)((i32x8)v & 0x7fffffff); }

// The lesser of `size`, which has no sign, and `bound`; `bound` for NaN. Such floats sort like their bits.
PYOPS_HD f32x8 least_size(f32x8 size, float bound) {
  const i32x8 bits = (i32x8)size, most = (i32x8)splat(bound);
  return (f32x8)select(bits < most, bits, most);
}

// Whether an element of a mask is set.
template <class V>
PYOPS_HD bool any(V mask) {
  uint64_t words[sizeof(V) / 8], set = 0;
  std::memcpy(words, &mask, sizeof mask);
  for (const uint64_t word : words) set |= word;
  return set != 0;
}

PYOPS_HD i32x8 truncate(f32x8 v) { return __builtin_convertvector(v, i32x8); }
PYOPS_HD f32x8 to_float(i32x8 v) { return __builtin_convertvector(v, f32x8); }
PYOPS_HD f64x4 to_double(f32x4 v) { return __builtin_convertvector(v, f64x4); }

PYOPS_HD f32x8 concat(f32x4 low, f32x4 high) { return __builtin_shufflevector(low, high, 0, 1, 2, 3, 4, 5, 6, 7); }

// Element k of each half, four times: the two pixels k and k + 4 share one vector.
template <int k>
PYOPS_HD f32x8 repeat(f32x8 v) {
  return __builtin_shufflevector(v, v, k, k, k, k, k + 4, k + 4, k + 4, k + 4);
}

// Low halves (high halves) of a and b.
PYOPS_HD f32x8 lows(f32x8 a, f32x8 b) { return __builtin_shufflevector(a, b, 0, 1, 2, 3, 8, 9, 10, 11); }
PYOPS_HD f32x8 highs(f32x8 a, f32x8 b) { return __builtin_shufflevector(a, b, 4, 5, 6, 7, 12, 13, 14, 15); }

// Vector k holds (x, y, z, -) of element k and of element k + 4. Gives x, y and z of elements 0..7.
PYOPS_HD void transpose(const f32x8 (&v)[4], f32x8& x, f32x8& y, f32x8& z) {
  const f32x8 xy01 = __builtin_shufflevector(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13);
  const f32x8 xy23 = __builtin_shufflevector(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13);
  const f32x8 z01 = __builtin_shufflevector(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15);
  const f32x8 z23 = __builtin_shufflevector(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15);
  x = __builtin_shufflevector(xy01, xy23, 0, 1, 8, 9, 4, 5, 12, 13);
  y = __builtin_shufflevector(xy01, xy23, 2, 3, 10, 11, 6, 7, 14, 15);
  z = __builtin_shufflevector(z01, z23, 0, 1, 8, 9, 4, 5, 12, 13);
}

// Vector k holds four numbers of element k and of element k + 4. Gives each of the four of elements 0..7.
PYOPS_HD void transpose(f32x8 (&v)[4]) {
  const f32x8 t[] = {__builtin_shufflevector(v[0], v[1], 0, 8, 1, 9, 4, 12, 5, 13),
                     __builtin_shufflevector(v[0], v[1], 2, 10, 3, 11, 6, 14, 7, 15),
                     __builtin_shufflevector(v[2], v[3], 0, 8, 1, 9, 4, 12, 5, 13),
                     __builtin_shufflevector(v[2], v[3], 2, 10, 3, 11, 6, 14, 7, 15)};
  for (int i = 0; i < 2; ++i) {
    v[2 * i] = __builtin_shufflevector(t[i], t[i + 2], 0, 1, 8, 9, 4, 5, 12, 13);
    v[2 * i + 1] = __builtin_shufflevector(t[i], t[i + 2], 2, 3, 10, 11, 6, 7, 14, 15);
  }
}

// Rows become columns.
PYOPS_HD void transpose(f32x8 (&v)[8]) {
  f32x8 t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = __builtin_shufflevector(v[i], v[i + 1], 0, 8, 2, 10, 4, 12, 6, 14);
    t[i + 1] = __builtin_shufflevector(v[i], v[i + 1], 1, 9, 3, 11, 5, 13, 7, 15);
  }
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      v[i + k] = __builtin_shufflevector(t[i + k], t[i + k + 2], 0, 1, 8, 9, 4, 5, 12, 13);
      v[i + k + 2] = __builtin_shufflevector(t[i + k], t[i + k + 2], 2, 3, 10, 11, 6, 7, 14, 15);
    }
  for (int k = 0; k < 4; ++k) {
    t[k] = __builtin_shufflevector(v[k], v[k + 4], 0, 1, 2, 3, 8, 9, 10, 11);
    t[k + 4] = __builtin_shufflevector(v[k], v[k + 4], 4, 5, 6, 7, 12, 13, 14, 15);
  }
  for (int k = 0; k < 8; ++k) v[k] = t[k];
}
PYOPS_HD void transpose(f64x4 (&v)[4]) {
  const f64x4 low[2] = {__builtin_shufflevector(v[0], v[1], 0, 4, 2, 6),
                        __builtin_shufflevector(v[2], v[3], 0, 4, 2, 6)};
  const f64x4 high[2] = {__builtin_shufflevector(v[0], v[1], 1, 5, 3, 7),
                         __builtin_shufflevector(v[2], v[3], 1, 5, 3, 7)};
  v[0] = __builtin_shufflevector(low[0], low[1], 0, 1, 4, 5);
  v[1] = __builtin_shufflevector(high[0], high[1], 0, 1, 4, 5);
  v[2] = __builtin_shufflevector(low[0], low[1], 2, 3, 6, 7);
  v[3] = __builtin_shufflevector(high[0], high[1], 2, 3, 6, 7);
}

}  // namespace pyops::simd
