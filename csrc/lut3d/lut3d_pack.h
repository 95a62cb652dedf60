// A table in the order that vector code and CUDA code read: packed[4 * vertex + c], c = red, green, blue, (unused).
#pragma once

#include "../common/tensor.h"

namespace pyops::lut3d {

// `planar` [tables, 3, N, N, N] contiguous, of type A, to [tables, N^3, 4].
template <class A>
Tensor pack(const Tensor& planar, int64_t tables, int64_t n) {
  const int64_t cells = n * n * n;
  const Tensor packed = new_tensor(planar, {tables, cells, 4}, planar.scalar_type());
  const A* from = planar.template const_data_ptr<A>();
  A* to = packed.template mutable_data_ptr<A>();
  torch::stable::parallel_for(0, tables * n * n, ceil_div<int64_t>(16384, n), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const A* source = from + row / (n * n) * 3 * cells + row % (n * n) * n;
      for (int64_t i = 0; i < n; ++i)
        for (int c = 0; c < 4; ++c) to[4 * (row * n + i) + c] = c < 3 ? source[c * cells + i] : A(0);
    }
  });
  return packed;
}

}  // namespace pyops::lut3d
