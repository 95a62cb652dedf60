// Where samples lie, on the device. Coordinates are read as they are. Logits become vertices by a softmax and a scan that
// every block does for itself, in an order that follows from their number alone: all kernels see the same bits.
#pragma once

#include <cmath>
#include <limits>

#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "sampling_args.h"

namespace pyops::sampling {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kAllLanes = 0xffffffffu;
// With more logits than this on an axis a launch of its own makes the vertices: here each thread walks 32 logits three
// times, under two microseconds and hidden behind other blocks' loads; more would show.
constexpr int kMostLogitsScanned = 4096;
constexpr int64_t kMostRows = 65535;  // limit of gridDim.y

// ---- element types ---------------------------------------------------------------------------------------------------

// Calls f with a zero of the element type of an image. The type is a run-time value, the same for all threads, so only
// the loops that touch pixels are compiled once for each type.
template <class A, class F>
__device__ __forceinline__ void with_pixel(ScalarType type, const F& f) {
  switch (type) {
    case ScalarType::Byte: return f(uint8_t(0));
    case ScalarType::UInt16: return f(uint16_t(0));
    case ScalarType::Half: return f(Half());
    case ScalarType::BFloat16: return f(BFloat16());
    case ScalarType::Double:
      if constexpr (std::is_same_v<A, double>) return f(double(0));
      return;
    default: return f(float(0));
  }
}

// An image, a result or a gradient [B, C, H, W] of any strides.
struct Picture {
  Pixels<void> at;
  ScalarType type;
};

inline Picture picture_of(const Tensor& t) { return {pixels_of<void>(t), t.scalar_type()}; }

inline bool is_interleaved(const Picture& p) { return p.at.channel == 1 && p.at.column != 1; }

// For what is read or written once a block or a sample.
template <class A>
__device__ __forceinline__ A load_float(const void* data, ScalarType type, int64_t i) {
  switch (type) {
    case ScalarType::Half: return A(static_cast<const Half*>(data)[i]);
    case ScalarType::BFloat16: return A(static_cast<const BFloat16*>(data)[i]);
    case ScalarType::Double: return sizeof(A) == 8 ? A(static_cast<const double*>(data)[i]) : A(0);
    default: return A(static_cast<const float*>(data)[i]);
  }
}

template <class A>
__device__ __forceinline__ A load_float(const Picture& p, int64_t i) {
  return load_float<A>(p.at.data, p.type, i);
}

template <class A>
__device__ __forceinline__ void store_pixel(void* data, ScalarType type, int64_t i, A value) {
  with_pixel<A>(type, [&](auto zero) {
    using T = decltype(zero);
    if constexpr (std::is_same_v<T, double>) static_cast<T*>(data)[i] = value;
    else static_cast<T*>(data)[i] = encode<T, float>(float(value));
  });
}

template <class A>
__device__ __forceinline__ void store_pixel(const Picture& p, int64_t i, A value) {
  store_pixel(p.at.data, p.type, i, value);
}

// ---- sums over a block, always in the same order ---------------------------------------------------------------------

// Replaces v[i] of every thread by their combination. `shared` holds n * kCount / 32 values.
template <int kCount, class A, int n, class Operation>
__device__ __forceinline__ void block_reduce(A (&v)[n], A* shared, const Operation& combine) {
  constexpr int kWarps = kCount / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2)
    for (int i = 0; i < n; ++i) v[i] = combine(v[i], __shfl_xor_sync(kAllLanes, v[i], offset));
  __syncthreads();
  for (int i = 0; lane == 0 && i < n; ++i) shared[i * kWarps + warp] = v[i];
  __syncthreads();
  for (int i = 0; i < n; ++i) {
    v[i] = shared[i * kWarps];
    for (int w = 1; w < kWarps; ++w) v[i] = combine(v[i], shared[i * kWarps + w]);
  }
}

