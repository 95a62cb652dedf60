// The tile of a min-plus product on CUDA: a block of 256 threads makes 64 x 64 results, a thread 4 x 4 in registers.
//
// Of both operands kDepth entries go to shared memory at a time, so that a thread reads two words of four for sixteen
// sums. The minimum is one that keeps NaN, as fast as the other.
#pragma once

#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "minplus_args.h"

namespace pyops::minplus {
namespace {

constexpr int kSide = 64, kOwned = 4, kThreads = 256, kAcross = kSide / kOwned, kDepth = 16;
constexpr float kInfinity = __builtin_huge_valf();

__device__ __forceinline__ float least(float a, float b) {
#if defined(PYOPS_EMULATE)
  return a != a || b != b ? a + b : (b < a ? b : a);
#else
  float c;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
#endif
}

struct Tile {
  float best[kOwned][kOwned];

  __device__ __forceinline__ Tile() {
#pragma unroll
    for (int i = 0; i < kOwned * kOwned; ++i) best[i / kOwned][i % kOwned] = kInfinity;
  }
  __device__ __forceinline__ void take(int, const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < kOwned * kOwned; ++i)
      best[i / kOwned][i % kOwned] = least(best[i / kOwned][i % kOwned], a[i / kOwned] + b[i % kOwned]);
  }
};

// With the lowest k of what is least.
struct IndexTile : Tile {
  int index[kOwned][kOwned];

  __device__ __forceinline__ IndexTile() {
#pragma unroll
    for (int i = 0; i < kOwned * kOwned; ++i) index[i / kOwned][i % kOwned] = -1;
  }
  __device__ __forceinline__ void take(int k, const float* a, const float* b) {
#pragma unroll
    for (int i = 0; i < kOwned * kOwned; ++i) {
      float& known = best[i / kOwned][i % kOwned];
      const float sum = a[i / kOwned] + b[i % kOwned];
      if (precedes(sum, known)) known = sum, index[i / kOwned][i % kOwned] = k;
    }
  }
};

__device__ __forceinline__ int first_row() { return int(threadIdx.x) / kAcross * kOwned; }
__device__ __forceinline__ int first_column() { return int(threadIdx.x) % kAcross * kOwned; }

// Runs k through the tile whose first row and column are given. `left` and `right` give entries as floats, and are asked
// for none outside of the matrices. Neighbouring threads read along the axis that `turned` does not name.
template <class T, class Left, class Right>
__device__ __forceinline__ void run_tile(T& tile, int64_t row, int64_t column, const Problem& p, bool left_turned,
                                         bool right_turned, const Left& left, const Right& right) {
  __shared__ __align__(16) float lefts[kDepth * (kSide + 4)], rights[kDepth * (kSide + 4)];
  constexpr int pitch = kSide + 4;
  for (int64_t first = 0; first < p.inner; first += kDepth) {
    __syncthreads();
    for (int i = int(threadIdx.x); i < kDepth * kSide; i += kThreads) {
      const int lk = left_turned ? i / kSide : i % kDepth, lr = left_turned ? i % kSide : i / kDepth;
      lefts[lk * pitch + lr] = row + lr < p.rows && first + lk < p.inner ? left(row + lr, first + lk) : kInfinity;
      const int rk = right_turned ? i % kDepth : i / kSide, rc = right_turned ? i / kDepth : i % kSide;
      rights[rk * pitch + rc] =
          column + rc < p.columns && first + rk < p.inner ? right(first + rk, column + rc) : kInfinity;
    }
    __syncthreads();
    const int count = p.inner - first < kDepth ? int(p.inner - first) : kDepth;
    for (int k = 0; k < count; ++k) {
      const float4 l = *reinterpret_cast<const float4*>(lefts + k * pitch + first_row());
      const float4 r = *reinterpret_cast<const float4*>(rights + k * pitch + first_column());
      const float a[kOwned] = {l.x, l.y, l.z, l.w}, b[kOwned] = {r.x, r.y, r.z, r.w};
      tile.take(int(first) + k, a, b);
    }
  }
}

// f(row, column, i, j) for the results of a thread that exist.
template <class F>
__device__ __forceinline__ void for_owned(int64_t row, int64_t column, const Problem& p, const F& f) {
#pragma unroll
  for (int i = 0; i < kOwned; ++i)
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const int64_t m = row + first_row() + i, n = column + first_column() + j;
      if (m < p.rows && n < p.columns) f(m, n, i, j);
    }
}

// Where a block's tile lies.
struct Place {
  int64_t matrix, row, column;

