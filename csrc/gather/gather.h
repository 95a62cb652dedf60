// The mathematics of gathering rows of point clouds, for host and device, without torch.
//
//     out[b, q] = sum over j of weights[b, q, j] * values[b, indices[b, q, j]],   j < each
//
// Rows that do not exist are zeros, and their gradients go nowhere. The gradient to a row is the sum over the entries that
// name it, in their order, whatever the number of threads.
#pragma once

#include "../common/portable.h"

namespace pyops::gather {

// A query blends `each` rows of the values of its cloud; gathering is blending one row, as it is.
struct Problem {
  int64_t batch, points, channels, queries, each;

  PYOPS_HD int64_t entries() const { return queries * each; }  // of a cloud
  PYOPS_HD int64_t rows() const { return batch * queries; }
};

// Everything that is no place in the cloud, -1 above all, stands for a row of zeros.
PYOPS_HD bool exists(int64_t index, int64_t points) { return uint64_t(index) < uint64_t(points); }

}  // namespace pyops::gather
