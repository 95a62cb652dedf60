// Nearest neighbours in clouds of many dimensions on CUDA: products of matrices bound all distances, and what the
// bounds leave is computed like the definition does, so that the result has its bits.
//
// torch multiplies blocks of queries with all points, which gives two bounds of a distance (knn_products_bounds.cuh). A
// warp reads the row of a query twice. The first time it finds the k smallest upper bounds: t, the last of them, is at
// least the distance of the k-th neighbour. The second time it computes the points whose lower bounds are at most t, 32
// at a time; distances that are known lower t further. There is no list that could overflow, so that nothing falls back
// to another search: where bounds say little (points that coincide or nearly so, a point so far away that its square
// overflows), more distances are computed, up to all, and nothing is lost but time. No size depends on values: nothing
// waits for the device. Where torch is told to use deterministic algorithms alone, it refuses products unless
// CUBLAS_WORKSPACE_CONFIG is set; these results are the same either way.
//
// Cost, for 20,000 queries and points of 768 dimensions: 614 GFLOP in the products, for which an H200 takes 12 ms at
// its 51 TFLOP/s of float32 that are not TF32's; the products, 1.6 GB, written once and read twice, from L2 in part,
// 1 ms; 30 instructions for 32 pairs, 0.4 ms. For k = 10, 13 distances a query are computed where features are
// independent, 16 among descriptors with positive features, by counts: 1 GB from L2 and some 100 million instructions of
// warps, 0.3 ms. Together some 14 to 18 ms, or 4 to 6 where torch may multiply in TF32; by arithmetic, not
// measured. Comparing all pairs is predicted to take 73 ms. Memory: products of up to 128 MB (32 queries at the least),
// one cloud and a block of queries in float32.
#include <torch/csrc/stable/ops.h>

#include <array>
#include <utility>

#include "knn_products_bounds.cuh"

