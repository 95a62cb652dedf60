// Farthest point sampling on CUDA: one block a cloud, which never waits for another.
//
// A step chooses the greatest distance (of a thread, of its warp, of the block: one barrier) and lowers all distances to
// those from the new sample. Distances have no sign, so that they compare like their bits; with the complement of the
// index behind them, the greatest pair is the point to take. Points and distances of up to 8192 points in three
// dimensions, or 4096 in eight, stay in registers. Otherwise points are read again at every step, and distances lie in
// shared memory, or in global memory where that is too small.
#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "fps_args.h"

namespace pyops::fps {
namespace {

constexpr int kWarpThreads = 32, kMostWarps = 32, kMostThreads = kWarpThreads * kMostWarps;
constexpr unsigned kAllLanes = 0xffffffffu;

// A point and its rank, 0 both where there is none.
struct Pick {
  unsigned rank, complement;

  __device__ __forceinline__ bool some() const { return complement != 0; }
  __device__ __forceinline__ int64_t index() const { return int64_t(~complement); }
};

__device__ __forceinline__ Pick pick(unsigned rank, int64_t index) { return {rank, ~unsigned(index)}; }
__device__ __forceinline__ Pick pick_distance(float distance, int64_t index) {
  return distance < 0 ? Pick{0, 0} : pick(__float_as_uint(distance), index);
}

__device__ __forceinline__ Pick greatest_of_warp(Pick mine) {
  const unsigned rank = __reduce_max_sync(kAllLanes, mine.rank);
  return {rank, __reduce_max_sync(kAllLanes, mine.rank == rank ? mine.complement : 0u)};
}

// `of_warps` is used in turns with another one: who is late still reads it while the next choice writes there.
__device__ __forceinline__ Pick greatest_of_block(Pick mine, Pick* of_warps) {
  const int lane = int(threadIdx.x) % kWarpThreads, warps = int(blockDim.x) / kWarpThreads;
  mine = greatest_of_warp(mine);
  if (lane == 0) of_warps[int(threadIdx.x) / kWarpThreads] = mine;
  __syncthreads();
  return greatest_of_warp(lane < warps ? of_warps[lane] : Pick{0, 0});
}

// `points` are those of one cloud.
template <class T>
__device__ __forceinline__ float coordinate(const Points<T>& points, int64_t i, int64_t d) {
  return decode<T, float>(points.data[i * points.point + d * points.axis]);
}

template <class T>
__device__ __forceinline__ Points<T> cloud_of(const Points<T>& points, int64_t b) {
  return {points.data + b * points.batch, points.batch, points.point, points.axis};
}

__device__ __forceinline__ void fill_rest(int64_t* to, int64_t from, int64_t samples) {
  for (int64_t i = from + threadIdx.x; i < samples; i += blockDim.x) to[i] = -1;
}

// Offers a point as the first sample, the start above all others; its distance before there is any sample.
__device__ __forceinline__ float offer(Pick& best, bool candidate, int64_t i, int64_t start) {
  const unsigned rank = candidate ? (i == start ? 2u : 1u) : 0u;
  if (rank > best.rank) best = pick(rank, i);
  return candidate ? INFINITY : -1.f;
}

template <class T, int kDims, int kEach>
__global__ void __launch_bounds__(kMostThreads)
    sample_registers(const Points<T> clouds, const Problem p, int64_t* out) {
  __shared__ Pick of_warps[2][kMostWarps];
  const int64_t b = blockIdx.x, start = p.start.at(b);
  const Points<T> points = cloud_of(clouds, b);
  const int length = int(p.length(b)), step = int(blockDim.x), thread = int(threadIdx.x);
  const int dims = int(p.dims);
  int64_t* const to = out + b * p.samples;
  float x[kEach][kDims], nearest[kEach];
  Pick best{0, 0};
#pragma unroll
  for (int k = 0; k < kEach; ++k) {
    const int i = thread + k * step;
    bool candidate = i < length;
#pragma unroll
    for (int d = 0; d < kDims; ++d) {
      x[k][d] = i < length && d < dims ? coordinate(points, i, d) : 0.f;
      candidate = candidate && x[k][d] == x[k][d];
    }
    nearest[k] = offer(best, candidate, i, start);
  }
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    best = greatest_of_block(best, of_warps[sample % 2]);
    if (!best.some()) return fill_rest(to, sample, p.samples);
    const int chosen = int(best.index());
    if (threadIdx.x == 0) to[sample] = chosen;
    float center[kDims];
#pragma unroll
    for (int d = 0; d < kDims; ++d) center[d] = d < dims ? coordinate(points, chosen, d) : 0.f;
    float farthest = -1.f;
    int at = 0;
#pragma unroll
    for (int k = 0; k < kEach; ++k) {
      const int i = thread + k * step;
      float square = 0.f;
#pragma unroll
      for (int d = 0; d < kDims; ++d) square = add_square(square, x[k][d] - center[d]);
      nearest[k] = i == chosen ? -1.f : nearer(square, nearest[k]);
      if (nearest[k] > farthest) farthest = nearest[k], at = i;
    }
    best = pick_distance(farthest, at);
  }
}

// `scratch` holds the distances, [B, N]; null where shared memory does.
template <class T>
__global__ void __launch_bounds__(kMostThreads)
    sample_memory(const Points<T> clouds, const Problem p, float* scratch, int64_t* out) {
  PYOPS_DYNAMIC_SHARED(float, shared);
  __shared__ Pick of_warps[2][kMostWarps];
  __shared__ float center[kMostDims];
  const int64_t b = blockIdx.x, length = p.length(b), start = p.start.at(b);
  const Points<T> points = cloud_of(clouds, b);
  int64_t* const to = out + b * p.samples;
  float* const nearest = scratch ? scratch + b * p.points : shared;
  Pick best{0, 0};
  for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
    bool candidate = true;
    for (int64_t d = 0; d < p.dims; ++d) {
      const float x = coordinate(points, i, d);
      candidate = candidate && x == x;
    }
    nearest[i] = offer(best, candidate, i, start);
  }
  for (int64_t sample = 0; sample < p.samples; ++sample) {
    best = greatest_of_block(best, of_warps[sample % 2]);
    if (!best.some()) return fill_rest(to, sample, p.samples);
    const int64_t chosen = best.index();
    if (threadIdx.x == 0) to[sample] = chosen;
    if (threadIdx.x < p.dims) center[threadIdx.x] = coordinate(points, chosen, threadIdx.x);
    __syncthreads();
    float farthest = -1.f;
    int64_t at = 0;
    for (int64_t i = threadIdx.x; i < length; i += blockDim.x) {
      float known = nearest[i];
      if (known < 0.f) continue;
      float square = 0.f;
      for (int64_t d = 0; d < p.dims; ++d) square = add_square(square, coordinate(points, i, d) - center[d]);
      known = i == chosen ? -1.f : nearer(square, known);
      nearest[i] = known;
      if (known > farthest) farthest = known, at = i;
    }
    best = pick_distance(farthest, at);
  }
}

