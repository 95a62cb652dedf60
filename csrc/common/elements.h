// Vectors of elements of any floating type, in its type of arithmetic A.
#pragma once

#include "pixel.h"
#include "simd.h"

namespace pyops::simd {

// The arithmetic of half_to_float and float_to_half, which a compiler does not find in eight calls of them.
PYOPS_HD f32x8 half_to_float(u16x8 h) {
  const u32x8 bits = __builtin_convertvector(h, u32x8), magnitude = (bits & 0x7fff) << 13;
  const f32x8 finite = (f32x8)magnitude * 0x1p112f;
  const u32x8 special = magnitude | 0x7f800000u;
  return (f32x8)(((bits & 0x7c00) == 0x7c00 ? special : (u32x8)finite) | (bits & 0x8000) << 16);
}

PYOPS_HD u16x8 float_to_half(f32x8 f) {
  const u32x8 bits = (u32x8)f, a = bits & 0x7fffffff;
  const u32x8 normal = (a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13;
  const u32x8 subnormal = (u32x8)((f32x8)a + 0.5f) - 0x3f000000;
  const i32x8 size = (i32x8)a;  // signed comparisons are single instructions
  const i32x8 finite = size < 0x38800000 ? (i32x8)subnormal : (i32x8)normal;
  const i32x8 infinite = size > 0x7f800000 ? (i32x8)(a * 0 + 0x7e00) : (i32x8)(a * 0 + 0x7c00);
  const u32x8 magnitude = (u32x8)(size < 0x477ff000 ? finite : infinite);
  return __builtin_convertvector(magnitude | (bits >> 16 & 0x8000), u16x8);
}

PYOPS_HD f32x8 bfloat16_to_float(u16x8 b) { return (f32x8)(__builtin_convertvector(b, u32x8) << 16); }

PYOPS_HD u16x8 float_to_bfloat16(f32x8 f) {
  const u32x8 bits = (u32x8)f, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const i32x8 nan = (i32x8)(bits & 0x7fffffff) > 0x7f800000;
  return __builtin_convertvector(nan ? rounded * 0 + 0x7fc0 : rounded, u16x8);
}

// `n` elements that follow each other, up to a whole vector; 0 beyond them.
template <class T, class A>
PYOPS_HD Vector<A> load_elements(const T* from, int64_t n = kLanes<A>) {
  if (n >= kLanes<A>) {
    if constexpr (std::is_same_v<T, A>) return load<Vector<A>>(from);
    if constexpr (kIsHalf<T>) return half_to_float(load<u16x8>(from));
    if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) return bfloat16_to_float(load<u16x8>(from));
  }
  A element[kLanes<A>] = {};
  for (int64_t k = 0; k < n; ++k) element[k] = decode<T, A>(from[k]);
  return load<Vector<A>>(element);
}

// Four elements from here, and four from there.
template <class T>
PYOPS_HD f32x8 load_halves(const T* low, const T* high) {
  if constexpr (std::is_same_v<T, float>) {
    return concat(load<f32x4>(low), load<f32x4>(high));
  } else {
    typedef uint16_t u16x4 __attribute__((vector_size(8)));
    const u16x8 both = __builtin_shufflevector(load<u16x4>(low), load<u16x4>(high), 0, 1, 2, 3, 4, 5, 6, 7);
    if constexpr (kIsHalf<T>) return half_to_float(both);
    return bfloat16_to_float(both);
  }
}

template <class T, class A>
PYOPS_HD void store_elements(T* to, Vector<A> value, int64_t n = kLanes<A>) {
  if (n >= kLanes<A>) {
    if constexpr (std::is_same_v<T, A>) return store(to, value);
    if constexpr (kIsHalf<T>) return store(to, float_to_half(value));
    if constexpr (std::is_same_v<T, torch::headeronly::BFloat16>) return store(to, float_to_bfloat16(value));
  }
  A element[kLanes<A>];
  store(element, value);
  for (int64_t k = 0; k < n; ++k) to[k] = encode<T, A>(element[k]);
}

}  // namespace pyops::simd
