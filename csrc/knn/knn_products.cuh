// Nearest neighbours by products of matrices on CUDA: when they pay.
#pragma once

#include "knn_args.h"
#include "knn_select.cuh"

namespace pyops::knn {

// Where products pay, in one place. Fewer dimensions or pairs are compared sooner than a matrix of products is read
// twice; where k is a large part of a cloud, most of it is computed all the same. More dimensions would loosen the
// bounds, and more points would make single rows of products large. By arithmetic, not measured.
constexpr int64_t kLeastProductDims = 64, kMostProductDims = 1 << 16, kMostProductPoints = 1 << 21;
constexpr int64_t kProductNumbers = int64_t(1) << 28;  // pairs of a cloud, times dimensions

#if defined(PYOPS_EMULATE)
extern int products_always;  // for tests: 1 products whatever the size, 2 with factors cut to TF32
#else
constexpr int products_always = 0;
#endif

inline bool wants_products(const Problem& p) {
  if (p.points == 0) return false;
  return products_always ||
         (p.dims >= kLeastProductDims && p.dims <= kMostProductDims && p.points <= kMostProductPoints &&
          p.points >= 8 * p.k && p.queries >= ceil_div(kProductNumbers, p.points * p.dims));
}

template <class T>
void search_products(const Problem& p, const Tensor& query, const Tensor& points, const Counts& queries,
                     const Counts& counts, double limit, const Output<T>& out, cudaStream_t stream);

}  // namespace pyops::knn
