// Gradients of squared distances on CUDA, to queries and points.
//
// A query sums over its neighbours. A point sums over the pairs it is in: these are put side by side by counting, with
// integers only, and in no order that lasts. The warp of the point sorts them, 32 at a time, before it adds them up, so
// that a sum has one owner and one order.
#include "../common/pixel.h"
#include "knn_args.h"
#include "knn_select.cuh"

namespace pyops::knn {
namespace {

constexpr int kThreads = 256;

struct Sizes {
  int64_t batch, queries, points;
  int dims, k;
  int64_t pairs;  // of a cloud
};

template <class T>
struct Source {
  const T* grad;
  const int64_t* indices;
  Cloud<const T> query, points;

  __device__ __forceinline__ const T* query_at(int64_t b, int64_t m) const {
    return query.data + b * query.batch + m * query.point;
  }
  __device__ __forceinline__ const T* point_at(int64_t b, int64_t n) const {
    return points.data + b * points.batch + n * points.point;
  }
};

__device__ __forceinline__ bool is_inside(int64_t n, const Sizes& s) { return n >= 0 && n < s.points; }

template <class T>
__global__ void sum_neighbours(const Source<T> from, const Sizes s, T* out) {
  const int64_t total = s.batch * s.queries * s.dims;
  for (int64_t i = global_thread(); i < total; i += grid_threads()) {
    const int64_t at = i / s.dims, b = at / s.queries;
    const int d = int(i % s.dims);
    const float own = decode<T, float>(from.query_at(b, at % s.queries)[d * from.query.dim]);
    float sum = 0;
    for (int64_t e = at * s.k; e < (at + 1) * s.k; ++e) {
      const int64_t n = from.indices[e];
      if (!is_inside(n, s)) continue;
      const float other = decode<T, float>(from.point_at(b, n)[d * from.points.dim]);
      sum += 2 * decode<T, float>(from.grad[e]) * (own - other);
    }
    out[i] = encode<T, float>(sum);
  }
}

// next[i] += how many pairs point i is in.
__global__ void count_pairs(const int64_t* indices, const Sizes s, unsigned* next) {
  const int64_t total = s.batch * s.pairs;
  for (int64_t e = global_thread(); e < total; e += grid_threads())
    if (is_inside(indices[e], s)) atomicAdd(next + e / s.pairs * s.points + indices[e], 1u);
}

// Counts become starts: a block for each cloud.
__global__ void add_up(const Sizes s, unsigned* next) {
  __shared__ unsigned totals[kThreads / kWarp];
  const int lane = lane_of(), warp = int(threadIdx.x) / kWarp;
  for (int64_t b = blockIdx.x; b < s.batch; b += gridDim.x) {
    unsigned base = 0;
    for (int64_t begin = 0; begin < s.points; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      const unsigned own = i < s.points ? next[b * s.points + i] : 0;
      unsigned sum = own;
#pragma unroll
      for (int step = 1; step < kWarp; step *= 2) {
        const unsigned other = __shfl_up_sync(kAll, sum, step);
        if (lane >= step) sum += other;
      }
      if (lane == kWarp - 1) totals[warp] = sum;
      __syncthreads();
      unsigned before = base;
      for (int w = 0; w < kThreads / kWarp; ++w) {
        if (w < warp) before += totals[w];
        base += totals[w];
      }
      if (i < s.points) next[b * s.points + i] = before + sum - own;
      __syncthreads();
    }
  }
}

// The pairs of a point come to lie side by side; after it next[i] is where those of point i end.
__global__ void place_pairs(const int64_t* indices, const Sizes s, unsigned* next, unsigned* order) {
  const int64_t total = s.batch * s.pairs;
  for (int64_t e = global_thread(); e < total; e += grid_threads()) {
    if (!is_inside(indices[e], s)) continue;
    const int64_t b = e / s.pairs;
    order[b * s.pairs + atomicAdd(next + b * s.points + indices[e], 1u)] = unsigned(e % s.pairs);
  }
}

// A warp for each point.
template <class T>
__global__ void sum_pairs(const Source<T> from, const Sizes s, const unsigned* next, const unsigned* order, T* out) {
  __shared__ Word memory[kThreads / kWarp * 2 * kWarp];
  const int lane = lane_of(), warp = int(threadIdx.x) / kWarp;
  Word* const own = memory + warp * 2 * kWarp;
  const int64_t total = s.batch * s.points, step = grid_threads() / kWarp;
  for (int64_t i = global_thread() / kWarp; i < total; i += step) {
    const int64_t b = i / s.points, n = i % s.points;
    const unsigned begin = n > 0 ? next[i - 1] : 0, end = next[i];
    const unsigned* const pairs = order + b * s.pairs;
    for (int first = 0; first < s.dims; first += kWarp) {  // a lane adds up one dimension
      const int d = first + lane;
      const float point = d < s.dims ? decode<T, float>(from.point_at(b, n)[d * from.points.dim]) : 0.f;
      float sum = 0;
      Word last = 0;  // pairs below it are done
      for (unsigned done = begin; done < end; done += kWarp) {
        Word pair = kNothing;
        if (end - begin <= kWarp) {
          pair = sort_warp(begin + lane < end ? Word(pairs[begin + lane]) : kNothing);
        } else {
          Selection<true> next_ones(own, kWarp, kWarp, 0.f);
          next_ones.bound = kNothing;
          for (unsigned at = begin; at < end; at += kWarp) {
            const Word found = at + lane < end ? Word(pairs[at + lane]) : kNothing;
            next_ones.offer(found >= last ? found : kNothing);
          }
          next_ones.finish();
          pair = next_ones.best;
          last = __shfl_sync(kAll, pair, kWarp - 1) + 1;
          __syncwarp();
        }
        const float g = pair == kNothing ? 0.f : 2 * decode<T, float>(from.grad[b * s.pairs + int64_t(pair)]);
        const int count = end - done < kWarp ? int(end - done) : kWarp;
        for (int j = 0; j < count; ++j) {
          const float factor = __shfl_sync(kAll, g, j);
          const int64_t m = int64_t(__shfl_sync(kAll, pair, j)) / s.k;
          if (d < s.dims) sum += factor * (point - decode<T, float>(from.query_at(b, m)[d * from.query.dim]));
        }
      }
      if (d < s.dims) out[i * s.dims + d] = encode<T, float>(sum);
    }
  }
}

template <class T>
void run(const Source<T>& from, const Sizes& s, const Tensor& to_query, const Tensor& to_points, bool need_query,
         bool need_points, cudaStream_t stream) {
  constexpr int64_t kMostBlocks = 1 << 16;
  if (need_query && to_query.numel() > 0)
    launch("knn_backward (queries)", sum_neighbours<T>, blocks_for(to_query.numel(), kThreads, kMostBlocks), kThreads,
           0, stream, from, s, static_cast<T*>(to_query.mutable_data_ptr()));
  if (!need_points || to_points.numel() == 0) return;
  const int64_t counts = s.batch * s.points, total = s.batch * s.pairs;
  const Tensor memory = new_tensor(to_points, {counts + total}, ScalarType::Int);
  auto* const next = reinterpret_cast<unsigned*>(memory.mutable_data_ptr<int32_t>());
  unsigned* const order = next + counts;
  check_cuda(cudaMemsetAsync(next, 0, size_t(counts) * sizeof(unsigned), stream), "knn_backward");
  if (total > 0) {
    const unsigned blocks = blocks_for(total, kThreads, kMostBlocks);
    launch("knn_backward (count)", count_pairs, blocks, kThreads, 0, stream, from.indices, s, next);
    launch("knn_backward (starts)", add_up, blocks_for(s.batch, 1), kThreads, 0, stream, s, next);
    launch("knn_backward (places)", place_pairs, blocks, kThreads, 0, stream, from.indices, s, next, order);
  }
  launch("knn_backward (points)", sum_pairs<T>, blocks_for(counts, kThreads / kWarp, kMostBlocks), kThreads, 0, stream,
         from, s, next, order, static_cast<T*>(to_points.mutable_data_ptr()));
}

std::tuple<Tensor, Tensor> backward(const Tensor& grad, const Tensor& query, const Tensor& points,
                                    const Tensor& indices, bool need_query, bool need_points) {
  const Problem p = check_gradient(grad, query, points, indices);
  const Sizes s{p.batch, p.queries, p.points, int(p.dims), int(p.k), p.queries * p.k};
  PYOPS_CHECK(s.pairs < int64_t(1) << 31, "grad must have less than 2^31 elements for each cloud");
  const Tensor to_query = new_gradient(query, need_query, false), to_points = new_gradient(points, need_points, false);
  const Tensor upstream = in_order(grad), places = in_order(indices);
  const DeviceScope scope(query);
  dispatch_float(query.scalar_type(), "query", [&](auto zero) {
    using T = decltype(zero);
    const Source<T> from{static_cast<const T*>(upstream.const_data_ptr()), places.const_data_ptr<int64_t>(),
                         cloud_of<const T>(query), cloud_of<const T>(points)};
    run(from, s, to_query, to_points, need_query, need_points, scope.stream());
  });
  return {to_query, to_points};
}

}  // namespace
}  // namespace pyops::knn

PYOPS_CUDA_KERNELS(m) { m.impl("knn_backward", TORCH_BOX(&pyops::knn::backward)); }