// Replaces v[i] of every thread by the sum over the threads before it, and total[i] by the sum over all.
template <int kCount, class A, int n>
__device__ __forceinline__ void block_scan(A (&v)[n], A (&total)[n], A* shared) {
  constexpr int kWarps = kCount / 32;
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2)
    for (int i = 0; i < n; ++i) {
      const A below = __shfl_up_sync(kAllLanes, v[i], offset);
      if (lane >= offset) v[i] += below;
    }
  __syncthreads();
  for (int i = 0; lane == 31 && i < n; ++i) shared[i * kWarps + warp] = v[i];
  __syncthreads();
  for (int i = 0; i < n; ++i) {
    const A below = __shfl_up_sync(kAllLanes, v[i], 1);
    v[i] = lane == 0 ? A(0) : below;
    A before = 0;
    for (int w = 0; w < kWarps; ++w) {
      if (w == warp) v[i] += before;
      before += shared[i * kWarps + w];
    }
    total[i] = before;
  }
}

struct Largest {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a < b ? b : a;
  }
};

struct Sum {
  template <class A>
  __device__ A operator()(A a, A b) const {
    return a + b;
  }
};

// ---- positions -------------------------------------------------------------------------------------------------------

enum Kind : int { kCoordinates, kVertices, kLogits };

// What the positions of `count` samples along an axis come from.
struct Source {
  const void* data;
  ScalarType type;
  Kind kind;
  int64_t batch, step;  // strides in elements
  int count;
  Axis axis;

  template <class A>
  __device__ __forceinline__ A value(int64_t b, int64_t i) const {
    return load_float<A>(data, type, b * batch + i * step);
  }
  // Of a coordinate or a vertex.
  template <class A>
  __device__ __forceinline__ A position(A v) const {
    return position_of(kind == kCoordinates ? v : coordinate_of_vertex(v), axis);
  }
};

struct Axes {
  Source x, y;
};

// The samples from `begin` to before `end` of an axis, whose positions lie in shared memory.
template <class A>
struct Window {
  A* positions;
  int begin, end;

  __device__ __forceinline__ A position(int k) const { return positions[k - begin]; }
  // Needs its neighbours too.
  __device__ __forceinline__ Cell<A> cell(int k, const Source& source) const {
    const A* from = positions - begin;
    return cell_between(cell_bound(from, source.count, k), cell_bound(from, source.count, k + 1), source.axis);
  }
};

// The logits that a thread walks: a run of neighbours.
struct Run {
  int begin, end;

  __device__ Run(const Source& source, int threads, int number) {
    const int logits = source.kind == kLogits ? source.count - 1 : 0, each = ceil_div(logits, threads);
    const int64_t first = int64_t(number) * each;
    begin = int(first < logits ? first : logits);
    end = logits - begin < each ? logits : begin + each;
  }
};

// exp(logit - the greatest), summed over the logits before a thread's run and over all. NaN where one is not finite.
template <class A>
struct Softmax {
  A largest, before, total;

  __device__ __forceinline__ A part(A logit) const { return std::exp(logit - largest) + (logit - logit); }
  __device__ __forceinline__ A vertex(A sum, int k, int count) const {
    return vertex_of(sum, total, k, count) + (total - total);
  }
};

template <class A, int n>
__device__ __forceinline__ void scan_logits(const Source (&source)[n], int64_t b, Softmax<A> (&softmax)[n], A* shared) {
  A largest[n], sum[n], total[n];
  for (int i = 0; i < n; ++i) {  // the first loads of all axes are on their way together
    const Run run(source[i], kThreads, threadIdx.x);
    largest[i] = run.begin < run.end ? source[i].template value<A>(b, run.begin) : -std::numeric_limits<A>::infinity();
  }
  for (int i = 0; i < n; ++i) {
    const Run run(source[i], kThreads, threadIdx.x);
#pragma unroll 1
    for (int k = run.begin + 1; k < run.end; ++k) largest[i] = Largest()(largest[i], source[i].template value<A>(b, k));
  }
  block_reduce<kThreads>(largest, shared, Largest());
  for (int i = 0; i < n; ++i) {
    softmax[i].largest = largest[i];
    sum[i] = 0;
    const Run run(source[i], kThreads, threadIdx.x);
#pragma unroll 1
    for (int k = run.begin; k < run.end; ++k) sum[i] += softmax[i].part(source[i].template value<A>(b, k));
  }
  block_scan<kThreads>(sum, total, shared);
  for (int i = 0; i < n; ++i) softmax[i].before = sum[i], softmax[i].total = total[i];
}

