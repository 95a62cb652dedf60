// CUDA's functions that concern one thread only: loads and stores, bits, rounding.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>

namespace simt {

template <class To, class From>
To bits(From from) {
  static_assert(sizeof(From) <= sizeof(To) && std::is_trivially_copyable_v<From>);
  To to{};
  std::memcpy(&to, &from, sizeof from);
  return to;
}

template <class T>
T from_bits(uint64_t from) {
  T to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Keeps an argument out of template deduction, so that atomicAdd(float*, 1) converts as CUDA's overload does.
template <class T>
struct Same {
  using type = T;
};
template <class T>
using same = typename Same<T>::type;

}  // namespace simt

// ---- Cached loads and stores --------------------------------------------------------------------
template <class T>
T __ldg(const T* p) {
  return *p;
}
template <class T>
T __ldcs(const T* p) {
  return *p;
}
template <class T>
T __ldcg(const T* p) {
  return *p;
}
template <class T>
void __stcs(T* p, simt::same<T> value) {
  *p = value;
}

// ---- Bits ---------------------------------------------------------------------------------------
inline unsigned __funnelshift_l(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) << (shift & 31) >> 32);
}
inline unsigned __funnelshift_r(unsigned low, unsigned high, unsigned shift) {
  return unsigned((uint64_t(high) << 32 | low) >> (shift & 31));
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __ffsll(long long x) { return __builtin_ffsll(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __clzll(long long x) { return x ? __builtin_clzll(static_cast<unsigned long long>(x)) : 64; }
inline int __float_as_int(float x) { return simt::bits<int>(x); }
inline unsigned __float_as_uint(float x) { return simt::bits<unsigned>(x); }
inline float __int_as_float(int x) { return simt::bits<float>(x); }
inline float __uint_as_float(unsigned x) { return simt::bits<float>(x); }

// ---- Numbers ------------------------------------------------------------------------------------
namespace simt {

// To nearest, ties to even, saturating; a NaN becomes 0 in 32 bits and the smallest value in 64.
template <class Integer, class Real>
Integer round_to_nearest(Real x) {
  using Limits = std::numeric_limits<Integer>;
  if (std::isnan(x)) return sizeof(Integer) == 8 ? Limits::min() : Integer(0);
  if (x >= std::ldexp(Real(1), Limits::digits)) return Limits::max();
  if (x <= Real(Limits::min())) return Limits::min();
  return Integer(std::nearbyint(x));
}

}  // namespace simt

inline int __float2int_rn(float x) { return simt::round_to_nearest<int>(x); }
inline long long __float2ll_rn(float x) { return simt::round_to_nearest<long long>(x); }
inline long long __double2ll_rn(double x) { return simt::round_to_nearest<long long>(x); }
inline float __int2float_rn(int x) { return float(x); }
inline float __ll2float_rn(long long x) { return float(x); }
inline double __ll2double_rn(long long x) { return double(x); }
inline float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
inline float __saturatef(float x) { return x > 0.f ? (x < 1.f ? x : 1.f) : 0.f; }  // a NaN becomes 0
inline float rsqrtf(float x) { return 1.f / sqrtf(x); }

// CUDA's min and max take two different types; for floating point they return the operand that is not NaN.
template <class A, class B, class T = std::common_type_t<A, B>, class = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T min(A a, B b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmin(T(a), T(b));
  return T(b) < T(a) ? T(b) : T(a);
}
template <class A, class B, class T = std::common_type_t<A, B>, class = std::enable_if_t<std::is_arithmetic_v<T>>>
constexpr T max(A a, B b) {
  if constexpr (std::is_floating_point_v<T>) return std::fmax(T(a), T(b));
  return T(a) < T(b) ? T(b) : T(a);
}
