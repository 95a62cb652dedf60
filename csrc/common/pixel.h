// Element types of images: integers stand for value / levels, floats for themselves. A is the type of arithmetic.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstring>
#include <type_traits>

#include "portable.h"

namespace pyops {

template <class To, class From>
PYOPS_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// float16 <-> float32 in integer arithmetic without branches, so that loops over them vectorise on every target.
PYOPS_HD float half_to_float(uint16_t h) {
  const uint32_t magnitude = uint32_t(h & 0x7fff) << 13, special = (h & 0x7c00) == 0x7c00 ? 0x7f800000u : 0u;
  const float finite = bit_cast<float>(magnitude) * 0x1p112f;  // moves the exponent's bias, subnormals included
  const uint32_t bits = special ? magnitude | special : bit_cast<uint32_t>(finite);
  return bit_cast<float>(bits | uint32_t(h & 0x8000) << 16);
}

PYOPS_HD uint16_t float_to_half(float f) {
  const uint32_t bits = bit_cast<uint32_t>(f), a = bits & 0x7fffffff;
  const uint32_t normal = (a + 0xfff + (a >> 13 & 1) - 0x38000000) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(a) + 0.5f) - 0x3f000000;  // 0.5f has the wanted ulp
  const uint32_t finite = a < 0x38800000 ? subnormal : normal;
  const uint32_t magnitude = a < 0x477ff000 ? finite : (a > 0x7f800000 ? 0x7e00u : 0x7c00u);
  return uint16_t(magnitude | (bits >> 16 & 0x8000));
}

template <class T>
constexpr int kLevels = std::is_same_v<T, uint8_t> ? 255 : (std::is_same_v<T, uint16_t> ? 65535 : 0);

template <class T>
constexpr bool kIsHalf = std::is_same_v<T, torch::headeronly::Half>;

template <class T, class A>
PYOPS_HD A decode(T v) {
  if constexpr (kLevels<T> != 0) {
#if defined(__CUDA_ARCH__)
    // The same bits as the division for every uint8 and uint16, in three instructions instead of a subroutine.
    constexpr A levels = A(kLevels<T>), inverse = A(1) / levels;
    const A quotient = A(v) * inverse;
    return fma(fma(-quotient, levels, A(v)), inverse, quotient);
#else
    return A(v) / A(kLevels<T>);
#endif
  }
#if !defined(__CUDACC__)
  else if constexpr (kIsHalf<T>)
    return A(half_to_float(v.x));
#endif
  else return A(v);
}

// Integers: clamped to [0, 1], scaled, rounded half to even, NaN becomes 0.
template <class T, class A>
PYOPS_HD T encode(A v) {
  if constexpr (kLevels<T> != 0) {
    const A positive = v > A(0) ? v : A(0);
    const A scaled = (positive < A(1) ? positive : A(1)) * A(kLevels<T>);
    const A magic = sizeof(A) == 4 ? A(12582912) : A(6755399441055744);  // adding 1.5 * 2^mantissa rounds half to even
    return T(int((scaled + magic) - magic));
#if !defined(__CUDACC__)
  } else if constexpr (kIsHalf<T>) {
    return T(float_to_half(float(v)), T::from_bits());
#endif
  } else {
    return T(v);
  }
}

}  // namespace pyops