// Calls put(k, vertex) for the vertices from `begin` to before `end`, each from one thread.
template <class A, class Put>
__device__ __forceinline__ void walk_vertices(const Source& source, int64_t b, const Softmax<A>& softmax, int begin,
                                              int end, const Put& put) {
  const Run run(source, kThreads, threadIdx.x);
  A sum = softmax.before;
  if (run.end > begin)
#pragma unroll 1
    for (int k = run.begin; k < run.end && k < end; ++k) {
      if (k >= begin) put(k, softmax.vertex(sum, k, source.count));
      sum += softmax.part(source.template value<A>(b, k));
    }
  const int last = source.count - 1;
  if (threadIdx.x == 0 && begin <= last && last < end) put(last, softmax.vertex(softmax.total, last, source.count));
}

// Fills the windows. All threads of the block come here; a barrier must follow.
template <class A>
__device__ __forceinline__ void stage_positions(const Axes& axes, int64_t b, const Window<A>& x, const Window<A>& y) {
  __shared__ A shared[2 * kThreads / 32];
  const Source source[2] = {axes.x, axes.y};
  const Window<A> window[2] = {x, y};
  Softmax<A> softmax[2];
  if (axes.x.kind == kLogits || axes.y.kind == kLogits) scan_logits(source, b, softmax, shared);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const Source& s = source[i];
    const Window<A>& w = window[i];
    if (s.kind == kLogits)
      walk_vertices(s, b, softmax[i], w.begin, w.end,
                    [&](int k, A vertex) { w.positions[k - w.begin] = s.position(vertex); });
    else
      for (int k = w.begin + int(threadIdx.x); k < w.end; k += kThreads)
        w.positions[k - w.begin] = s.position(s.template value<A>(b, k));
  }
}

// ---- vertices as a result, or for kernels that do not scan ------------------------------------------------------------

struct Vertices {
  Source logits;
  void* data;  // [batch, count]
};

template <class A>
__global__ void __launch_bounds__(kThreads)
    write_vertices(const Vertices first, const Vertices second, ScalarType type, int64_t batch) {
  __shared__ A shared[kThreads / 32];
  const Vertices to = blockIdx.y == 0 ? first : second;
  const Source source[1] = {to.logits};
  for (int64_t b = blockIdx.x; b < batch; b += gridDim.x) {
    Softmax<A> softmax[1];
    scan_logits(source, b, softmax, shared);
    walk_vertices(source[0], b, softmax[0], 0, source[0].count,
                  [&](int k, A vertex) { store_pixel(to.data, type, b * source[0].count + k, vertex); });
  }
}

// ---- host side -------------------------------------------------------------------------------------------------------

inline Source source_of(const Tensor& t, int count, const Axis& axis, Kind kind) {
  return {t.const_data_ptr(), t.scalar_type(), kind, t.stride(0), t.stride(1), count, axis};
}

// The axes of a call, with memory for vertices where the kernels shall not, or cannot, scan the logits.
template <class A>
class DeviceAxes {
 public:
  DeviceAxes(const Problem& p, const Tensor& x, const Tensor& y, Kind kind, bool kernels_scan, cudaStream_t stream)
      : axes{source_of(x, p.columns, p.x, kind), source_of(y, p.rows, p.y, kind)} {
    const int logits = (p.columns > p.rows ? p.columns : p.rows) - 1;
    if (kind != kLogits || (kernels_scan && logits <= kMostLogitsScanned)) return;
    memory_ = new_tensor(x, {p.batch * (int64_t(p.columns) + p.rows)}, p.arithmetic());
    A* const vertices = memory_.template mutable_data_ptr<A>();
    A* const second = vertices + p.batch * p.columns;
    launch("interval_vertices", write_vertices<A>, dim3(blocks_for(p.batch, 1), 2), kThreads, 0, stream,
           Vertices{axes.x, vertices}, Vertices{axes.y, second}, p.arithmetic(), p.batch);
    axes.x = {vertices, p.arithmetic(), kVertices, p.columns, 1, p.columns, p.x};
    axes.y = {second, p.arithmetic(), kVertices, p.rows, 1, p.rows, p.y};
  }

  Axes axes;

 private:
  Tensor memory_;
};

// Calls f with a zero of the type of arithmetic.
template <class F>
void with_arithmetic(const Problem& p, const F& f) {
  p.as_double ? f(double(0)) : f(float(0));
}

}  // namespace
}  // namespace pyops::sampling
