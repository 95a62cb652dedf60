// What a step of farthest point sampling computes, for host and device.
//
// Every operation is rounded by itself, nothing is fused: the definition in plain PyTorch, and every backend, then find
// the same distances, and the same ties among them.
#pragma once

#include "../common/portable.h"

namespace pyops::fps {

constexpr int64_t kMostDims = 64;

#if defined(__CUDA_ARCH__)
PYOPS_HD float add_square(float sum, float difference) { return __fadd_rn(sum, __fmul_rn(difference, difference)); }
#else
// Files that include this compile without contraction of products and sums.
template <class V>
PYOPS_HD V add_square(V sum, V difference) {
  return sum + difference * difference;
}
#endif

// Distances that only grow smaller; NaN, the difference of two infinities, changes nothing.
template <class A>
PYOPS_HD A nearer(A found, A known) {
  return found < known ? found : known;
}

}  // namespace pyops::fps