namespace pyops::knn {

#if defined(PYOPS_EMULATE)
#define PYOPS_EXPORT extern "C" __attribute__((visibility("default"), used))
int products_always = 0;
static int64_t distances_computed = 0;
static int64_t most_products = int64_t(1) << 25;  // numbers of a block
PYOPS_EXPORT void pyops_simt_set_knn_products(int always, int64_t most) {
  products_always = always, most_products = most;
}
PYOPS_EXPORT int64_t pyops_simt_knn_distances() { return std::exchange(distances_computed, 0); }
static void count_distance() { ++distances_computed; }
#else
constexpr int64_t most_products = int64_t(1) << 25;
__device__ __forceinline__ void count_distance() {}
#endif

namespace {

constexpr int kStep = kWarp + 1;              // of a row of the tile of a warp, so that columns have no conflicts
constexpr int kTile = kStep * kWarp + kWarp;  // its numbers: 32 points and the query, a part of 32 dimensions
constexpr int kWords = (kTile + 2 * kWarp + 1) / 2;  // of shared memory, with the candidates of a warp

struct Sizes {
  int64_t points, rows;  // of products
  int64_t b, begin, queries;
  int dims, k, room;
  float limit;
};

// The distance to the candidate of this lane: a part of 32 dimensions of each through shared memory, summed in order.
template <class T>
__device__ __forceinline__ float distance_to(const T* query, int64_t query_step, const T* points,
                                             const Cloud<const T>& cloud, int dims, const uint32_t* candidates,
                                             int count, float* tile) {
  const int lane = lane_of();
  float sum = 0;
  for (int first = 0; first < dims; first += kWarp) {
    const int part = dims - first < kWarp ? dims - first : kWarp;
    if (lane < part) {
      tile[kWarp * kStep + lane] = decode<T, float>(query[(first + lane) * query_step]);
      const T* const from = points + (first + lane) * cloud.dim;
#pragma unroll 8
      for (int i = 0; i < count; ++i)
        tile[i * kStep + lane] = decode<T, float>(from[int64_t(candidates[i]) * cloud.point]);
    }
    __syncwarp();
    if (lane < count)
      for (int d = 0; d < part; ++d) sum += square(tile[kWarp * kStep + d] - tile[lane * kStep + d]);
    __syncwarp();
  }
  if (lane < count) count_distance();
  return sum;
}

template <bool kRegisters>
__device__ __forceinline__ float threshold_of(const Selection<kRegisters>& best) {
  return __uint_as_float(uint32_t(best.bound >> 32));
}

// A warp for each query.
template <bool kRegisters, class T>
__global__ void __launch_bounds__(kThreads)
    choose(const float* products, const Edges* point_edges, const Edges* query_edges, const Cloud<const T> points,
           const Cloud<const T> query, const Counts counts, const Sizes s, const Output<T> out) {
  PYOPS_DYNAMIC_SHARED(Word, memory);
  const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp, lane = lane_of();
  const int64_t row = int64_t(blockIdx.x) * warps + warp, m = s.begin + row;
  if (row >= s.rows || m >= s.queries) return;
  Word* const own = memory + warp * (2 * s.room + kWords);
  float* const tile = reinterpret_cast<float*>(own + 2 * s.room);
  uint32_t* const candidates = reinterpret_cast<uint32_t*>(tile + kTile);
  const Edges edges = query_edges[row];
  const int64_t count = edges.low == edges.low ? counts.of(s.b) : 0;
  const float* const of_query = products + row * s.points;

  float threshold;
  {
    Selection<kRegisters> bounds(own, s.room, s.k, s.limit);
    for_bounds(of_query, point_edges, edges, count,
               [&](float, float high, uint32_t point) { bounds.offer(high < 0.f ? 0.f : high, point, s.limit); });
    bounds.finish();
    threshold = threshold_of(bounds);
    __syncwarp();
  }

  Selection<kRegisters> best(own, s.room, s.k, s.limit);
  const T* const asked = query.data + s.b * query.batch + m * query.point;
  const T* const cloud = points.data + s.b * points.batch;
  const auto compute = [&](int some) {
    const float distance = distance_to(asked, query.dim, cloud, points, s.dims, candidates, some, tile);
    best.offer(lane < some ? distance : __uint_as_float(0x7fc00000u), candidates[lane], s.limit);
    const float known = threshold_of(best);
    threshold = known < threshold ? known : threshold;
    __syncwarp();
  };
  int waiting = 0;
  for_bounds(of_query, point_edges, edges, count, [&](float low, float, uint32_t point) {
    const bool wanted = low <= threshold;
    const unsigned mask = __ballot_sync(kAll, wanted);
    if (mask == 0) return;
    if (wanted) candidates[waiting + before_lane(mask)] = point;
    waiting += __popc(mask);
    __syncwarp();
    if (waiting < kWarp) return;
    compute(kWarp);
    waiting -= kWarp;
    const uint32_t next = candidates[kWarp + lane];
    __syncwarp();
    candidates[lane] = next;
    __syncwarp();
  });
  if (waiting > 0) compute(waiting);
  best.finish();
  put_best(out, (s.b * s.queries + m) * s.k, best);
}

// first second^T into `products`. With a place for the result autocast, which knows of others, leaves the types alone.
void multiply(const Tensor& first, const Tensor& second, const Tensor& products) {
  using torch::stable::detail::from;
  using torch::stable::detail::to;
  std::array<StableIValue, 3> stack{from(first), from(torch::stable::transpose(second, 0, 1)), from(products)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  to<Tensor>(stack[0]);
}

struct Moved {
  Tensor features, edges;

  Moved(const Tensor& like, int64_t rows, int64_t dims)
      : features(new_tensor(like, {rows, dims}, ScalarType::Float)),
        edges(new_tensor(like, {rows, 2}, ScalarType::Float)) {}
  const Edges* bounds() const { return static_cast<const Edges*>(edges.const_data_ptr()); }
};

}  // namespace

template <class T>
void search_products(const Problem& p, const Tensor& query, const Tensor& points, const Counts& queries,
                     const Counts& counts, double limit, const Output<T>& out, cudaStream_t stream) {
  const int64_t most = std::min(p.queries, std::max<int64_t>(kWarp, most_products / p.points));
  const int64_t blocks = ceil_div(p.queries, most), rows = ceil_div(p.queries, blocks);  // all of the same size
  const Tensor centre = new_tensor(query, {p.dims}, ScalarType::Float);
  const Tensor products = new_tensor(query, {rows, p.points}, ScalarType::Float);
  const Moved cloud(query, p.points, p.dims), asked(query, rows, p.dims);
  const auto points_at = cloud_of<const T>(points), query_at = cloud_of<const T>(query);
  const int warps = warps_for(p.k);
  Sizes s;
  s.points = p.points, s.rows = rows, s.queries = p.queries;
  s.dims = int(p.dims), s.k = int(p.k), s.room = room_for(p.k), s.limit = finite_limit(limit);
  const auto move = [&](const Cloud<const T>& from, const Counts& of, int64_t begin, int64_t count, const Moved& to) {
    launch("knn (centre)", move_to_centre<T>, blocks_for(count, kThreads / kWarp), kThreads, 0, stream, from, of, s.b,
           begin, count, s.dims, static_cast<const float*>(centre.const_data_ptr()), share_of(p.dims),
           static_cast<float*>(to.features.mutable_data_ptr()), static_cast<Edges*>(to.edges.mutable_data_ptr()));
  };
  const auto choose_by = [&](auto kernel) {
    launch("knn (products)", kernel, blocks_for(rows, warps), warps * kWarp,
           int64_t(sizeof(Word)) * (2 * s.room + kWords) * warps, stream,
           static_cast<const float*>(products.const_data_ptr()), cloud.bounds(), asked.bounds(), points_at, query_at,
           counts, s, out);
  };
  for (s.b = 0; s.b < p.batch; ++s.b) {
    launch("knn (centre)", find_centre<T>, blocks_for(p.dims, kWarp), kWarp, 0, stream, points_at, counts, s.b, s.dims,
           static_cast<float*>(centre.mutable_data_ptr()));
    move(points_at, counts, 0, p.points, cloud);
    for (s.begin = 0; s.begin < p.queries; s.begin += rows) {
      move(query_at, queries, s.begin, rows, asked);
      multiply(asked.features, cloud.features, products);
      if (p.k > kWarp) choose_by(choose<false, T>);
      else choose_by(choose<true, T>);
    }
  }
}

template void search_products(const Problem&, const Tensor&, const Tensor&, const Counts&, const Counts&, double,
                              const Output<float>&, cudaStream_t);
template void search_products(const Problem&, const Tensor&, const Tensor&, const Counts&, const Counts&, double,
                              const Output<Half>&, cudaStream_t);
template void search_products(const Problem&, const Tensor&, const Tensor&, const Counts&, const Counts&, double,
                              const Output<BFloat16>&, cudaStream_t);

}  // namespace pyops::knn
