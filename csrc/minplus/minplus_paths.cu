// Shortest distances of dense graphs on CUDA, after Floyd and Warshall: a graph of up to 128 nodes by one block in shared
// memory, larger ones in blocks of 64 nodes, of which each takes three launches: the block, the tiles beside and below
// it, all other tiles.
//
// For the gradient a block grows the tree of shortest paths from one source, node by node in the order of distances, and
// one thread runs it back; there are as many trees as nodes to keep the device busy. Then a warp adds up the edges that
// lead to a node, over all sources in their order.
#include "minplus.cuh"

namespace pyops::minplus {
namespace {

constexpr int64_t kSmall = 128;  // nodes: 64 KB of shared memory
constexpr unsigned kAll = 0xffffffffu;

// The length of an edge. One that is negative or NaN is NaN, which no minimum here loses.
template <class T>
__device__ __forceinline__ float length(const Matrices<T>& weights, int64_t matrix, int64_t i, int64_t j) {
  const float value = decode<T, float>(weights.data[matrix * weights.batch + i * weights.row + j * weights.column]);
  return i == j ? 0.f : (value >= 0 ? value : __uint_as_float(0x7fc00000u));
}

// Node by node, in rows of `pitch` numbers. What a step reads it does not write.
__device__ __forceinline__ void close(float* graph, int nodes, int pitch) {
  const int warps = int(blockDim.x) / kWarp, warp = int(threadIdx.x) / kWarp, lane = int(threadIdx.x) % kWarp;
  for (int k = 0; k < nodes; ++k) {
    __syncthreads();
    for (int i = warp; i < nodes; i += warps) {
      if (i == k) continue;
      const float first = graph[i * pitch + k];
      for (int j = lane; j < nodes; j += kWarp)
        if (j != k) graph[i * pitch + j] = least(graph[i * pitch + j], first + graph[k * pitch + j]);
    }
  }
  __syncthreads();
}

template <class T>
__global__ void close_small(const Matrices<T> weights, int64_t batch, int nodes, T* out) {
  PYOPS_DYNAMIC_SHARED(float, graph);
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    for (int i = int(threadIdx.x); i < nodes * nodes; i += int(blockDim.x))
      graph[i] = length(weights, b, i / nodes, i % nodes);
    close(graph, nodes, nodes);
    for (int i = int(threadIdx.x); i < nodes * nodes; i += int(blockDim.x))
      out[b * nodes * nodes + i] = encode<T, float>(graph[i]);
    __syncthreads();
  }
}

template <class T>
__global__ void load_graphs(const Matrices<T> weights, int64_t nodes, int64_t total, float* to) {
  for (int64_t i = global_thread(); i < total; i += grid_threads())
    to[i] = length(weights, i / nodes / nodes, i / nodes % nodes, i % nodes);
}

template <class T>
__global__ void round_graphs(const float* from, int64_t total, T* to) {
  for (int64_t i = global_thread(); i < total; i += grid_threads()) to[i] = encode<T, float>(from[i]);
}

__global__ void __launch_bounds__(kThreads) close_blocks(float* graphs, int64_t nodes, int64_t first) {
  __shared__ float block[kSide * kSide];
  float* const at = graphs + blockIdx.x * nodes * nodes + first * (nodes + 1);
  const int n = nodes - first < kSide ? int(nodes - first) : kSide;
  for (int i = int(threadIdx.x); i < n * n; i += kThreads) block[i] = at[i / n * nodes + i % n];
  close(block, n, n);
  for (int i = int(threadIdx.x); i < n * n; i += kThreads) at[i / n * nodes + i % n] = block[i];
}

// Paths through the nodes of a block: the tiles in its rows and columns, or all others.
__global__ void __launch_bounds__(kThreads)
    improve(float* graphs, const Problem p, int64_t first, int64_t side, bool beside) {
  const int64_t each = beside ? 2 * side : side * side;
  const int64_t matrix = blockIdx.x / each, i = blockIdx.x % each, middle = first / kSide;
  const int64_t down = beside ? (i < side ? i : middle) : i / side, right = beside && i < side ? middle : i % side;
  if (beside ? down == right : (down == middle || right == middle)) return;
  float* const graph = graphs + matrix * p.rows * p.rows;
  Tile tile;
  run_tile(
      tile, down * kSide, right * kSide, p, false, false,
      [&](int64_t m, int64_t k) { return graph[m * p.rows + first + k]; },
      [&](int64_t k, int64_t n) { return graph[(first + k) * p.rows + n]; });
  for_owned(down * kSide, right * kSide, p, [&](int64_t m, int64_t n, int r, int c) {
    graph[m * p.rows + n] = least(graph[m * p.rows + n], tile.best[r][c]);
  });
}

// ---- gradient --------------------------------------------------------------------------------------------------------

struct Tree {
  int *before, *order;  // [B][N][N] the nodes before all others; of each block of threads [N]
  float* sums;          // [B][N][N]: distances, -1 once they are final; then gradients
};

// The nearest node of a block, as bits that grow with nearness; lowest index of equal ones. Every call has a barrier.
struct Nearest {
  unsigned rank, complement;

