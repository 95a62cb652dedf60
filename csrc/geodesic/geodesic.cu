// Distances on CUDA: a block for each source, its distances in shared memory where they fit, in the result where not.
//
// Distances have no sign, so they compare like their bits, and an atomic minimum lowers them. Vertices that have been
// lowered wait as bits of one of two maps: near ones, up to a limit, are relaxed round after round until none is left;
// then the limit rises a step beyond the nearest of the far ones (delta-stepping). So a vertex is relaxed little more than
// once, where rounds over everything that changed relax it some sixteen times on a swiss roll of 10,000 points. No host
// looks whether another round is needed. The distances are the only fixed point: no order of threads shows in them, and
// the step, which is a guess, neither.
#include "geodesic.cuh"

namespace pyops::geodesic {
namespace {

constexpr int kThreads = 256, kQueue = 512;  // vertices of a round; others wait for the next one
constexpr int kWord = 32, kSamples = 4;      // edges that a thread of a warp looks at to guess the step
constexpr float kStep = 6.f;  // mean lengths of an edge: counted on rolls and clouds, from 4 to 8 are alike
constexpr unsigned kAll = 0xffffffffu;

// The step, by the mean length of some edges. Every warp finds the same.
__device__ __forceinline__ float step_of(const Packed& graph, int64_t edges) {
  float sum = 0, count = 0;
  for (int64_t i = threadIdx.x % kWord; i < kSamples * kWord; i += kWord) {
    const float weight = edges > 0 ? graph.edges[i * edges / (kSamples * kWord)].weight : INFINITY;
    if (weight > 0 && weight < INFINITY) sum += weight, count += 1;
  }
#pragma unroll
  for (int lanes = kWord / 2; lanes > 0; lanes /= 2) {
    sum += __shfl_xor_sync(kAll, sum, lanes), count += __shfl_xor_sync(kAll, count, lanes);
  }
  return count > 0 ? kStep * sum / count : 0.f;
}

// f(v) for the bits of word w.
template <class F>
__device__ __forceinline__ void each_bit(unsigned bits, int64_t w, const F& f) {
  for (; bits; bits &= bits - 1) f(w * kWord + __ffs(int(bits)) - 1);
}

// `memory` of a block: queue, near and far, distances if `own`.
__global__ void __launch_bounds__(kThreads)
    search(const Packed graphs, const int64_t* sources, const Problem p, float above, bool own, unsigned char* scratch,
           int64_t each, float* out) {
  PYOPS_DYNAMIC_SHARED(unsigned, shared);
  __shared__ unsigned counts[2], fulls[2], nearests[2];  // in turn: one is made ready while the other is in use
  const int64_t words = ceil_div<int64_t>(p.vertices, kWord);
  unsigned* const queue = scratch ? reinterpret_cast<unsigned*>(scratch + blockIdx.x * each) : shared;
  volatile unsigned *const near = queue + kQueue, *const far = near + words;
  for (int64_t task = blockIdx.x; task < p.batch * p.sources; task += gridDim.x) {
    const Packed graph = graphs.of(task / p.sources, p);
    float* const result = out + task * p.vertices;
    volatile unsigned* const distances = own ? far + words : reinterpret_cast<volatile unsigned*>(result);
    const int64_t source = sources[task];
    const bool exists = uint64_t(source) < uint64_t(p.vertices);
    for (int64_t v = threadIdx.x; v < p.vertices; v += blockDim.x)
      distances[v] = v == source ? 0u : __float_as_uint(INFINITY);
    for (int64_t w = threadIdx.x; w < words; w += blockDim.x)
      near[w] = exists && w == source / kWord ? 1u << source % kWord : 0u, far[w] = 0u;
    if (threadIdx.x == 0) counts[0] = 0, fulls[0] = kQueue, nearests[0] = kAll;
    const float step = step_of(graph, p.edges);
    float limit = step;
    __syncthreads();
    for (unsigned round = 0, rise = 0;; ++round) {
      unsigned &count = counts[round % 2], &full = fulls[round % 2];
      for (int64_t w = threadIdx.x; w < words; w += blockDim.x) {
        const unsigned bits = near[w];
        if (bits == 0) continue;
        unsigned at = atomicAdd(&count, unsigned(__popc(bits)));
        if (at + __popc(bits) > kQueue) {  // so does whatever comes later
          atomicMin(&full, at);
          continue;
        }
        near[w] = 0;
        each_bit(bits, w, [&](int64_t v) { queue[at++] = unsigned(v); });
      }
      __syncthreads();
      const int waiting = int(count < full ? count : full);
      if (threadIdx.x == 0) counts[(round + 1) % 2] = 0, fulls[(round + 1) % 2] = kQueue;
      if (waiting > 0) {
        each_row(graph, waiting, [&](int64_t i, int lane) {
          const int64_t v = queue[i];
          const float before = __uint_as_float(distances[v]);
          each_edge(graph, v, lane, [&](int64_t, Edge edge) {
            const float found = before + edge.weight;
            const unsigned bits = __float_as_uint(found);
            if (!(found < above) || bits >= distances[edge.target]) return;
            if (bits < atomicMin(const_cast<unsigned*>(distances) + edge.target, bits))
              atomicOr(const_cast<unsigned*>(found <= limit ? near : far) + edge.target / kWord,
                       1u << edge.target % kWord);
          });
        });
        __syncthreads();
        continue;
      }
      unsigned nearest = kAll;
      for (int64_t w = threadIdx.x; w < words; w += blockDim.x) {
        const unsigned bits = far[w];
        unsigned waits = 0;  // others came nearer since, and have been relaxed
        each_bit(bits, w, [&](int64_t v) {
          const unsigned distance = distances[v];
          if (!(__uint_as_float(distance) > limit)) return;
          waits |= 1u << v % kWord, nearest = distance < nearest ? distance : nearest;
        });
        if (bits != waits) far[w] = waits;
      }
      nearest = __reduce_min_sync(kAll, nearest);
      if (threadIdx.x % kWord == 0) atomicMin(&nearests[rise % 2], nearest);
      __syncthreads();
      nearest = nearests[rise % 2];
      if (threadIdx.x == 0) nearests[(rise + 1) % 2] = kAll;
      if (nearest == kAll) break;
      limit = __uint_as_float(nearest) + step, ++rise;
      for (int64_t w = threadIdx.x; w < words; w += blockDim.x) {
        unsigned moved = 0;
        each_bit(far[w], w, [&](int64_t v) {
          if (__uint_as_float(distances[v]) <= limit) moved |= 1u << v % kWord;
        });
        if (moved) near[w] = moved, far[w] = far[w] & ~moved;
      }
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
  const int64_t bytes = int64_t(sizeof(unsigned)) * (kQueue + 2 * ceil_div<int64_t>(p.vertices, kWord));
  const int64_t whole = bytes + int64_t(sizeof(float)) * p.vertices;
  const bool own = Blocks::fits(whole);
  const Blocks blocks(search, p, graphs.packed.lanes, own ? whole : bytes, weights, kThreads);
  launch("geodesic_distances", search, dim3(blocks.count), blocks.threads, blocks.shared, scope.stream(), graphs.packed,
         graphs.given.sources, p, above, own, blocks.memory(), blocks.each,
         static_cast<float*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace
}  // namespace pyops::geodesic

PYOPS_CUDA_KERNELS(m) { m.impl("geodesic_distances", TORCH_BOX(&pyops::geodesic::geodesic_distances)); }