int threads_for(int64_t points, int64_t each) {
  const int64_t warps = ceil_div<int64_t>(ceil_div(points, each), kWarpThreads);
  return int(warps < 1 ? 1 : (warps < kMostWarps ? warps : kMostWarps)) * kWarpThreads;
}

template <class T>
void sample(const Problem& p, const Tensor& tensor, const Tensor& out, cudaStream_t stream) {
  const auto points = points_of<T>(tensor);
  int64_t* const to = static_cast<int64_t*>(out.mutable_data_ptr());
  const dim3 grid(unsigned(p.batch));
  const char* const name = "farthest_point_sample";
  const auto in_registers = [&](auto kernel, int64_t each) {
    launch(name, kernel, grid, threads_for(p.points, each), 0, stream, points, p, to);
  };
  if (p.dims <= 3 && p.points <= 4 * kMostThreads) return in_registers(sample_registers<T, 3, 4>, 4);
  if (p.dims <= 3 && p.points <= 8 * kMostThreads) return in_registers(sample_registers<T, 3, 8>, 8);
  if (p.dims <= 8 && p.points <= 4 * kMostThreads) return in_registers(sample_registers<T, 8, 4>, 4);
  const int64_t bytes = p.points * int64_t(sizeof(float)), reserve = 2048;
  std::optional<Tensor> scratch;
  if (bytes > shared_memory_limit() - reserve) scratch = new_tensor(tensor, {p.batch, p.points}, ScalarType::Float);
  float* const distances = scratch ? scratch->mutable_data_ptr<float>() : nullptr;
  launch(name, sample_memory<T>, grid, threads_for(p.points, 1), scratch ? 0 : bytes, stream, points, p, distances, to);
}

Tensor farthest_point_sample(const Tensor& points, int64_t m, std::optional<Tensor> lengths,
                             std::optional<Tensor> start) {
  const Problem p = check(points, m, lengths, start);
  PYOPS_CHECK(p.batch < int64_t(1) << 31, "B of points must be below 2^31");
  const Tensor out = new_tensor(points, {p.batch, m}, ScalarType::Long);
  if (out.numel() == 0) return out;
  const DeviceScope scope(points);
  dispatch_float(points.scalar_type(), "points",
                 [&](auto zero) { sample<decltype(zero)>(p, points, out, scope.stream()); });
  return out;
}

}  // namespace
}  // namespace pyops::fps

PYOPS_CUDA_KERNELS(m) { m.impl("farthest_point_sample", TORCH_BOX(&pyops::fps::farthest_point_sample)); }