  __device__ __forceinline__ void offer(float distance, int64_t index) {
    const unsigned other = ~__float_as_uint(distance);
    if (distance >= 0 && distance < kInfinity && other > rank) rank = other, complement = ~unsigned(index);
  }
  __device__ __forceinline__ void of_warp() {
    const unsigned greatest = __reduce_max_sync(kAll, rank);
    complement = __reduce_max_sync(kAll, rank == greatest ? complement : 0u);
    rank = greatest;
  }
  __device__ __forceinline__ void of_block(Nearest* of_warps) {
    const int lane = int(threadIdx.x) % kWarp, warps = int(blockDim.x) / kWarp;
    of_warp();
    if (lane == 0) of_warps[int(threadIdx.x) / kWarp] = *this;
    __syncthreads();
    rank = lane < warps ? of_warps[lane].rank : 0u, complement = lane < warps ? of_warps[lane].complement : 0u;
    of_warp();
  }
};

template <class T>
__global__ void sum_trees(const Matrices<T> weights, const Matrices<const T> grad, const Problem p, const Tree to) {
  __shared__ Nearest of_warps[2][kThreads / kWarp];
  const int64_t nodes = p.rows;
  int* const order = to.order + blockIdx.x * nodes;
  for (int64_t i = blockIdx.x; i < p.batch * nodes; i += gridDim.x) {
    const int64_t b = i / nodes, source = i % nodes;
    int* const before = to.before + i * nodes;
    float* const sums = to.sums + i * nodes;
    Nearest nearest{0, 0};
    for (int64_t t = threadIdx.x; t < nodes; t += blockDim.x) {
      before[t] = -1, sums[t] = t == source ? 0.f : kInfinity;
      nearest.offer(sums[t], t);
    }
    int64_t count = 0;
    for (; count < nodes; ++count) {
      nearest.of_block(of_warps[count % 2]);
      if (nearest.rank == 0) break;
      const int64_t u = int64_t(~nearest.complement);
      const float distance = __uint_as_float(~nearest.rank);
      if (threadIdx.x == 0) order[count] = int(u);
      nearest = {0, 0};
      for (int64_t t = threadIdx.x; t < nodes; t += blockDim.x) {
        const float sum = distance + length(weights, b, u, t);
        if (t == u) sums[t] = -1.f;
        else if (sum < sums[t]) sums[t] = sum, before[t] = int(u);
        nearest.offer(sums[t], t);
      }
    }
    for (int64_t t = threadIdx.x; t < nodes; t += blockDim.x)
      sums[t] = decode<T, float>(grad.data[b * grad.batch + source * grad.row + t * grad.column]);
    __syncthreads();
    if (threadIdx.x == 0)
      for (int64_t k = count - 1; k > 0; --k) {
        const int t = order[k], u = before[t];
        if (u != source) sums[u] += sums[t];
      }
    __syncthreads();  // before the order is written again
  }
}

// ---- operators -------------------------------------------------------------------------------------------------------

template <class T>
void find_distances(const Problem& p, const Tensor& weights, const Tensor& out, cudaStream_t stream) {
  const auto from = matrices_of<T>(weights);
  T* const to = static_cast<T*>(out.mutable_data_ptr());
  const int64_t nodes = p.rows, total = p.batch * nodes * nodes, side = ceil_div<int64_t>(nodes, kSide);
  if (nodes <= kSmall) {
    launch("floyd_warshall", close_small<T>, blocks_for(p.batch, 1), nodes <= 32 ? 128 : 512,
           int64_t(sizeof(float)) * nodes * nodes, stream, from, p.batch, int(nodes), to);
    return;
  }
  PYOPS_CHECK(p.batch * side * side < kMost, "weights must be below 2^31 tiles");
  std::optional<Tensor> scratch;
  float* graphs = nullptr;
  if constexpr (std::is_same_v<T, float>) {
    graphs = to;
  } else {
    scratch = new_tensor(weights, p.product(), ScalarType::Float);
    graphs = scratch->mutable_data_ptr<float>();
  }
  launch("floyd_warshall (load)", load_graphs<T>, blocks_for(total, kThreads, 1 << 20), kThreads, 0, stream, from,
         nodes, total, graphs);
  for (int64_t first = 0; first < nodes; first += kSide) {
    const Problem part{p.batch, nodes, std::min<int64_t>(kSide, nodes - first), nodes};
    launch("floyd_warshall (block)", close_blocks, unsigned(p.batch), kThreads, 0, stream, graphs, nodes, first);
    for (const bool beside : {true, false})
      launch("floyd_warshall (tiles)", improve, unsigned(p.batch * (beside ? 2 * side : side * side)), kThreads, 0,
             stream, graphs, part, first, side, beside);
  }
  if constexpr (!std::is_same_v<T, float>)
    launch("floyd_warshall (round)", round_graphs<T>, blocks_for(total, kThreads, 1 << 20), kThreads, 0, stream,
           static_cast<const float*>(graphs), total, to);
}

Tensor forward(const Tensor& weights) {
  const Problem p = check_graphs(weights);
  const Tensor out = new_tensor(weights, p.product(), weights.scalar_type());
  if (out.numel() == 0) return out;
  const DeviceScope scope(weights);
  dispatch_float(weights.scalar_type(), "weights",
                 [&](auto zero) { find_distances<decltype(zero)>(p, weights, out, scope.stream()); });
  return out;
}

Tensor backward(const Tensor& grad, const Tensor& weights, const Tensor& distances) {
  const Problem p = check_graph_gradient(grad, weights, distances);
  const Tensor out = new_tensor(weights, p.product(), weights.scalar_type());
  if (out.numel() == 0) return out;
  const int64_t nodes = p.rows, size = nodes * nodes;
  const DeviceScope scope(weights);
  dispatch_float(weights.scalar_type(), "weights", [&](auto zero) {
    using T = decltype(zero);
    const int threads = int(std::min<int64_t>(kThreads, ceil_div<int64_t>(nodes, kWarp) * kWarp));
    const int64_t blocks = std::min(p.batch * nodes, resident_blocks(sum_trees<T>, threads, 0));
    const Tensor before = new_tensor(weights, p.product(), ScalarType::Int);
    const Tensor order = new_tensor(weights, {blocks, nodes}, ScalarType::Int);
    const Tensor sums = new_tensor(weights, p.product(), ScalarType::Float);
    const Tree tree{static_cast<int*>(before.mutable_data_ptr()), static_cast<int*>(order.mutable_data_ptr()),
                    sums.mutable_data_ptr<float>()};
    launch("floyd_warshall_backward", sum_trees<T>, unsigned(blocks), threads, 0, scope.stream(),
           matrices_of<T>(weights), matrices_of<const T>(grad), p, tree);
    launch_gather("floyd_warshall_backward (edges)",
                  Gather{tree.before, size, 1, nodes, nodes, nodes, nodes, size, 1, nodes}, p.batch,
                  static_cast<const float*>(tree.sums), size, 1, nodes, static_cast<T*>(out.mutable_data_ptr()),
                  scope.stream());
  });
  return out;
}

}  // namespace
}  // namespace pyops::minplus

PYOPS_CUDA_KERNELS(m) {
  m.impl("floyd_warshall", TORCH_BOX(&pyops::minplus::forward));
  m.impl("floyd_warshall_backward", TORCH_BOX(&pyops::minplus::backward));
}
