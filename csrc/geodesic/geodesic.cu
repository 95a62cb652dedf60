// Distances on CUDA: a block for each source, its distances in shared memory where they fit, in the result where not.
//
// Distances have no sign, so they compare like their bits, and an atomic minimum lowers them. A round relaxes the edges of
// all vertices that the round before it has lowered, or this one before it came to them; no host looks whether another
// one is needed. The distances are the only fixed point, so no order of threads shows in them.
#include "geodesic.cuh"

namespace pyops::geodesic {
namespace {

// `stamps` tell in which round a vertex was lowered, modulo 256: after so many more it is relaxed in vain, and no harm.
__global__ void __launch_bounds__(512) search(const Packed graphs, const int64_t* sources, const Problem p, float above,
                                              unsigned char* scratch, int64_t each, float* out) {
  PYOPS_DYNAMIC_SHARED(unsigned, shared);
  const bool own = scratch == nullptr;
  for (int64_t task = blockIdx.x; task < p.batch * p.sources; task += gridDim.x) {
    const Packed graph = graphs.of(task / p.sources, p);
    float* const result = out + task * p.vertices;
    volatile unsigned* const distances = own ? shared : reinterpret_cast<unsigned*>(result);
    volatile unsigned char* const stamps =
        own ? reinterpret_cast<unsigned char*>(shared + p.vertices) : scratch + blockIdx.x * each;
    const int64_t source = sources[task];
    for (int64_t v = threadIdx.x; v < p.vertices; v += blockDim.x) {
      distances[v] = v == source ? 0u : __float_as_uint(INFINITY);
      stamps[v] = v == source ? 0 : 255;
    }
    __syncthreads();
    bool lowered = true;
    for (unsigned round = 1; lowered; ++round) {
      const unsigned char last = (unsigned char)(round - 1), now = (unsigned char)(round);
      lowered = false;
      each_row(graph, p.vertices, [&](int64_t v, int lane) {
        const unsigned char stamp = stamps[v];
        if (stamp != last && stamp != now) return;
        const float before = __uint_as_float(distances[v]);
        each_edge(graph, v, lane, [&](int64_t, Edge edge) {
          const float found = before + edge.weight;
          const unsigned bits = __float_as_uint(found);
          if (!(found < above) || bits >= distances[edge.target]) return;
          if (bits < atomicMin(const_cast<unsigned*>(distances) + edge.target, bits))
            stamps[edge.target] = now, lowered = true;
        });
      });
      lowered = __syncthreads_or(lowered);
    }
    if (own)
      for (int64_t v = threadIdx.x; v < p.vertices; v += blockDim.x) result[v] = __uint_as_float(distances[v]);
    __syncthreads();
  }
}

Tensor geodesic_distances(const Tensor& indptr, const Tensor& indices, const Tensor& weights, const Tensor& sources,
                          double cutoff, std::string method) {
  const Problem p = check(indptr, indices, weights, sources);
  check_search(cutoff, method);
  PYOPS_CHECK(weights.scalar_type() == ScalarType::Float, "weights must be float32");
  const Tensor out = new_tensor(weights, {p.batch, p.sources, p.vertices}, ScalarType::Float);
  if (out.numel() == 0) return out;
  const DeviceScope scope(weights);
  const PackedGraphs graphs(p, indptr, indices, weights, sources, scope.stream());
  const float above = std::nextafter(float(cutoff), INFINITY);
  const Blocks blocks(search, p, graphs.packed.lanes, p.vertices * int64_t(sizeof(float) + 1), weights);
  launch("geodesic_distances", search, dim3(blocks.count), blocks.threads, blocks.shared, scope.stream(), graphs.packed,
         graphs.given.sources, p, above, blocks.memory(), blocks.each, static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace pyops::geodesic

PYOPS_CUDA_KERNELS(m) { m.impl("geodesic_distances", TORCH_BOX(&pyops::geodesic::geodesic_distances)); }
