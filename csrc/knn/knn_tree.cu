// Nearest neighbours in large clouds of few dimensions on CUDA: trees (knn_tree_build.cu), then a warp for each query.
//
// From the root on, a warp looks at the 32 boxes of a node at once, a box a lane, and goes to the nearest first. A box
// gives a key that no neighbour in it is below: its distance above its lowest index. Where that is not below the k-th
// key so far, nothing in the box is wanted. This is exact, rounding included: of a point p of a box, low <= p <= high,
// and rounding is monotone, so that in each dimension max(low - q, q - high, 0), rounded, is at most |q - p|, rounded;
// so are then the squares and their sums, which are formed by the same operations in the same order. And equal points
// are in the order of their indices: when the lowest k are found, every other box is at the same distance with a higher
// index, and excluded.
//
// Queries are taken in the order of a tree, so that those of a block walk through the same boxes and leaves.
//
// Cost, with D = 3 and k = 16 in 32 clouds of 32,768 points, their own queries, by counts: 7.4 leaves of 1024 a query
// where points are uniform, 6.5 in clusters, 36 where one point is so far away that all others share a step of the first
// divisions. So some 240 distances and 100 boxes, 3 GFLOP in all, where all pairs take 275. By arithmetic, not measured:
// a warp issues about 130 instructions to the first bound (root, node, first leaf and its sort), 35 a leaf, 25 a node,
// 150 for each merge, of which there are two: 700 to 800 a query, 0.8e9 in all, for which an H200 (132 multiprocessors,
// four instructions at 1.7 GHz) takes 0.9 ms, and 1.2 to 1.4 at two thirds of that. It reads 7 KB a query, most of it
// from L1; the trees are 18 MB and stay in L2, the results are 201 MB, 0.04 ms. Building: one sort of 2^20 keys of 32
// bits, 0.08 ms; in chunks 84 steps in shared memory of 32 KB each and 35 passes of shuffles, two chunks a
// multiprocessor at a time, 0.06 ms; seven launches, 0.03 ms. Together 1.4 to 1.6 ms.
#include <utility>

#include "knn_tree.cuh"

namespace pyops::knn {

#if defined(PYOPS_EMULATE)
#define PYOPS_EXPORT extern "C" __attribute__((visibility("default"), used))
int tree_always = 0;
static int64_t leaves_read = 0;  // by lanes
PYOPS_EXPORT void pyops_simt_set_knn_tree(int always) { tree_always = always; }
PYOPS_EXPORT int64_t pyops_simt_knn_leaves() { return std::exchange(leaves_read, 0) / kWarp; }
static void count_leaf() { ++leaves_read; }
#else
__device__ __forceinline__ void count_leaf() {}
#endif

namespace {

constexpr int kMostThreads = 256;

struct Sizes {
  int64_t batch, queries, blocks;  // of queries, for each cloud
  int64_t places;                  // in the order of a cloud
  int k, room;
  float limit;
};

PYOPS_HD int words_of(int room) { return 2 * room + kTreeLevels * kWarp; }  // of shared memory, for a warp

template <int kDims, bool kRegisters>
struct Walk {
  static constexpr int kMost = kDims ? kDims : kTreeDims;

  const Tree& tree;
  int64_t first_leaf, first_node;  // of the cloud
  float limit;
  float own[kMost];  // the query
  Selection<kRegisters>& best;

  __device__ __forceinline__ int dims() const { return kDims ? kDims : tree.dims; }

  // The key of the child of this lane.
  __device__ __forceinline__ Word look(int level, int64_t number) const {
    const int64_t node = first_node + tree.first[level] + number;
    const float* const box = tree.boxes + node * 2 * dims() * kLeaf + lane_of();
    float sum = 0;
#pragma unroll
    for (int d = 0; d < kMost; ++d)
      if (d < dims()) {
        const float below = __ldg(box + 2 * d * kLeaf) - own[d], above = own[d] - __ldg(box + (2 * d + 1) * kLeaf);
        sum += square(fmaxf(fmaxf(below, above), 0.f));
      }
    return Word(__float_as_uint(sum)) << 32 | Word(__ldg(tree.least + node * kLeaf + lane_of()));
  }

  // The lane of the nearest child that may hold a neighbour; -1 when there is none. What is taken is not offered again.
  __device__ __forceinline__ int take(Word& key) const {
    const unsigned distance = key < best.bound ? unsigned(key >> 32) : kAll;
    const unsigned nearest = __reduce_min_sync(kAll, distance);
    if (nearest == kAll) return -1;
    const int child = __ffs(int(__ballot_sync(kAll, distance == nearest))) - 1;
    if (lane_of() == child) key = kNothing;
    return child;
  }

