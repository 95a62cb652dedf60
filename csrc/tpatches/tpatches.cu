// Chains of patches on CUDA: one launch walks all chains of both directions through all frames, a warp a chain.
//
// The chains of a block belong to one sequence and one direction, so they share every frame, which passes through shared
// memory. A warp looks at 32 points at a time and keeps the nearest in a list, sorted, a key a lane; what may enter waits
// in shared memory until there are 32 of them. Longer lists are made of parts of 32: for a later part only what follows
// the last one counts. In clouds that move little the k-th distance changes little from frame to frame, so a search
// begins with a bound somewhat above the last one, and where that was too small it starts again without.
#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "tpatches_args.h"

namespace pyops::tpatches {
namespace {

constexpr int kWarpThreads = 32, kWarps = 8, kThreads = kWarps * kWarpThreads;
constexpr int kTile = 2048;  // points in shared memory
constexpr unsigned kAll = 0xffffffffu;
constexpr float kAllowance = 1.4f;  // of the bound over the last distance: usually enough, with few more points within

using Key = knn::Key<float>;
constexpr Key kNone = ~Key(0);

template <class T>
struct Sequences {
  Rows<T> points, noise;
  Rows<int64_t> queries, lengths;
};

template <class T>
struct Output {
  int64_t* indices;
  T *distances, *centers;
};

struct Sizes {
  int64_t frames, points, queries, k, forward;
  int64_t ahead, blocks, items;  // blocks of chains from the first frame on, of a sequence, of all
  float limit;
};

struct Shared {
  float x[kTile], y[kTile], z[kTile];
  Key waiting[kWarps][2 * kWarpThreads];
};

__device__ __forceinline__ Key exchange(Key key, int distance, bool keep_less) {
  const Key other = __shfl_xor_sync(kAll, key, distance);
  return (other < key) == keep_less ? other : key;
}

// One key a lane: ascending.
__device__ __forceinline__ Key sorted(Key key, int lane) {
#pragma unroll
  for (int size = 2; size <= kWarpThreads; size *= 2)
#pragma unroll
    for (int distance = size / 2; distance > 0; distance /= 2)
      key = exchange(key, distance, ((lane & distance) == 0) == ((lane & size) == 0));
  return key;
}

// The first 32 of two ascending lists.
__device__ __forceinline__ Key merged(Key list, Key other, int lane) {
  const Key opposite = __shfl_sync(kAll, other, kWarpThreads - 1 - lane);
  list = opposite < list ? opposite : list;
#pragma unroll
  for (int distance = kWarpThreads / 2; distance > 0; distance /= 2)
    list = exchange(list, distance, (lane & distance) == 0);
  return list;
}

// The search of a warp for one part of the list.
struct Search {
  Key list;       // of this lane
  Key* waiting;   // of this warp
  int count;      // of those that wait
  int last;       // lane of the last key that is wanted
  float bound;    // what is not below has no place in the list
  float x, y, z;  // the query
  Key after;      // keys up to this one are in earlier parts
  bool later;     // whether there is an earlier part

  __device__ __forceinline__ void take_in(int lane, int n) {
    __syncwarp();
    list = merged(list, sorted(lane < n ? waiting[lane] : kNone, lane), lane);
    const Key worst = __shfl_sync(kAll, list, last);
    if (worst != kNone) bound = fminf(bound, knn::distance_of<float>(worst));
    __syncwarp();
  }

