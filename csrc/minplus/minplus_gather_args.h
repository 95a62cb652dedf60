// Checks that keep sparse min-plus products inside their memory, once for every backend, and the sizes they establish.
#pragma once

#include "minplus_args.h"
#include "minplus_gather.h"

namespace pyops::minplus {

inline Sparse check_sparse(const Tensor& lengths, const Tensor& indices, const Tensor& rows) {
  PYOPS_CHECK(lengths.dim() == 3, "lengths must be [B, M, k]");
  PYOPS_CHECK(is_floating(lengths), "lengths must be floating point");
  PYOPS_CHECK(indices.dim() == 3 && sizes_of(indices) == sizes_of(lengths), "indices must have the shape of lengths");
  PYOPS_CHECK(indices.scalar_type() == ScalarType::Long, "indices must be int64");
  PYOPS_CHECK(rows.dim() == 3 && rows.size(0) == lengths.size(0), "rows must be [B, N, L] with the batch of lengths");
  PYOPS_CHECK(rows.scalar_type() == lengths.scalar_type(), "rows must have the dtype of lengths");
  check_place(indices, lengths, "indices must be on the same device as lengths");
  check_place(rows, lengths, "rows must be on the same device as lengths");
  for (const int64_t n : {lengths.size(1), lengths.size(2), rows.size(1), rows.size(2)})
    PYOPS_CHECK(n < kMost, "M, k, N and L must be below 2^31");
  return {lengths.size(0), lengths.size(1), lengths.size(2), rows.size(1), rows.size(2)};
}

inline Sparse check_sparse_gradient(const Tensor& grad, const Tensor& lengths, const Tensor& indices,
                                    const Tensor& rows) {
  const Sparse p = check_sparse(lengths, indices, rows);
  const std::vector<int64_t> result{p.batch, p.queries, p.columns};
  PYOPS_CHECK(grad.dim() == 3 && sizes_of(grad) == result && grad.scalar_type() == lengths.scalar_type(),
              "grad must have the shape and the dtype of the result");
  check_place(grad, lengths, "grad must be on the same device as lengths");
  return p;
}

}  // namespace pyops::minplus
