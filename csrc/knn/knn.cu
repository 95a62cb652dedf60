// Nearest neighbours on CUDA: a warp for each query, points of the cloud through shared memory; large clouds of few
// dimensions go into trees instead (knn_tree.cu), those of many dimensions into products of matrices (knn_products.cu).
//
// The queries of a block belong to one cloud. A tile of points is rows of coordinates, so that lanes read neighbours;
// with more than kMostStaged dimensions it holds 32 points, and comes in parts.
#include "knn_products.cuh"
#include "knn_tree.cuh"

namespace pyops::knn {
namespace {

constexpr int kTile = 4096;  // numbers
constexpr int kMostPoints = 1024, kMostStaged = 128;

struct Sizes {
  int64_t batch, queries, blocks;  // of queries, for each cloud
  int dims, part, tile, k, room;   // dimensions of a part, points of a tile
  float limit;
};

// Calls visit(distance, point) for every point of the cloud, by all lanes of a warp, in the order of the points, until
// all warps are done. Beyond the cloud distances are NaN.
template <int kDims, class T, class Visit, class Done>
__device__ __forceinline__ void for_points(const Cloud<const T>& points, const Cloud<const T>& query, const Sizes& s,
                                           int64_t b, int64_t m, int64_t count, float* tile, float* asked,
                                           const Visit& visit, const Done& done) {
  const int lane = lane_of(), threads = int(blockDim.x);
  const float nan = __uint_as_float(0x7fc00000u);
  float own[kDims ? kDims : 1];
#pragma unroll
  for (int d = 0; d < kDims; ++d)
    own[d] = m < 0 ? nan : decode<T, float>(query.data[b * query.batch + m * query.point + d * query.dim]);
  for (int64_t begin = 0; begin < count; begin += s.tile) {
    float sum = 0;
    for (int first = 0; first < s.dims; first += s.part) {
      const int part = s.dims - first < s.part ? s.dims - first : s.part;
      __syncthreads();
      for (int i = int(threadIdx.x); i < part * s.tile; i += threads) {
        const int64_t point = begin + i % s.tile;
        const T* const from = points.data + b * points.batch + point * points.point;
        tile[i] = point < count ? decode<T, float>(from[(first + i / s.tile) * points.dim]) : nan;
      }
      if (!kDims)
        for (int d = lane; d < part; d += kWarp)
          asked[d] =
              m < 0 ? nan : decode<T, float>(query.data[b * query.batch + m * query.point + (first + d) * query.dim]);
      __syncthreads();
      if (part < s.dims) {  // a point a lane
        for (int d = 0; d < part; ++d) sum += square(asked[d] - tile[d * s.tile + lane]);
        continue;
      }
      for (int group = 0; group < s.tile && begin + group < count; group += kWarp) {
        const float* const at = tile + group + lane;
        sum = 0;
        if (kDims) {
#pragma unroll
          for (int d = 0; d < kDims; ++d) sum += square(own[d] - at[d * s.tile]);
        } else {
          for (int d = 0; d < s.dims; ++d) sum += square(asked[d] - at[d * s.tile]);
        }
        visit(sum, begin + group + lane);
      }
    }
    if (s.part < s.dims) visit(sum, begin + lane);
    if (__syncthreads_and(done())) break;
  }
  __syncthreads();  // before the next queries of the block
}

template <int kDims, bool kRegisters, class T>
__global__ void nearest(const Cloud<const T> points, const Cloud<const T> query, const Counts queries,
                        const Counts counts, const Sizes s, const Output<T> out) {
  PYOPS_DYNAMIC_SHARED(Word, memory);
  const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp;
  float* const tile = reinterpret_cast<float*>(memory + 2 * s.room * warps);
  float* const asked = tile + s.part * s.tile + warp * s.part;
  for (int64_t item = blockIdx.x; item < s.batch * s.blocks; item += gridDim.x) {
    const int64_t b = item / s.blocks, place = item % s.blocks * warps + warp;
    const int64_t m = place < queries.of(b) ? place : -1;
    Selection<kRegisters> best(memory + 2 * s.room * warp, s.room, s.k, s.limit);
    for_points<kDims>(
        points, query, s, b, m, counts.of(b), tile, asked,
        [&](float distance, int64_t point) { best.offer(distance, uint32_t(point), s.limit); }, [] { return 0; });
    best.finish();
    if (place < s.queries) put_best(out, (b * s.queries + place) * s.k, best);
  }
}

template <class T>
__global__ void first_within(const Cloud<const T> points, const Cloud<const T> query, const Counts queries,
                             const Counts counts, const Sizes s, const Output<T> out) {
  PYOPS_DYNAMIC_SHARED(float, tile);
  const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp, lane = lane_of();
  float* const asked = tile + s.part * s.tile + warp * s.part;
  for (int64_t item = blockIdx.x; item < s.batch * s.blocks; item += gridDim.x) {
    const int64_t b = item / s.blocks, place = item % s.blocks * warps + warp;
    const int64_t m = place < queries.of(b) ? place : -1, to = (b * s.queries + place) * s.k;
    int found = 0;
    for_points<0>(
        points, query, s, b, m, counts.of(b), tile, asked,
        [&](float distance, int64_t point) {
          const bool inside = distance <= s.limit;
          const unsigned mask = __ballot_sync(kAll, inside);
          const int at = found + before_lane(mask);
          if (inside && at < s.k) out.put(to + at, distance, point);
          found += __popc(mask);
        },
        [&] { return int(m < 0 || found >= s.k); });
    if (place >= s.queries) continue;
    for (int i = found + lane; i < s.k; i += kWarp) out.put(to + i, __uint_as_float(0x7f800000u), -1);
  }
}

Sizes sizes_for(const Problem& p, double limit, int warps) {
  Sizes s;
  s.batch = p.batch, s.queries = p.queries, s.blocks = ceil_div<int64_t>(p.queries, warps);
  s.dims = int(p.dims), s.k = int(p.k);
  s.part = std::min(s.dims, kMostStaged);
  s.tile = s.dims > kMostStaged ? kWarp : std::min(kMostPoints, kTile / s.dims / kWarp * kWarp);
  s.room = room_for(p.k), s.limit = finite_limit(limit);
  return s;
}

int64_t shared_bytes(const Sizes& s, int warps, bool keys) {
  return (keys ? 2 * s.room * warps * int64_t(sizeof(Word)) : 0) +
         int64_t(sizeof(float)) * (s.part * s.tile + warps * s.part);
}

template <class T>
void run(const Problem& p, const Tensor& query, const Tensor& points, const Counts& queries, const Counts& counts,
         double limit, const Output<T>& out, cudaStream_t stream) {
  // The one place where searches part: large clouds of few dimensions, of many, and all others.
  if (wants_tree(p)) return search_trees<T>(p, query, points, queries, counts, limit, out, stream);
  if (wants_products(p)) return search_products<T>(p, query, points, queries, counts, limit, out, stream);
  const int warps = warps_for(p.k);
  const Sizes s = sizes_for(p, limit, warps);
  const auto start = [&](auto kernel) {
    launch("knn", kernel, blocks_for(s.batch * s.blocks, 1), warps * kWarp, shared_bytes(s, warps, true), stream,
           cloud_of<const T>(points), cloud_of<const T>(query), queries, counts, s, out);
  };
  if (p.k > kWarp) start(nearest<0, false, T>);
  else if (p.dims == 3) start(nearest<3, true, T>);
  else if (p.dims == 2) start(nearest<2, true, T>);
  else start(nearest<0, true, T>);
}

template <class F>
std::tuple<Tensor, Tensor> search(const Problem& p, const Tensor& query, const F& f) {
  const Tensor distances = new_tensor(query, {p.batch, p.queries, p.k}, query.scalar_type());
  const Tensor indices = new_tensor(query, {p.batch, p.queries, p.k}, ScalarType::Long);
  if (distances.numel() == 0) return {distances, indices};
  const DeviceScope scope(query);
  dispatch_float(query.scalar_type(), "query", [&](auto zero) {
    using T = decltype(zero);
    f(Output<T>{static_cast<T*>(distances.mutable_data_ptr()), indices.mutable_data_ptr<int64_t>()}, scope.stream());
  });
  return {distances, indices};
}

std::tuple<Tensor, Tensor> forward(const Tensor& query, const Tensor& points, int64_t k,
                                   const std::optional<Tensor>& query_lengths, const std::optional<Tensor>& lengths,
                                   double limit) {
  const Problem p = check(query, points, k, query_lengths, lengths);
  const Counts queries = counts_of(query_lengths, p.queries), counts = counts_of(lengths, p.points);
  return search(p, query,
                [&](auto out, cudaStream_t stream) { run(p, query, points, queries, counts, limit, out, stream); });
}

std::tuple<Tensor, Tensor> forward_ball(const Tensor& query, const Tensor& points, double limit, int64_t k,
                                        const std::optional<Tensor>& query_lengths,
                                        const std::optional<Tensor>& lengths) {
  const Problem p = check(query, points, k, query_lengths, lengths);
  const Counts queries = counts_of(query_lengths, p.queries), counts = counts_of(lengths, p.points);
  return search(p, query, [&](auto out, cudaStream_t stream) {
    using T = std::remove_pointer_t<decltype(out.distances)>;
    constexpr int warps = 8;
    const Sizes s = sizes_for(p, limit, warps);
    launch("ball_query", first_within<T>, blocks_for(s.batch * s.blocks, 1), warps * kWarp,
           shared_bytes(s, warps, false), stream, cloud_of<const T>(points), cloud_of<const T>(query), queries, counts,
           s, out);
  });
}

}  // namespace
}  // namespace pyops::knn

PYOPS_CUDA_KERNELS(m) {
  m.impl("knn", TORCH_BOX(&pyops::knn::forward));
  m.impl("ball_query", TORCH_BOX(&pyops::knn::forward_ball));
}
