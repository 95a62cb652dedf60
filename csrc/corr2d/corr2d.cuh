// The levels of pyramids on CUDA: what the pyramid itself and lookups on demand both launch.
#pragma once

#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "corr2d_args.h"

namespace pyops::corr2d {

constexpr int kThreads = 128;

template <class T>
struct Pyramid {
  T* data[kMostLevels];  // each contiguous; level 0 first
};

// A block has a plane, which it reads once for every level: from the first-level cache after the first time.
template <class T, class U>
__global__ void __launch_bounds__(kThreads) pool_planes(const T* from, const Planes p, const Pyramid<U> to) {
  for (int64_t plane = blockIdx.x; plane < p.planes; plane += gridDim.x) {
    const T* const entries = from + plane * p.entries(0);
    for (int64_t l = 1; l < p.levels; ++l) {
      const int64_t n = p.columns >> l, side = int64_t(1) << l;
      for (int64_t i = threadIdx.x; i < p.entries(l); i += kThreads) {
        const T* const square = entries + (i / n * p.columns + i % n) * side;
        float sum = 0;
        for (int64_t y = 0; y < side; ++y)
          for (int64_t x = 0; x < side; ++x) sum += decode<T, float>(square[y * p.columns + x]);
        to.data[l][plane * p.entries(l) + i] = encode<U, float>(sum / float(side * side));
      }
    }
  }
}

// A thread has an entry of level 0 and adds its share of every level. An odd last row or column has none.
template <class T, class U>
__global__ void __launch_bounds__(kThreads) spread_planes(const Pyramid<const T> from, const Planes p, U* to) {
  for (int64_t i = global_thread(); i < p.planes * p.entries(0); i += grid_threads()) {
    const int64_t plane = i / p.entries(0), row = i % p.entries(0) / p.columns, column = i % p.columns;
    float sum = 0;
    for (int64_t l = p.levels - 1; l >= 0; --l) {
      const int64_t y = row >> l, x = column >> l, n = p.columns >> l;
      if (y < p.rows >> l && x < n)
        sum += decode<T, float>(from.data[l][plane * p.entries(l) + y * n + x]) / float(int64_t(1) << 2 * l);
    }
    to[i] = encode<U, float>(sum);
  }
}

}  // namespace pyops::corr2d