  __device__ __forceinline__ void compare(int64_t leaf) {
    count_leaf();
    const int64_t at = first_leaf + leaf;
    const float* const points = tree.coordinates + at * dims() * kLeaf + lane_of();
    float sum = 0;
#pragma unroll
    for (int d = 0; d < kMost; ++d)
      if (d < dims()) sum += square(own[d] - __ldg(points + d * kLeaf));
    best.offer(sum, __ldg(tree.places + at * kLeaf + lane_of()), limit);
  }

  // `keys` has a word a lane for each level; only its own lane reads one.
  __device__ __forceinline__ void run(Word* keys) {
    int level = tree.levels - 1;
    int64_t number = 0;
    bool opened = false;
    for (;;) {
      if (level == 0) {
        Word key = look(0, number);
        for (int child = take(key); child >= 0; child = take(key)) compare(number * kLeaf + child);
      } else {
        Word key = opened ? keys[level * kWarp + lane_of()] : look(level, number);
        const int child = take(key);
        keys[level * kWarp + lane_of()] = key;
        if (child >= 0) {
          number = number * kLeaf + child, --level, opened = false;
          continue;
        }
      }
      if (++level == tree.levels) return;
      number /= kLeaf, opened = true;
    }
  }
};

template <int kDims, bool kRegisters, class T>
__global__ void __launch_bounds__(kMostThreads, 4)
    nearest_by_tree(const __grid_constant__ Tree tree, const uint32_t* order, const Cloud<const T> query,
                    const Counts queries, const Sizes s, const Output<T> out) {
  PYOPS_DYNAMIC_SHARED(Word, memory);
  const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp;
  Word* const own = memory + warp * words_of(s.room);
  for (int64_t item = blockIdx.x; item < s.batch * s.blocks; item += gridDim.x) {
    const int64_t b = item / s.blocks, place = item % s.blocks * warps + warp;
    if (place >= s.queries) continue;
    const int64_t m = order ? int64_t(order[b * s.places + place]) : place;
    Selection<kRegisters> best(own, s.room, s.k, s.limit);
    Walk<kDims, kRegisters> walk{tree, b * tree.leaves, b * tree.nodes, s.limit, {}, best};
    float finite = 0;
#pragma unroll
    for (int d = 0; d < walk.kMost; ++d)
      if (d < walk.dims()) {
        walk.own[d] = decode<T, float>(query.data[b * query.batch + m * query.point + d * query.dim]);
        finite += walk.own[d] * 0.f;
      }
    if (m < queries.of(b) && finite == 0.f) walk.run(own + 2 * s.room);  // else it would be as near to empty boxes
    best.finish();
    put_best(out, (b * s.queries + m) * s.k, best);
    __syncwarp();
  }
}

}  // namespace

template <class T>
void search_trees(const Problem& p, const Tensor& query, const Tensor& points, const Counts& queries,
                  const Counts& counts, double limit, const Output<T>& out, cudaStream_t stream) {
  const Trees trees = grow_trees<T>(points, counts, true, stream);
  // As many queries as points are most often the points themselves, or where these were a moment ago; others that are
  // many get a tree of their own. Any order gives the same results.
  Trees of_queries{};
  Sizes s;
  s.batch = p.batch, s.queries = p.queries, s.places = trees.of.leaves * kLeaf;
  const uint32_t* order = p.queries == p.points ? trees.of.places : nullptr;
  if (!order && p.queries >= kTreePoints) {
    of_queries = grow_trees<T>(query, queries, false, stream);
    order = of_queries.of.places, s.places = of_queries.of.leaves * kLeaf;
  }
  const int warps = warps_for(p.k);
  s.blocks = ceil_div<int64_t>(p.queries, warps);
  s.k = int(p.k), s.room = room_for(p.k), s.limit = finite_limit(limit);
  const auto start = [&](auto kernel) {
    launch("knn (trees)", kernel, blocks_for(s.batch * s.blocks, 1), warps * kWarp,
           int64_t(sizeof(Word)) * words_of(s.room) * warps, stream, trees.of, order, cloud_of<const T>(query), queries,
           s, out);
  };
  if (p.k > kWarp) start(nearest_by_tree<0, false, T>);
  else if (p.dims == 3) start(nearest_by_tree<3, true, T>);
  else if (p.dims == 2) start(nearest_by_tree<2, true, T>);
  else start(nearest_by_tree<0, true, T>);
}

template void search_trees(const Problem&, const Tensor&, const Tensor&, const Counts&, const Counts&, double,
                           const Output<float>&, cudaStream_t);
template void search_trees(const Problem&, const Tensor&, const Tensor&, const Counts&, const Counts&, double,
                           const Output<Half>&, cudaStream_t);
template void search_trees(const Problem&, const Tensor&, const Tensor&, const Counts&, const Counts&, double,
                           const Output<BFloat16>&, cudaStream_t);

}  // namespace pyops::knn
