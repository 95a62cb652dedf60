// The mathematics of nearest neighbours, for host and device, without torch.
//
//     distance(q, p) = ((q0 - p0)^2 + (q1 - p1)^2) + ...,   each operation rounded, nothing fused
//
// so that every backend, and every instruction set of a CPU, finds the same bits, hence the same neighbours. A neighbour
// is a key, its distance above its index: keys order neighbours with ties by the lowest index, and no two are equal.
// Only finite distances make neighbours, and they are not negative, so that their bits order them.
#pragma once

#include <cstring>
#include <limits>

#include "../common/portable.h"

namespace pyops::knn {

constexpr int64_t kMostNeighbours = 1024;
constexpr int64_t kMostPoints = int64_t(1) << 31;  // of a cloud: indices have 32 bits inside

// A product that no addition is fused with.
#if defined(__CUDACC__)
__host__ __device__ __forceinline__ float square(float v) {
#if defined(__CUDA_ARCH__)
  return __fmul_rn(v, v);
#else
  return v * v;
#endif
}
#elif defined(PYOPS_UNFUSED)
inline namespace unfused {
template <class V>
PYOPS_HD V square(V v) {
  return v * v;
}
}  // namespace unfused
#elif defined(__clang__)
template <class V>
PYOPS_HD V square(V v) {
#pragma clang fp contract(off)
  const V product = v * v;  // fusing across statements is what clang never does on its own
  return product;
}
#elif defined(__GNUC__) && __GNUC__ >= 12
template <class V>
PYOPS_HD V square(V v) {
  return __builtin_assoc_barrier(v * v);
}
#else
template <class V>
PYOPS_HD V square(V v) {
  return v * v;
}
#endif

template <class A>
struct KeyOf;
template <>
struct KeyOf<float> {
  using type = uint64_t;
  using Bits = uint32_t;
};
#if !defined(__CUDACC__)
template <>
struct KeyOf<double> {
  __extension__ typedef unsigned __int128 type;
  using Bits = uint64_t;
};
#endif
template <class A>
using Key = typename KeyOf<A>::type;

template <class A>
PYOPS_HD Key<A> key_of(A distance, uint32_t index) {
  typename KeyOf<A>::Bits bits;
  memcpy(&bits, &distance, sizeof bits);
  return Key<A>(bits) << 32 | index;
}

template <class A>
PYOPS_HD A distance_of(Key<A> key) {
  const auto bits = typename KeyOf<A>::Bits(key >> 32);
  A distance;
  memcpy(&distance, &bits, sizeof bits);
  return distance;
}

template <class A>
PYOPS_HD uint32_t index_of(Key<A> key) {
  return uint32_t(key);
}

// The number before a finite one that is not negative: what is at most that is less than this one.
template <class A>
PYOPS_HD A before(A distance) {
  if (!(distance > A(0))) return A(-1);
  typename KeyOf<A>::Bits bits;
  memcpy(&bits, &distance, sizeof bits);
  --bits;
  memcpy(&distance, &bits, sizeof bits);
  return distance;
}

}  // namespace pyops::knn
