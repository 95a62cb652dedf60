// Words that mean the same to a C++ compiler, to nvcc and to the CUDA emulator of the tests.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define PYOPS_HD __host__ __device__ __forceinline__
#else
#define PYOPS_HD inline __attribute__((always_inline))
#endif

namespace pyops {

template <class T>
PYOPS_HD constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

}  // namespace pyops
