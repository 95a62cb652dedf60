// Bounds of distances by products of matrices on CUDA.
//
// About a centre c, with x and y the query and the point less c, |q - p|^2 = |x|^2 + |y|^2 - 2 x y. How far what is
// computed is from the distance as the definition rounds it, with u = 2^-24, X = |x|^2 and Y = |y|^2, as a share of
// X + Y:
//
//     factors in TF32, cut after ten bits (torch may be allowed to)     2^-9
//     2 D roundings at the most of products and sums, cut at 2 u each   4.4 D u
//     the definition, of |q - p|^2 <= 2 (X + Y)                         2 (D + 3) u
//     the subtraction of the centre, the norms, the sum of all          less than 24 u
//
// together at most share = 2^-9 * 1.02 + u (6.6 D + 48), as D u is small up to kMostProductDims. Lost bits of numbers
// near 0 add `tiny`. So |x|^2 + |y|^2 - 2 x y -+ (share (X + Y) + tiny) are bounds, whatever the order of the sums.
#pragma once

#include "knn_products.cuh"

namespace pyops::knn {
namespace {

#if defined(PYOPS_EMULATE)
// Tensor cores are not emulated: what they make of a factor is.
inline float factor(float v) { return products_always == 2 ? __uint_as_float(__float_as_uint(v) & 0xffffe000u) : v; }
#else
__device__ __forceinline__ float factor(float v) { return v; }
#endif

constexpr int kThreads = 256, kSome = 31, kAtOnce = 4;
constexpr float kHuge = std::numeric_limits<float>::max() / 64;  // squares up to this cannot overflow anything

// What products leave out of the distances, less and more what they may be wrong by; NaN of what is no neighbour.
struct __align__(8) Edges {
  float low, high;
};

struct Share {
  double of_square, tiny;
};

inline Share share_of(int64_t dims) {
  return {0x1p-9 * 1.02 + 0x1p-24 * (6.6 * double(dims) + 48),
          16 * double(dims + 4) * double(std::numeric_limits<float>::min())};
}

// Medians of the coordinates of some points, a thread for each: a few that are far away do not move them.
template <class T>
__global__ void find_centre(const Cloud<const T> cloud, const Counts counts, int64_t b, int dims, float* centre) {
  const int64_t d = global_thread(), count = counts.of(b);
  if (d >= dims) return;
  const int64_t step = count > kSome ? count / kSome : 1;
  float some[kSome];
#pragma unroll
  for (int i = 0; i < kSome; ++i) {
    some[i] = __uint_as_float(0x7fc00000u);
    if (i * step < count)
      some[i] = decode<T, float>(cloud.data[b * cloud.batch + i * step * cloud.point + d * cloud.dim]);
  }
  int finite = 0;
#pragma unroll
  for (int i = 0; i < kSome; ++i) finite += some[i] * 0.f == 0.f;
  float median = 0;
#pragma unroll
  for (int i = 0; i < kSome; ++i) {
    int smaller = 0;
#pragma unroll
    for (int j = 0; j < kSome; ++j)
      smaller += some[j] * 0.f == 0.f && (some[j] < some[i] || (j < i && some[j] == some[i]));
    if (some[i] * 0.f == 0.f && smaller == finite / 2) median = some[i];
  }
  centre[d] = median;
}

// Points from `begin` on about the centre, a warp for each; 0 where bounds say nothing.
template <class T>
__global__ void __launch_bounds__(kThreads)
    move_to_centre(const Cloud<const T> cloud, const Counts counts, int64_t b, int64_t begin, int64_t rows, int dims,
                   const float* centre, const Share share, float* features, Edges* edges) {
  const int64_t row = global_thread() / kWarp;
  if (row >= rows) return;
  const int lane = lane_of();
  const bool exists = begin + row < counts.of(b);
  const T* const from = cloud.data + b * cloud.batch + (begin + row) * cloud.point;
  float* const to = features + row * dims;
  double square = 0;
  float finite = exists ? 0.f : 1.f;
  for (int d = lane; d < dims; d += kWarp) {
    const float v = exists ? decode<T, float>(from[d * cloud.dim]) : 0.f, x = v - centre[d];
    finite += v * 0.f;
    square += double(x) * double(x);
    to[d] = factor(x);
  }
#pragma unroll
  for (int stride = kWarp / 2; stride > 0; stride /= 2) square += __shfl_xor_sync(kAll, square, stride);
  const bool possible = __all_sync(kAll, finite == 0.f), bounded = possible && square < double(kHuge);
  if (!bounded)
    for (int d = lane; d < dims; d += kWarp) to[d] = 0;
  if (lane != 0) return;
  const float infinity = __uint_as_float(0x7f800000u), nan = __uint_as_float(0x7fc00000u);
  const double width = share.of_square * square + share.tiny;
  if (bounded) edges[row] = {float(square - width), float(square + width)};
  else if (possible) edges[row] = {-infinity, infinity};
  else edges[row] = {nan, nan};
}

// Calls visit(low, high, point) for all points, by all lanes of a warp, in their order; bounds are NaN beyond `count`.
template <class Visit>
__device__ __forceinline__ void for_bounds(const float* products, const Edges* points, const Edges& query,
                                           int64_t count, const Visit& visit) {
  const float nan = __uint_as_float(0x7fc00000u);
  for (int64_t begin = 0; begin < count; begin += kAtOnce * kWarp) {
    float product[kAtOnce];
    Edges edges[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      const int64_t point = begin + i * kWarp + lane_of();
      product[i] = point < count ? products[point] : nan;
      edges[i] = point < count ? points[point] : Edges{nan, nan};
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
      visit(edges[i].low - 2 * product[i] + query.low, edges[i].high - 2 * product[i] + query.high,
            uint32_t(begin + i * kWarp + lane_of()));
  }
}

}  // namespace
}  // namespace pyops::knn