  // Points come in the order of their indices, so one as far as the last of the list has no place in it.
  __device__ __forceinline__ void scan(const Shared& tile, int64_t first, int n, int lane) {
    for (int i = lane; i < n; i += kWarpThreads) {  // n is a multiple of a warp
      const float distance = knn::square(x - tile.x[i]) + knn::square(y - tile.y[i]) + knn::square(z - tile.z[i]);
      const Key key = knn::key_of<float>(distance, uint32_t(first + i));
      const bool passes = distance < bound && (!later || key > after);
      const unsigned votes = __ballot_sync(kAll, passes);
      if (votes == 0) continue;
      if (passes) waiting[count + __popc(votes & ((1u << lane) - 1))] = key;
      count += __popc(votes);
      if (count < kWarpThreads) continue;
      take_in(lane, kWarpThreads);
      count -= kWarpThreads;
      const Key rest = lane < count ? waiting[kWarpThreads + lane] : kNone;
      __syncwarp();
      if (lane < count) waiting[lane] = rest;
    }
  }
};

template <class T>
__device__ __forceinline__ float coordinate(const Rows<T>& rows, int64_t b, int64_t t, int64_t i, int d) {
  return decode<T, float>(rows.at(b, t, i)[d * rows.column]);
}

// Points [first, first + n) of a frame that has `count`, n rounded up to a multiple of a warp; NaN is behind the last one.
template <class T>
__device__ __forceinline__ void stage(const Rows<T>& points, int64_t b, int64_t t, int64_t first, int n, int64_t count,
                                      Shared& tile) {
  const float none = __int_as_float(0x7fffffff);
  for (int i = int(threadIdx.x); i < n; i += kThreads) {
    const bool any = first + i < count;
    tile.x[i] = any ? coordinate(points, b, t, first + i, 0) : none;
    tile.y[i] = any ? coordinate(points, b, t, first + i, 1) : none;
    tile.z[i] = any ? coordinate(points, b, t, first + i, 2) : none;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 4) walk(const Sequences<T> in, const Sizes s, const Output<T> out) {
  __shared__ __align__(16) Shared shared;
  const int lane = int(threadIdx.x) % kWarpThreads, warp = int(threadIdx.x) / kWarpThreads;
  const float infinity = __int_as_float(0x7f800000), none = __int_as_float(0x7fffffff);
  for (int64_t item = blockIdx.x; item < s.items; item += gridDim.x) {
    const int64_t b = item / s.blocks, block = item % s.blocks;
    const bool back = block >= s.ahead;
    const int64_t chain = (back ? s.forward + (block - s.ahead) * kWarps : block * kWarps) + warp;
    const bool exists = chain < (back ? s.queries : s.forward);
    float q[3] = {none, none, none}, guess = infinity;
    for (int64_t step = 0; step < s.frames; ++step) {
      const int64_t t = back ? s.frames - 1 - step : step, count = count_of(in.lengths, b, t, s.points);
      const int64_t at = (b * s.frames + t) * s.queries + chain;
      if (step == 0 && exists) {
        const int64_t start = *in.queries.at(b, chain, 0);
        if (start >= 0 && start < count)
          for (int d = 0; d < 3; ++d) q[d] = coordinate(in.points, b, t, start, d);
      }
      Search search;
      search.waiting = shared.waiting[warp];
      search.x = q[0], search.y = q[1], search.z = q[2];
      search.after = 0, search.later = false;
      Key nearest = kNone;
      float limit = s.k <= kWarpThreads ? guess : infinity;
      int64_t written = 0;
      bool done = !exists, staged = false;
      do {  // of the whole block: once, or as often as one of its warps needs it
        search.list = kNone, search.count = 0, search.bound = limit;
        search.last = s.k - written < kWarpThreads ? int(s.k - written) - 1 : kWarpThreads - 1;
        for (int64_t first = 0; first < count; first += kTile) {
          const int64_t rest = count - first;
          const int n = rest < kTile ? int(ceil_div<int64_t>(rest, kWarpThreads)) * kWarpThreads : kTile;
          if (!staged) {
            __syncthreads();
            stage(in.points, b, t, first, n, count, shared);
            __syncthreads();
            staged = count <= kTile;
          }
          if (!done) search.scan(shared, first, n, lane);
        }
        if (!done) {
          if (search.count > 0) search.take_in(lane, search.count);
          const bool full = __shfl_sync(kAll, search.list, search.last) != kNone;
          if (!full && limit < infinity) {
            limit = infinity;
          } else {
            limit = infinity;
            if (written == 0) nearest = __shfl_sync(kAll, search.list, 0);
            const Key end = __shfl_sync(kAll, search.list, search.last);
            if (written == 0) guess = full ? knn::distance_of<float>(end) * kAllowance : infinity;
            if (lane <= search.last) {
              const int64_t to = at * s.k + written + lane;
              const bool any = search.list != kNone;
              const float distance = any ? knn::distance_of<float>(search.list) : infinity;
              const bool far = any && distance > s.limit && written + lane > 0;
              out.indices[to] = any ? int64_t(knn::index_of<float>(far ? nearest : search.list)) : -1;
              out.distances[to] = encode<T, float>(far ? 0.f : distance);
            }
            written += search.last + 1;
            if (!full)
              for (int64_t i = written + lane; i < s.k; i += kWarpThreads) {
                out.indices[at * s.k + i] = -1;
                out.distances[at * s.k + i] = encode<T, float>(infinity);
              }
            search.after = end, search.later = true;
            done = !full || written >= s.k;
          }
        }
      } while (__syncthreads_or(!done));
      if (!exists) continue;
      if (nearest != kNone)
        for (int d = 0; d < 3; ++d) q[d] = coordinate(in.points, b, t, knn::index_of<float>(nearest), d);
      for (int d = 0; d < 3; ++d) {
        if (lane == d) out.centers[at * 3 + d] = encode<T, float>(q[d]);
        if (in.noise.any()) q[d] += coordinate(in.noise, b, t, chain, d);
      }
    }
  }
}

std::tuple<Tensor, Tensor, Tensor> extract(const Tensor& points, const Tensor& queries, int64_t k, int64_t forward,
                                           const OptionalTensor& noise, const OptionalTensor& lengths, double radius) {
  const Problem p = check(points, queries, k, forward, noise, lengths, radius);
  const Results results(p, points);
  if (results.empty()) return results.tuple();
  Sizes s;
  s.frames = p.frames, s.points = p.points, s.queries = p.queries, s.k = p.k, s.forward = p.forward;
  s.ahead = ceil_div<int64_t>(p.forward, kWarps), s.blocks = s.ahead + ceil_div<int64_t>(p.backward(), kWarps);
  s.items = p.batch * s.blocks, s.limit = float(p.radius * p.radius);
  const DeviceScope scope(points);
  dispatch_float(points.scalar_type(), "points", [&](auto zero) {
    using T = decltype(zero);
    const Sequences<T> in{rows_of<T>(points), rows_of<T>(noise), rows_of<int64_t>(queries), rows_of<int64_t>(lengths)};
    const Output<T> out{static_cast<int64_t*>(results.indices.mutable_data_ptr()),
                        static_cast<T*>(results.distances.mutable_data_ptr()),
                        static_cast<T*>(results.centers.mutable_data_ptr())};
    launch("extract_tpatches", walk<T>, blocks_for(s.items, 1), kThreads, 0, scope.stream(), in, s, out);
  });
  return results.tuple();
}

}  // namespace
}  // namespace pyops::tpatches

PYOPS_CUDA_KERNELS(m) { m.impl("extract_tpatches", TORCH_BOX(&pyops::tpatches::extract)); }
