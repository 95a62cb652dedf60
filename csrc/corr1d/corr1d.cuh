// The levels of pyramids on CUDA: what the pyramid itself and lookups on demand both launch.
#pragma once

#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "corr1d_args.h"

namespace pyops::corr1d {

constexpr int kThreads = 128, kWarp = 32;

template <class T>
struct Levels {
  T* data[kMostLevels];  // each contiguous; level 0 first
};

// A warp has a line, which it reads once for every level: from the first-level cache after the first time.
template <class T, class U>
__global__ void __launch_bounds__(kThreads) pool_lines(const T* from, const Pairs p, const Levels<U> to) {
  for (int64_t i = global_thread() / kWarp; i < p.lines; i += grid_threads() / kWarp) {
    const T* const line = from + i * p.columns;
    for (int64_t l = 1; l < p.levels; ++l) {
      const int64_t n = p.columns >> l, each = int64_t(1) << l;
      for (int64_t j = threadIdx.x % kWarp; j < n; j += kWarp) {
        float sum = 0;
        for (int64_t k = 0; k < each; ++k) sum += decode<T, float>(line[j * each + k]);
        to.data[l][i * n + j] = encode<U, float>(sum / float(each));
      }
    }
  }
}

// A thread has an entry of level 0 and adds its share of every level. An odd last entry has none.
template <class T, class U>
__global__ void __launch_bounds__(kThreads) spread_levels(const Levels<const T> from, const Pairs p, U* to) {
  for (int64_t i = global_thread(); i < p.lines * p.columns; i += grid_threads()) {
    const int64_t line = i / p.columns, column = i % p.columns;
    float sum = 0;
    for (int64_t l = p.levels - 1; l >= 0; --l) {
      const int64_t n = p.columns >> l;
      if (column >> l < n) sum += decode<T, float>(from.data[l][line * n + (column >> l)]) / float(int64_t(1) << l);
    }
    to[i] = encode<U, float>(sum);
  }
}

}  // namespace pyops::corr1d
