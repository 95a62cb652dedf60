// What the CUDA kernels share: packed graphs, a block for a source, trees of shortest paths.
#pragma once

#include "../common/launch.cuh"
#include "geodesic_args.h"

namespace pyops::geodesic {
namespace {

// Weights of edges that are none are infinite: they lower nothing and attain no finite distance.
struct Edge {
  int32_t target;
  float weight;
};
struct Span {
  int32_t begin, end;
};

struct Packed {
  const Span* spans;   // [B, N]
  const Edge* edges;   // [B, E]
  const int32_t* row;  // [B, E]: where each edge begins
  int lanes;           // threads of a row, a power of two up to 32

  // Those of one graph.
  __device__ __forceinline__ Packed of(int64_t b, const Problem& p) const {
    return {spans + b * p.vertices, edges + b * p.edges, row + b * p.edges, lanes};
  }
};

__global__ void pack_rows(const int64_t* indptr, const int64_t* indices, const float* weights, const Problem p,
                          int lanes, Span* spans, Edge* edges, int32_t* row) {
  const int64_t lane = global_thread() % lanes;
  for (int64_t i = global_thread() / lanes; i < p.batch * p.vertices; i += grid_threads() / lanes) {
    const int64_t b = i / p.vertices, v = i % p.vertices;
    const Row span = row_of(indptr + b * (p.vertices + 1), v, p.edges);
    if (lane == 0) spans[i] = {int32_t(span.begin), int32_t(span.end)};
    for (int64_t e = b * p.edges + span.begin + lane; e < b * p.edges + span.end; e += lanes) {
      const bool some = is_edge(indices[e], weights[e], p.vertices);
      edges[e] = {some ? int32_t(indices[e]) : 0, some ? weights[e] : INFINITY};
      row[e] = int32_t(v);
    }
  }
}

// Graphs in the form in which the kernels read them, and the memory for it.
struct PackedGraphs {
  Graphs<float> given;
  Tensor spans, edges, row;
  Packed packed;

  PackedGraphs(const Problem& p, const Tensor& indptr, const Tensor& indices, const Tensor& weights,
               const Tensor& sources, cudaStream_t stream)
      : given(indptr, indices, weights, sources),
        spans(new_tensor(weights, {p.batch, p.vertices, 2}, ScalarType::Int)),
        edges(new_tensor(weights, {p.batch, p.edges, 2}, ScalarType::Int)),
        row(new_tensor(weights, {p.batch, p.edges}, ScalarType::Int)) {
    int lanes = 1;
    while (lanes < 32 && lanes * 4 * p.vertices <= p.edges) lanes *= 2;
    Span* const to_spans = static_cast<Span*>(spans.mutable_data_ptr());
    Edge* const to_edges = static_cast<Edge*>(edges.mutable_data_ptr());
    int32_t* const to_row = static_cast<int32_t*>(row.mutable_data_ptr());
    packed = {to_spans, to_edges, to_row, lanes};
    constexpr int threads = 256;
    launch("geodesic graph", pack_rows, dim3(blocks_for(p.batch * p.vertices * lanes, threads, 65536)), threads, 0,
           stream, given.indptr, given.indices, given.weights, p, lanes, to_spans, to_edges, to_row);
  }
};

// A block for each source that the device holds at a time, which go on to the next; memory of a block is shared if it
// fits, else global.
struct Blocks {
  int threads;
  unsigned count;
  int64_t shared, each;  // bytes of shared memory, and of global memory for each block
  std::optional<Tensor> scratch;

  static bool fits(int64_t bytes) { return bytes <= shared_memory_limit() - 1024; }

  template <class Kernel>
  Blocks(Kernel kernel, const Problem& p, int lanes, int64_t bytes, const Tensor& like, int most = 512) {
    constexpr int warp = 32;
    const int64_t wanted = ceil_div<int64_t>(p.vertices * lanes, warp) * warp;
    threads = int(wanted < most ? wanted : most);
    bytes = ceil_div<int64_t>(bytes, 16) * 16;
    const bool shares = fits(bytes);
    shared = shares ? bytes : 0, each = shares ? 0 : bytes;
    const int64_t resident = resident_blocks(kernel, threads, shared), tasks = p.batch * p.sources;
    count = unsigned(tasks < resident ? tasks : resident);
    if (!shares) scratch = new_tensor(like, {int64_t(count) * each}, ScalarType::Byte);
  }

  unsigned char* memory() const { return scratch ? static_cast<unsigned char*>(scratch->mutable_data_ptr()) : nullptr; }
};

// Runs f(e, edge) for the edges of vertex v, in the threads of its row.
template <class F>
__device__ __forceinline__ void each_edge(const Packed& graph, int64_t v, int lane, const F& f) {
  const Span span = graph.spans[v];
  for (int64_t e = int64_t(span.begin) + lane; e < span.end; e += graph.lanes) f(e, graph.edges[e]);
}

// Runs f(v, lane) for all vertices; a row of threads serves one after the other.
template <class F>
__device__ __forceinline__ void each_row(const Packed& graph, int64_t vertices, const F& f) {
  const int lane = int(threadIdx.x) % graph.lanes, rows = int(blockDim.x) / graph.lanes;
  for (int64_t v = int(threadIdx.x) / graph.lanes; v < vertices; v += rows) f(v, lane);
}

constexpr unsigned kNone = 0xffffffffu, kProvisional = 0x80000000u;

// The edge that leads to each vertex in the tree of one source, kNone where none does. Ends with a barrier.
__device__ __forceinline__ void find_tree(const Packed& graph, int64_t vertices, const float* distances, int64_t source,
                                          unsigned* edges) {
  for (int64_t v = threadIdx.x; v < vertices; v += blockDim.x) edges[v] = kNone;
  __syncthreads();
  each_row(graph, vertices, [&](int64_t u, int lane) {
    const float before = distances[u];
    if (!(before < INFINITY)) return;
    each_edge(graph, u, lane, [&](int64_t e, Edge edge) {
      const float after = distances[edge.target];
      if (before < after && is_tight(before, edge.weight, after) && edge.target != source)
        atomicMin(&edges[edge.target], unsigned(e));
    });
  });
  __syncthreads();
  // Vertices that only others at the same distance lead to, round by round: what a round finds counts from the next on.
  for (bool found = true; found;) {
    bool open = false;
    for (int64_t v = threadIdx.x; v < vertices; v += blockDim.x)
      open = open || (edges[v] == kNone && v != source && distances[v] < INFINITY);
    if (!__syncthreads_or(open)) return;
    each_row(graph, vertices, [&](int64_t u, int lane) {
      const float before = distances[u];
      if (!(before < INFINITY) || (edges[u] >= kProvisional && u != source)) return;
      each_edge(graph, u, lane, [&](int64_t e, Edge edge) {
        unsigned* const to = &edges[edge.target];
        if (*to >= kProvisional && edge.target != source && is_tight(before, edge.weight, distances[edge.target]))
          atomicMin(to, unsigned(e) | kProvisional);
      });
    });
    __syncthreads();
    found = false;
    for (int64_t v = threadIdx.x; v < vertices; v += blockDim.x)
      if (edges[v] >= kProvisional && edges[v] != kNone) edges[v] &= ~kProvisional, found = true;
    found = __syncthreads_or(found);
  }
}

}  // namespace
}  // namespace pyops::geodesic
