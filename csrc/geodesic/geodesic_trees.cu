// Predecessors, and the gradient with respect to the weights, on CUDA: a block for each source.
//
// Each vertex passes on the sum of the gradients that lie behind it as soon as the last of its children has passed on to
// it, so nobody waits. Sums are integers (common/fixed_point.cuh), the same in every order.
#include "../common/fixed_point.cuh"
#include "geodesic.cuh"

namespace pyops::geodesic {
namespace {

__global__ void __launch_bounds__(512)
    write_predecessors(const Packed graphs, const int64_t* sources, const Problem p, const float* distances, bool names,
                       unsigned char* scratch, int64_t each, int64_t* out) {
  PYOPS_DYNAMIC_SHARED(unsigned char, shared);
  unsigned* const edges = reinterpret_cast<unsigned*>(scratch ? scratch + blockIdx.x * each : shared);
  for (int64_t task = blockIdx.x; task < p.batch * p.sources; task += gridDim.x) {
    const Packed graph = graphs.of(task / p.sources, p);
    find_tree(graph, p.vertices, distances + task * p.vertices, sources[task], edges);
    for (int64_t v = threadIdx.x; v < p.vertices; v += blockDim.x) {
      const unsigned e = edges[v];
      out[task * p.vertices + v] = e >= kProvisional ? -1 : (names ? int64_t(e) : int64_t(graph.row[e]));
    }
    __syncthreads();
  }
}

// The largest finite magnitude, as the bits of a float; *result starts at 0.
__global__ void largest(const float* values, int64_t count, uint32_t* result) {
  float most = 0.f;
  for (int64_t i = global_thread(); i < count; i += grid_threads()) {
    const float v = fabsf(values[i]);
    if (fixed::is_finite(v) && v > most) most = v;
  }
  if (most > 0.f) atomicMax(result, __float_as_uint(most));
}

// Where what came in is not finite, neither are the gradients of the edges on the path: `broken` marks them.
__global__ void __launch_bounds__(512)
    add_gradients(const Packed graphs, const int64_t* sources, const Problem p, const float* grad,
                  const float* distances, const uint32_t* bound, int spare, unsigned char* scratch, int64_t each,
                  uint64_t* sums, uint32_t* broken) {
  PYOPS_DYNAMIC_SHARED(unsigned char, shared);
  using ull = unsigned long long;
  ull* const total = reinterpret_cast<ull*>(scratch ? scratch + blockIdx.x * each : shared);
  unsigned* const edges = reinterpret_cast<unsigned*>(total + p.vertices);
  int* const children = reinterpret_cast<int*>(edges + p.vertices);
  const int exponent = fixed::exponent(__uint_as_float(*bound)) - spare;
  for (int64_t task = blockIdx.x; task < p.batch * p.sources; task += gridDim.x) {
    const int64_t b = task / p.sources;
    const Packed graph = graphs.of(b, p);
    const float* const upstream = grad + task * p.vertices;
    uint64_t* const to = sums + b * p.edges;
    for (int64_t v = threadIdx.x; v < p.vertices; v += blockDim.x) children[v] = 0;
    find_tree(graph, p.vertices, distances + task * p.vertices, sources[task], edges);
    __syncthreads();
    for (int64_t v = threadIdx.x; v < p.vertices; v += blockDim.x) {
      const unsigned e = edges[v];
      const float g = e < kProvisional ? upstream[v] : 0.f;
      total[v] = ull(int64_t(fixed::is_finite(g) ? fixed::quantise(g, exponent) : 0));
      if (e < kProvisional) atomicAdd(&children[graph.row[e]], 1);
      if (fixed::is_finite(g)) continue;
      for (unsigned on = e; on < kProvisional; on = edges[graph.row[on]]) atomicOr(&broken[b * p.edges + on], 1u);
    }
    __syncthreads();
    for (int64_t v = threadIdx.x; v < p.vertices; v += blockDim.x)
      if (children[v] == 0) children[v] = -1;  // a leaf; what has children counts down to 0
    __syncthreads();
    for (int64_t leaf = threadIdx.x; leaf < p.vertices; leaf += blockDim.x) {
      if (children[leaf] != -1) continue;
      for (int64_t v = leaf; edges[v] < kProvisional;) {
        const unsigned e = edges[v];
        const ull sum = atomicAdd(&total[v], ull(0));  // what all children have added
        fixed::add_global(to + e, uint64_t(sum));
        v = graph.row[e];
        atomicAdd(&total[v], sum);
        __threadfence_block();
        if (atomicAdd(&children[v], -1) != 1) break;
        __threadfence_block();
      }
    }
    __syncthreads();
  }
}

__global__ void write_gradients(const uint64_t* sums, const uint32_t* broken, const uint32_t* bound, int spare,
                                int64_t count, float* out) {
  const int exponent = fixed::exponent(__uint_as_float(*bound)) - spare;
  for (int64_t i = global_thread(); i < count; i += grid_threads())
    out[i] = broken[i] ? NAN : float(fixed::value(sums[i], exponent));
}

Tensor geodesic_predecessors(const Tensor& indptr, const Tensor& indices, const Tensor& weights, const Tensor& sources,
                             const Tensor& distances, bool edges) {
  const Problem p = check(indptr, indices, weights, sources);
  check_result(distances, weights, p, "distances");
  PYOPS_CHECK(weights.scalar_type() == ScalarType::Float, "weights must be float32");
  const Tensor out = new_tensor(weights, {p.batch, p.sources, p.vertices}, ScalarType::Long);
  if (out.numel() == 0) return out;
  const DeviceScope scope(weights);
  const PackedGraphs graphs(p, indptr, indices, weights, sources, scope.stream());
  const Tensor from = in_order(distances);
  const Blocks blocks(write_predecessors, p, graphs.packed.lanes, p.vertices * int64_t(sizeof(unsigned)), weights);
  launch("geodesic_predecessors", write_predecessors, dim3(blocks.count), blocks.threads, blocks.shared, scope.stream(),
         graphs.packed, graphs.given.sources, p, static_cast<const float*>(from.const_data_ptr()), edges,
         blocks.memory(), blocks.each, static_cast<int64_t*>(out.mutable_data_ptr()));
  return out;
}

Tensor geodesic_distances_backward(const Tensor& grad, const Tensor& indptr, const Tensor& indices,
                                   const Tensor& weights, const Tensor& sources, const Tensor& distances) {
  const Problem p = check(indptr, indices, weights, sources);
  check_result(distances, weights, p, "distances");
  check_result(grad, weights, p, "grad");
  PYOPS_CHECK(weights.scalar_type() == ScalarType::Float, "weights must be float32");
  const Tensor out = new_tensor(weights, {p.batch, p.edges}, ScalarType::Float);
  if (out.numel() == 0) return out;
  const DeviceScope scope(weights);
  const cudaStream_t stream = scope.stream();
  const int64_t edges = p.batch * p.edges, results = p.batch * p.sources * p.vertices;
  // One zero each: sums, marks of edges, the largest magnitude.
  const Tensor zeros = new_tensor(weights, {edges * 3 + 1}, ScalarType::Int);
  uint32_t* const words = static_cast<uint32_t*>(zeros.mutable_data_ptr());
  check_cuda(cudaMemsetAsync(words, 0, size_t(edges * 3 + 1) * sizeof(uint32_t), stream), "geodesic gradients");
  uint64_t* const sums = reinterpret_cast<uint64_t*>(words);
  uint32_t *const broken = words + 2 * edges, *const bound = words + 3 * edges;
  // An addend has 30 bits, and all of a graph may meet in one edge: as many bits as that takes beyond 62 are spared.
  int spare = 0;
  while ((int64_t(1) << (32 + spare)) < p.sources * p.vertices) ++spare;
  constexpr int threads = 256;
  if (results > 0) {
    const PackedGraphs graphs(p, indptr, indices, weights, sources, stream);
    const Tensor from = in_order(distances), upstream = in_order(grad);
    const float* const given = static_cast<const float*>(upstream.const_data_ptr());
    launch("geodesic gradients", largest, dim3(blocks_for(results, threads, 4096)), threads, 0, stream, given, results,
           bound);
    const int64_t bytes = p.vertices * int64_t(sizeof(uint64_t) + sizeof(unsigned) + sizeof(int));
    const Blocks blocks(add_gradients, p, graphs.packed.lanes, bytes, weights);
    launch("geodesic_distances_backward", add_gradients, dim3(blocks.count), blocks.threads, blocks.shared, stream,
           graphs.packed, graphs.given.sources, p, given, static_cast<const float*>(from.const_data_ptr()), bound,
           spare, blocks.memory(), blocks.each, sums, broken);
  }
  launch("geodesic gradients", write_gradients, dim3(blocks_for(edges, threads, 65536)), threads, 0, stream, sums,
         broken, bound, spare, edges, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace pyops::geodesic

PYOPS_CUDA_KERNELS(m) {
  m.impl("geodesic_predecessors", TORCH_BOX(&pyops::geodesic::geodesic_predecessors));
  m.impl("geodesic_distances_backward", TORCH_BOX(&pyops::geodesic::geodesic_distances_backward));
}