  __device__ __forceinline__ Place(const Problem& p, int64_t item) {
    const int64_t across = ceil_div<int64_t>(p.columns, kSide), down = ceil_div<int64_t>(p.rows, kSide);
    matrix = item / across / down, row = item / across % down * kSide, column = item % across * kSide;
  }
};

inline int64_t tiles_of(const Problem& p) {
  return p.batch * ceil_div<int64_t>(p.rows, kSide) * ceil_div<int64_t>(p.columns, kSide);
}

// indices[m][n] = k(m, n) of all products, [B, M, N].
template <class TA, class TB>
__global__ void __launch_bounds__(kThreads)
    find_indices(const Matrices<TA> a, const Matrices<TB> b, const Problem p, int* indices) {
  const Place at(p, blockIdx.x);
  IndexTile tile;
  run_tile(
      tile, at.row, at.column, p, a.row == 1, b.column != 1,
      [&](int64_t m, int64_t k) { return decode<TA, float>(a.data[at.matrix * a.batch + m * a.row + k * a.column]); },
      [&](int64_t k, int64_t n) { return decode<TB, float>(b.data[at.matrix * b.batch + k * b.row + n * b.column]); });
  for_owned(at.row, at.column, p, [&](int64_t m, int64_t n, int i, int j) {
    indices[(at.matrix * p.rows + m) * p.columns + n] = tile.index[i][j];
  });
}

constexpr int kWarp = 32, kWarps = 4, kMostSums = 2048;  // of a warp

// One warp adds up what `count` numbers give to `places`: to[i * step] = sum over j with indices[j] = i of grad[j], in the
// order of j. A part of the places lies in shared memory at a time; lanes take turns, so that no two of them meet.
struct Gather {
  const int* indices;
  int64_t index_batch, index_line, index_step;  // of [B][lines][count]
  int64_t lines, count, places;
  int64_t to_batch, to_line, to_step;  // of [B][lines][places]
};

template <class T, class Out>
__global__ void __launch_bounds__(kWarps* kWarp)
    gather(const Gather g, const T* grad, int64_t grad_batch, int64_t grad_line, int64_t grad_step, int64_t items,
           int room, Out* out) {
  PYOPS_DYNAMIC_SHARED(float, shared);
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  float* const sums = shared + warp * room;
  const int64_t parts = ceil_div<int64_t>(g.places, room);
  for (int64_t i = int64_t(blockIdx.x) * kWarps + warp; i < items; i += int64_t(gridDim.x) * kWarps) {
    const int64_t line = i % g.lines, first = i / g.lines % parts * room, b = i / g.lines / parts;
    const int some = g.places - first < room ? int(g.places - first) : room;
    for (int k = lane; k < some; k += kWarp) sums[k] = 0;
    __syncwarp();
    const int* const from = g.indices + b * g.index_batch + line * g.index_line;
    const T* const upstream = grad + b * grad_batch + line * grad_line;
    for (int64_t j = 0; j < g.count; j += kWarp) {
      const bool exists = j + lane < g.count;
      const int64_t k = exists ? from[(j + lane) * g.index_step] - first : -1;
      const bool inside = k >= 0 && k < some && (exists && from[(j + lane) * g.index_step] >= 0);
      const float value = inside ? decode<T, float>(upstream[(j + lane) * grad_step]) : 0.f;
      for (unsigned waiting = __ballot_sync(0xffffffffu, inside); waiting; waiting &= waiting - 1) {
        if (lane == __ffs(int(waiting)) - 1) sums[k] += value;
        __syncwarp();
      }
    }
    Out* const to = out + b * g.to_batch + line * g.to_line + first * g.to_step;
    for (int k = lane; k < some; k += kWarp) to[k * g.to_step] = encode<Out, float>(sums[k]);
    __syncwarp();
  }
}

template <class T, class Out>
void launch_gather(const char* name, const Gather& g, int64_t batch, const T* grad, int64_t grad_batch,
                   int64_t grad_line, int64_t grad_step, Out* out, cudaStream_t stream) {
  const int room = int(std::min<int64_t>(kMostSums, std::max<int64_t>(1, g.places)));
  const int64_t items = batch * g.lines * ceil_div<int64_t>(g.places, room);
  if (items == 0) return;
  launch(name, gather<T, Out>, blocks_for(items, kWarps, 1 << 20), kWarps * kWarp,
         int64_t(sizeof(float)) * kWarps * room, stream, g, grad, grad_batch, grad_line, grad_step, items, room, out);
}

}  // namespace
}  // namespace pyops::minplus
