// Building trees over clouds on CUDA: every division in two leaves equal halves of whole leaves, across the widest side.
//
// A block divides a chunk of points in shared memory, down to leaves: it sorts all ranges of a level at a time by a
// bitonic network. Clouds of more than a chunk are divided before, eight ways at a time, by stable sorts of all
// points. A key is a step along the side of the range, of a million, and the place so far, so that points that coincide
// stay in the order of their indices. Where points are so unevenly spread that many share a step, they are divided by
// place, and the next steps are finer: that costs speed alone, as a search is exact in any tree.
//
// What cannot be a neighbour (beyond the length, or not finite) takes the last step, hence comes behind all others.
#include "knn_tree_divide.cuh"

namespace pyops::knn {
namespace {

constexpr int kBlock = 512;  // threads
constexpr int kWays = 8, kSlotBits = 12;

constexpr int chunk_of(int64_t dims) { return dims <= 3 ? 4096 : 2048; }  // 80 KB of shared memory at the most
constexpr int kMostRanges = 4096 / (2 * kLeaf);

// Sorts every range of `size` of the chunk: steps of a network across warps in shared memory, those within one in
// registers.
__device__ __forceinline__ void sort_ranges(uint32_t* keys, int chunk, int size) {
  const int lane = lane_of(), threads = int(blockDim.x);
  for (int span = kWarp; span <= size; span *= 2) {
    for (int stride = span / 2; stride >= kWarp; stride /= 2) {
      for (int i = int(threadIdx.x); i < chunk / 2; i += threads) {
        const int low = 2 * i - (i & (stride - 1)), high = low + stride;
        const bool up = span == size || (low & span) == 0;
        const uint32_t a = keys[low], b = keys[high];
        keys[low] = up ? smaller(a, b) : greater(a, b);
        keys[high] = up ? greater(a, b) : smaller(a, b);
      }
      __syncthreads();
    }
    for (int i = int(threadIdx.x); i < chunk; i += threads) {
      uint32_t key = keys[i];
      const bool up = span == size || (i & span) == 0;
      if (span == kWarp) {
#pragma unroll
        for (int inner = 2; inner < kWarp; inner *= 2)
#pragma unroll
          for (int stride = inner / 2; stride > 0; stride /= 2) key = exchange(key, stride, (lane & inner) == 0);
      }
#pragma unroll
      for (int stride = kWarp / 2; stride > 0; stride /= 2) key = exchange(key, stride, up);
      keys[i] = key;
    }
    __syncthreads();
  }
}

struct Made {
  float *coordinates, *boxes;
  uint32_t *places, *least;
};

// A block for each chunk.
template <class T>
__global__ void __launch_bounds__(kBlock) grow(const Cloud<const T> points, const Counts counts, const int32_t* order,
                                               const Sizes s, const __grid_constant__ Tree tree, const Made out) {
  PYOPS_DYNAMIC_SHARED(float, coordinates);  // [dims][chunk]
  __shared__ uint32_t sides[kMostRanges * 2 * kTreeDims];
  const int chunk = int(s.range), dims = s.dims, lane = lane_of();
  auto* const keys = reinterpret_cast<uint32_t*>(coordinates + dims * chunk);
  const int64_t chunks = tree.leaves * kLeaf / chunk, b = blockIdx.x / chunks, begin = blockIdx.x % chunks * chunk;
  const auto slot_at = [&](int i) { return int(keys[i] & ((1u << kSlotBits) - 1)); };
  const auto place_of = [&](int slot) {
    const int64_t place = begin + slot;
    if (place >= s.points) return kNoPlace;
    return order ? uint32_t(order[b * s.points + place]) : uint32_t(place);
  };
  for (int i = int(threadIdx.x); i < chunk; i += kBlock) {
    float at[kTreeDims];
    const uint32_t place = place_of(i);
    const bool exists = place != kNoPlace && load(points, b, place, counts.of(b), dims, at);
#pragma unroll
    for (int d = 0; d < kTreeDims; ++d)
      if (d < dims) coordinates[d * chunk + i] = exists ? at[d] : __uint_as_float(0x7fc00000u);
    keys[i] = uint32_t(i);
  }
  for (int size = chunk; size > kLeaf; size /= 2) {
    for (int i = int(threadIdx.x); i < chunk / size * 2 * dims; i += kBlock) sides[i] = i % 2 ? kNoHigh : kNoLow;
    __syncthreads();
    for (int i = int(threadIdx.x); i < chunk; i += kBlock) {
      const int slot = slot_at(i);
      for (int d = 0; d < dims; ++d) {
        const float v = coordinates[d * chunk + slot];
        const uint32_t low = __reduce_min_sync(kAll, v == v ? in_order(v) : kNoLow);
        const uint32_t high = __reduce_max_sync(kAll, v == v ? in_order(v) : kNoHigh);
        uint32_t* const to = sides + (i / size * dims + d) * 2;
        if (lane == 0) atomicMin(to, low), atomicMax(to + 1, high);
      }
    }
    __syncthreads();
    for (int i = int(threadIdx.x); i < chunk; i += kBlock) {
      const uint32_t* const own = sides + i / size * dims * 2;
      const int slot = slot_at(i), widest = widest_of(own, dims);
      const uint32_t step = step_of(coordinates[widest * chunk + slot], own + 2 * widest, (1u << kStepBits) - 1);
      keys[i] = step << kSlotBits | uint32_t(slot);
    }
    __syncthreads();
    sort_ranges(keys, chunk, size);
  }
  for (int i = int(threadIdx.x); i < chunk; i += kBlock) {  // a warp has a leaf
    const int64_t leaf = (begin + i) / kLeaf, at = b * tree.leaves + leaf;
    const int64_t node = b * tree.nodes + tree.first[0] + leaf / kLeaf, child = leaf % kLeaf;
    const int slot = slot_at(i);
    const uint32_t place = place_of(slot);
    out.places[at * kLeaf + lane] = place;
    if (!out.coordinates) continue;
    bool exists = true;
    for (int d = 0; d < dims; ++d) {
      const float v = coordinates[d * chunk + slot];
      exists = v == v;
      out.coordinates[(at * dims + d) * kLeaf + lane] = v;
      const uint32_t low = __reduce_min_sync(kAll, exists ? in_order(v) : kNoLow);
      const uint32_t high = __reduce_max_sync(kAll, exists ? in_order(v) : kNoHigh);
      if (lane == 0) {
        out.boxes[(node * 2 * dims + 2 * d) * kLeaf + child] = low_of(low);
        out.boxes[(node * 2 * dims + 2 * d + 1) * kLeaf + child] = high_of(high);
      }
    }
    const uint32_t least = __reduce_min_sync(kAll, exists ? place : kNoPlace);
    if (lane == 0) out.least[node * kLeaf + child] = least;
  }
}

// The boxes of a level from the one below it: a warp for each child, also where there is none.
__global__ void enclose(const __grid_constant__ Tree tree, int level, int64_t nodes, int64_t below, const Made out) {
  const int lane = lane_of(), dims = tree.dims;
  const int64_t step = grid_threads() / kWarp;
  for (int64_t i = global_thread() / kWarp; i < tree.batch * nodes * kLeaf; i += step) {
    const int64_t b = i / (nodes * kLeaf), number = i % (nodes * kLeaf), child = number % kLeaf;
    const int64_t node = b * tree.nodes + tree.first[level] + number / kLeaf;
    const int64_t inner = b * tree.nodes + tree.first[level - 1] + number;
    const bool exists = number < below;
    for (int d = 0; d < dims; ++d) {
      const float* const from = out.boxes + (inner * 2 * dims + 2 * d) * kLeaf + lane;
      const uint32_t low = __reduce_min_sync(kAll, exists ? in_order(from[0]) : kNoLow);
      const uint32_t high = __reduce_max_sync(kAll, exists ? in_order(from[kLeaf]) : kNoHigh);
      float* const to = out.boxes + (node * 2 * dims + 2 * d) * kLeaf + child;
      if (lane == 0) to[0] = low_of(low), to[kLeaf] = high_of(high);
    }
    const uint32_t least = __reduce_min_sync(kAll, exists ? out.least[inner * kLeaf + lane] : kNoPlace);
    if (lane == 0) out.least[node * kLeaf + child] = least;
  }
}

}  // namespace

template <class T>
Trees grow_trees(const Tensor& points, const Counts& counts, bool whole, cudaStream_t stream) {
  const int chunk = chunk_of(points.size(2));
  Sizes s{points.size(0), points.size(1), int(points.size(2)), chunk, 0, kStepBits};
  const int64_t chunks = ceil_div<int64_t>(s.points, chunk);

  // Ranges of chunk * ways^i points, as few ways as do in so many divisions.
  int divisions = 0;
  int64_t ways = kWays;
  const auto reach = [&](int64_t ways) {
    int64_t n = 1;
    for (int i = 0; i < divisions; ++i) n *= ways;
    return n;
  };
  while (reach(kWays) < chunks) ++divisions;
  while (ways > 2 && reach(ways / 2) >= chunks) ways /= 2;
  Tensor order;
  s.range *= reach(ways);
  for (int i = 0; i < divisions; ++i, s.range /= ways) {
    s.ranges = ceil_div(s.points, s.range), s.step_bits = kStepBits;
    while (s.batch * s.ranges >> (kKeyBits - s.step_bits)) --s.step_bits;
    PYOPS_CHECK(s.step_bits > 1, "points must be fewer, or clouds");
    order = divide<T>(points, counts, i > 0 ? &order : nullptr, s, stream);
  }

  Trees trees{};
  Tree& tree = trees.of;
  tree.dims = s.dims, tree.batch = s.batch, tree.leaves = chunks * chunk / kLeaf;
  int64_t sizes[kTreeLevels];  // nodes of the levels
  for (int64_t children = tree.leaves; children > 1 || tree.levels == 0; ++tree.levels) {
    tree.first[tree.levels] = tree.nodes;
    children = sizes[tree.levels] = ceil_div<int64_t>(children, kLeaf);
    tree.nodes += children;
  }
  const int64_t leaves = tree.batch * tree.leaves * kLeaf, nodes = tree.batch * tree.nodes * kLeaf;
  trees.memory =
      new_tensor(points, {leaves + (whole ? leaves * s.dims + nodes * (2 * s.dims + 1) : 0)}, ScalarType::Int);
  Made made{};
  made.places = reinterpret_cast<uint32_t*>(trees.memory.mutable_data_ptr<int32_t>());
  if (whole) {
    made.least = made.places + leaves;
    made.coordinates = reinterpret_cast<float*>(made.least + nodes);
    made.boxes = made.coordinates + leaves * s.dims;
  }
  tree.places = made.places, tree.least = made.least, tree.coordinates = made.coordinates, tree.boxes = made.boxes;

  launch("knn (leaves)", grow<T>, blocks_for(s.batch * chunks, 1), kBlock,
         int64_t(sizeof(float)) * (s.dims + 1) * chunk, stream, cloud_of<const T>(points), counts,
         divisions > 0 ? order.const_data_ptr<int32_t>() : nullptr, s, tree, made);
  for (int level = 1; whole && level < tree.levels; ++level)
    launch("knn (boxes)", enclose, blocks_for(s.batch * sizes[level] * kLeaf, kThreads / kWarp, kMostBlocks), kThreads,
           0, stream, tree, level, sizes[level], sizes[level - 1], made);
  return trees;
}

template Trees grow_trees<float>(const Tensor&, const Counts&, bool, cudaStream_t);
template Trees grow_trees<Half>(const Tensor&, const Counts&, bool, cudaStream_t);
template Trees grow_trees<BFloat16>(const Tensor&, const Counts&, bool, cudaStream_t);

}  // namespace pyops::knn
