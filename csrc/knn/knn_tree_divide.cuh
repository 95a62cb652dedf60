// Dividing ranges of points on CUDA across their widest sides: the keys of a sort, and the divisions of clouds that are
// more than a block holds, all ranges of all clouds at a time.
#pragma once

#include "../common/segments.cuh"
#include "knn_tree.cuh"

namespace pyops::knn {
namespace {

constexpr int kThreads = 256;
constexpr int kKeyBits = 31, kStepBits = 20;
constexpr int64_t kRun = 1024;  // points that a warp looks through
constexpr int64_t kMostBlocks = 1 << 16;

constexpr uint32_t kNoLow = 0xffffffffu, kNoHigh = 0;  // of sides, as bits in order

// Bits that order like the numbers, signs included, and back.
__device__ __forceinline__ uint32_t in_order(float v) {
  const uint32_t bits = __float_as_uint(v);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
__device__ __forceinline__ float from_order(uint32_t bits) {
  return __uint_as_float(bits >> 31 ? bits & 0x7fffffffu : ~bits);
}

__device__ __forceinline__ float low_of(uint32_t bits) {
  return bits == kNoLow ? __uint_as_float(0x7f800000u) : from_order(bits);
}
__device__ __forceinline__ float high_of(uint32_t bits) {
  return bits == kNoHigh ? __uint_as_float(0xff800000u) : from_order(bits);
}

// `sides` are the lowest and the highest of each dimension.
__device__ __forceinline__ int widest_of(const uint32_t* sides, int dims) {
  int widest = 0;
  float width = -1;
  for (int d = 0; d < dims; ++d) {
    const float own = 0.5f * high_of(sides[2 * d + 1]) - 0.5f * low_of(sides[2 * d]);
    if (own > width) width = own, widest = d;
  }
  return widest;
}

// From 0 to last - 1, in proportion; the last one for what is NaN.
__device__ __forceinline__ uint32_t step_of(float v, const uint32_t* side, uint32_t last) {
  if (!(v == v)) return last;
  const float low = 0.5f * low_of(side[0]), width = 0.5f * high_of(side[1]) - low;  // halves do not overflow
  const auto step = uint32_t(width > 0 ? (0.5f * v - low) / width * float(last - 1) : 0.f);
  return smaller(step, last - 1);
}

struct Sizes {
  int64_t batch, points;  // of a cloud
  int dims;
  int64_t range, ranges;  // points of a range that is divided; ranges of a cloud
  int step_bits;          // of a key
};

// Coordinates of point n; false where it cannot be a neighbour.
template <class T>
__device__ __forceinline__ bool load(const Cloud<const T>& points, int64_t b, int64_t n, int64_t count, int dims,
                                     float (&at)[kTreeDims]) {
  if (n >= count) return false;
  float sum = 0;
#pragma unroll
  for (int d = 0; d < kTreeDims; ++d)
    if (d < dims) {
      at[d] = decode<T, float>(points.data[b * points.batch + n * points.point + d * points.dim]);
      sum += at[d] * 0.f;
    }
  return sum == 0.f;
}

__global__ void clear_sides(uint32_t* sides, int64_t count) {
  for (int64_t i = global_thread(); i < count; i += grid_threads()) sides[i] = i % 2 ? kNoHigh : kNoLow;
}

// The sides of every range: a warp takes a run of places, which is in one range.
template <class T>
__global__ void find_sides(const Cloud<const T> points, const Counts counts, const int32_t* order, const Sizes s,
                           uint32_t* sides) {
  const int64_t runs = ceil_div(s.points, kRun), step = grid_threads() / kWarp;
  for (int64_t i = global_thread() / kWarp; i < s.batch * runs; i += step) {
    const int64_t b = i / runs, begin = i % runs * kRun, count = counts.of(b);
    const int64_t end = begin + kRun < s.points ? begin + kRun : s.points;
    float at[kTreeDims];
    uint32_t low[kTreeDims], high[kTreeDims];
#pragma unroll
    for (int d = 0; d < kTreeDims; ++d) low[d] = kNoLow, high[d] = kNoHigh;
    for (int64_t place = begin + lane_of(); place < end; place += kWarp) {
      const int64_t n = order ? order[b * s.points + place] : place;
      if (!load(points, b, n, count, s.dims, at)) continue;
#pragma unroll
      for (int d = 0; d < kTreeDims; ++d)
        if (d < s.dims) {
          const uint32_t bits = in_order(at[d]);
          low[d] = smaller(low[d], bits), high[d] = greater(high[d], bits);
        }
    }
    __syncwarp();
    uint32_t* const to = sides + (b * s.ranges + begin / s.range) * 2 * s.dims;
#pragma unroll
    for (int d = 0; d < kTreeDims; ++d)
      if (d < s.dims) {
        const uint32_t least = __reduce_min_sync(kAll, low[d]), most = __reduce_max_sync(kAll, high[d]);
        if (lane_of() == 0) atomicMin(to + 2 * d, least), atomicMax(to + 2 * d + 1, most);
      }
  }
}

template <class T>
__global__ void make_keys(const Cloud<const T> points, const Counts counts, const int32_t* order, const Sizes s,
                          const uint32_t* sides, int32_t* keys) {
  for (int64_t i = global_thread(); i < s.batch * s.points; i += grid_threads()) {
    const int64_t b = i / s.points, place = i % s.points, range = b * s.ranges + place / s.range;
    const uint32_t* const own = sides + range * 2 * s.dims;
    const int widest = widest_of(own, s.dims);
    float at[kTreeDims], v = __uint_as_float(0x7fc00000u);
    if (load(points, b, order ? order[i] : place, counts.of(b), s.dims, at)) {
#pragma unroll
      for (int d = 0; d < kTreeDims; ++d)
        if (d == widest) v = at[d];
    }
    keys[i] = int32_t(uint32_t(range) << s.step_bits | step_of(v, own + 2 * widest, (1u << s.step_bits) - 1));
  }
}

// What a sort has put where: `moved` are places of all clouds.
__global__ void follow(const int64_t* moved, const int32_t* before, int64_t points, int64_t count, int32_t* after) {
  for (int64_t i = global_thread(); i < count; i += grid_threads())
    after[i] = before ? before[moved[i]] : int32_t(moved[i] % points);
}

template <class T>
Tensor divide(const Tensor& points, const Counts& counts, const Tensor* order, const Sizes& s, cudaStream_t stream) {
  const int64_t all = s.batch * s.points, numbers = s.batch * s.ranges * 2 * s.dims;
  const Tensor sides = new_tensor(points, {numbers}, ScalarType::Int);
  auto* const to = reinterpret_cast<uint32_t*>(sides.mutable_data_ptr<int32_t>());
  const int32_t* const before = order ? order->const_data_ptr<int32_t>() : nullptr;
  launch("knn (sides)", clear_sides, blocks_for(numbers, kThreads, kMostBlocks), kThreads, 0, stream, to, numbers);
  launch("knn (sides)", find_sides<T>, blocks_for(s.batch * ceil_div(s.points, kRun), kThreads / kWarp, kMostBlocks),
         kThreads, 0, stream, cloud_of<const T>(points), counts, before, s, to);
  Tensor keys = new_tensor(points, {all}, ScalarType::Int);
  launch("knn (keys)", make_keys<T>, blocks_for(all, kThreads, kMostBlocks), kThreads, 0, stream,
         cloud_of<const T>(points), counts, before, s, to, keys.mutable_data_ptr<int32_t>());
  const Tensor moved = segments::sort_stably(keys);
  const Tensor after = new_tensor(points, {all}, ScalarType::Int);
  launch("knn (order)", follow, blocks_for(all, kThreads, kMostBlocks), kThreads, 0, stream,
         moved.const_data_ptr<int64_t>(), before, s.points, all, after.mutable_data_ptr<int32_t>());
  return after;
}

}  // namespace
}  // namespace pyops::knn
