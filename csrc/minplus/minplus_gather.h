// The mathematics of min-plus products of a sparse matrix, for host and device, without torch. A row of it has `each`
// entries: lengths, and the rows of the dense matrix that they lead to.
//
//     out[m][l]          = min over j of lengths[m][j] + rows[indices[m][j]][l],   as in minplus.h
//     grad lengths[m][j] = sum over l with j(m, l) = j of grad[m][l]
//     grad rows[n][l]    = sum over m with indices[m][j(m, l)] = n of grad[m][l]
//
// where j(m, l) is the lowest index of the least sum, or of a NaN, and -1 where the result is inf. An index of no row
// stands for no entry, whatever its length.
#pragma once

#include "minplus.h"

namespace pyops::minplus {

struct Sparse {
  int64_t batch, queries, each, points, columns;

  PYOPS_HD int64_t lines() const { return batch * queries; }   // of the result
  PYOPS_HD int64_t entries() const { return queries * each; }  // of a matrix
  PYOPS_HD bool has(int64_t index) const { return uint64_t(index) < uint64_t(points); }
};

}  // namespace pyops::minplus
