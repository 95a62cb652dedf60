// The mathematics of products with a squared, doubly centred matrix, for host and device, without torch.
//
//     out = -1/2 J S J v,   S[i][j] = d[i][j] ** 2,   J = I - 1 1' / n
//
// J v is thin, and so is what J makes of S J v: the matrix itself is read once, and never centred or written.
#pragma once

#include "../common/portable.h"

namespace pyops::mds {

template <class A>
PYOPS_HD A add_product(A sum, A distance, A value) {
  return sum + distance * distance * value;
}

}  // namespace pyops::mds
