// Products with a squared, doubly centred matrix on CUDA. A warp takes kRows rows of the matrix and up to kColumns
// columns of the block, so that an entry of either that it reads serves several products; lanes read neighbours. Columns
// are centred before and after by a block each, in trees of one order.
#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "mds_args.h"

namespace pyops::mds {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp, kRows = 4, kColumns = 8;
constexpr unsigned kAll = 0xffffffffu;

__device__ __forceinline__ float sum_of_warp(float value) {
#pragma unroll
  for (int step = kWarp / 2; step > 0; step /= 2) value += __shfl_xor_sync(kAll, value, step);
  return value;
}

// Of all threads of a block; every call has two barriers.
__device__ __forceinline__ float sum_of_block(float value) {
  __shared__ float of_warps[kWarps];
  const int lane = int(threadIdx.x) % kWarp;
  value = sum_of_warp(value);
  __syncthreads();
  if (lane == 0) of_warps[int(threadIdx.x) / kWarp] = value;
  __syncthreads();
  return sum_of_warp(lane < kWarps ? of_warps[lane] : 0.f);
}

// to = scale * (from - mean over the points), a block for each column. `to` may be `from`. The mean of what is left after
// the first one is taken off too: sums of large numbers round.
template <class From, class To>
__global__ void __launch_bounds__(kThreads)
    center(const Matrices<From> from, const Matrices<To> to, const Problem p, float scale) {
  for (int64_t i = blockIdx.x; i < p.batch * p.columns; i += gridDim.x) {
    const From* const source = from.data + i / p.columns * from.batch + i % p.columns * from.column;
    To* const target = to.data + i / p.columns * to.batch + i % p.columns * to.column;
    float sum = 0, rest = 0;
    for (int64_t n = threadIdx.x; n < p.points; n += kThreads) sum += decode<From, float>(source[n * from.row]);
    const float mean = sum_of_block(sum) / float(p.points);
    for (int64_t n = threadIdx.x; n < p.points; n += kThreads) rest += decode<From, float>(source[n * from.row]) - mean;
    const float correction = sum_of_block(rest) / float(p.points);
    for (int64_t n = threadIdx.x; n < p.points; n += kThreads)
      target[n * to.row] = encode<To, float>(scale * (decode<From, float>(source[n * from.row]) - mean - correction));
  }
}

// to[b][column][row], as the centred columns lie.
template <class T>
__global__ void __launch_bounds__(kThreads)
    multiply(const Matrices<T> distances, const float* centered, const Problem p, float* to) {
  const int lane = int(threadIdx.x) % kWarp, warp = int(threadIdx.x) / kWarp;
  const int64_t down = ceil_div<int64_t>(p.points, kRows), across = ceil_div<int64_t>(p.columns, kColumns);
  const int64_t items = p.batch * across * down;
  for (int64_t i = int64_t(blockIdx.x) * kWarps + warp; i < items; i += int64_t(gridDim.x) * kWarps) {
    const int64_t b = i / down / across, row = i % down * kRows, column = i / down % across * kColumns;
    const T* const from = distances.data + b * distances.batch + row * distances.row;
    const float* const values = centered + (b * p.columns + column) * p.points;
    float sum[kRows][kColumns];
#pragma unroll
    for (int k = 0; k < kRows * kColumns; ++k) sum[k / kColumns][k % kColumns] = 0;
    for (int64_t j = lane; j < p.points; j += kWarp) {
      float square[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float d = row + r < p.points ? decode<T, float>(from[r * distances.row + j * distances.column]) : 0.f;
        square[r] = d * d;
      }
#pragma unroll
      for (int c = 0; c < kColumns; ++c) {
        const float value = column + c < p.columns ? values[c * p.points + j] : 0.f;
#pragma unroll
        for (int r = 0; r < kRows; ++r) sum[r][c] += square[r] * value;
      }
    }
#pragma unroll
    for (int k = 0; k < kRows * kColumns; ++k) {
      const int r = k / kColumns, c = k % kColumns;
      const float total = sum_of_warp(sum[r][c]);
      if (lane == 0 && row + r < p.points && column + c < p.columns)
        to[(b * p.columns + column + c) * p.points + row + r] = total;
    }
  }
}

Tensor forward(const Tensor& distances, const Tensor& vectors) {
  const Problem p = check(distances, vectors);
  const Tensor out = new_tensor(vectors, sizes_of(vectors), vectors.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(distances);
  const Tensor thin = new_tensor(vectors, {2, p.batch, p.columns, p.points}, ScalarType::Float);
  float *const centered = thin.mutable_data_ptr<float>(), *const products = centered + out.numel();
  dispatch_float(distances.scalar_type(), "distances", [&](auto zero) {
    using T = decltype(zero);
    const int64_t size = p.columns * p.points, down = ceil_div<int64_t>(p.points, kRows);
    const unsigned columns = blocks_for(p.batch * p.columns, 1, 1 << 20);
    const Matrices<float> before{centered, size, 1, p.points}, after{products, size, 1, p.points};
    launch("double_centered_matmul (vectors)", center<T, float>, columns, kThreads, 0, scope.stream(),
           matrices_of<T>(vectors), before, p, 1.f);
    launch("double_centered_matmul", multiply<T>,
           blocks_for(p.batch * down * ceil_div<int64_t>(p.columns, kColumns), kWarps, 1 << 20), kThreads, 0,
           scope.stream(), matrices_of<T>(distances), static_cast<const float*>(centered), p, products);
    launch("double_centered_matmul (products)", center<float, T>, columns, kThreads, 0, scope.stream(), after,
           matrices_of<T>(out), p, -0.5f);
  });
  return out;
}

}  // namespace
}  // namespace pyops::mds

PYOPS_CUDA_KERNELS(m) { m.impl("double_centered_matmul", TORCH_BOX(&pyops::mds::forward)); }
