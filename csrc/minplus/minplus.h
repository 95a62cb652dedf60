// The mathematics of min-plus products and shortest paths, for host and device, without torch.
//
//     out[m][n]    = min over k of a[m][k] + b[k][n],   inf where there is no k; NaN where any of these sums is NaN
//     grad a[m][k] = sum over n with k(m, n) = k of grad[m][n],   grad b likewise over m
//
// where k(m, n) is the lowest index of the least sum, or of a NaN, and -1 where the result is inf: no path, no gradient.
// A graph is closed under paths when it equals the product with itself. Floyd and Warshall close it node by node, here
// in blocks of nodes: the block itself, then its rows and columns, then everything else by one product.
#pragma once

#include "../common/portable.h"

namespace pyops::minplus {

// Whether a sum takes the place of the least one found before it.
template <class A>
PYOPS_HD bool precedes(A sum, A least) {
  return sum < least || (sum != sum && least == least);
}

}  // namespace pyops::minplus
