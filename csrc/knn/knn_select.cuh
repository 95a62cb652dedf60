// The k smallest keys that a warp meets, sorted.
//
// What is below the bound so far goes into a buffer, so that a key costs a comparison and a vote; a full buffer is
// sorted and merged into the best by a bitonic network: in registers, a key a lane, up to k = 32, else in shared memory.
#pragma once

#include <algorithm>
#include <limits>

#include "../common/launch.cuh"
#include "../common/pixel.h"
#include "knn.h"

namespace pyops::knn {

template <class T>
struct Output {
  T* distances;
  int64_t* indices;

  __device__ __forceinline__ void put(int64_t at, float distance, int64_t index) const {
    distances[at] = encode<T, float>(distance);
    indices[at] = index;
  }
};

namespace {

using Word = unsigned long long;

constexpr int kWarp = 32;
constexpr unsigned kAll = 0xffffffffu;
constexpr Word kNothing = ~Word(0);

__device__ __forceinline__ int lane_of() { return int(threadIdx.x) % kWarp; }
__device__ __forceinline__ int before_lane(unsigned mask) { return __popc(mask & ((1u << lane_of()) - 1)); }

template <class K>
__device__ __forceinline__ K smaller(K a, K b) {
  return a < b ? a : b;
}
template <class K>
__device__ __forceinline__ K greater(K a, K b) {
  return a < b ? b : a;
}

// One step of a network: lanes `stride` apart keep the smaller key in the lower lane, or the other way round.
template <class K>
__device__ __forceinline__ K exchange(K key, int stride, bool ascending) {
  const K other = __shfl_xor_sync(kAll, key, stride);
  const bool lower = (lane_of() & stride) == 0;
  return lower == ascending ? smaller(key, other) : greater(key, other);
}

__device__ __forceinline__ Word sort_warp(Word key) {
#pragma unroll
  for (int size = 2; size <= kWarp; size *= 2)
#pragma unroll
    for (int stride = size / 2; stride > 0; stride /= 2) key = exchange(key, stride, (lane_of() & size) == 0);
  return key;
}

// Sorts `count` keys of shared memory, a power of two, by the steps of a network from `size` on.
__device__ __forceinline__ void sort_shared(Word* keys, int count, int size, bool ascending) {
  for (; size <= count; size *= 2)
    for (int stride = size / 2; stride > 0; stride /= 2) {
      for (int i = lane_of(); i < count / 2; i += kWarp) {
        const int low = 2 * i - (i & (stride - 1)), high = low + stride;
        const bool up = ((low & size) == 0) == ascending;
        const Word a = keys[low], b = keys[high];
        keys[low] = up ? smaller(a, b) : greater(a, b);
        keys[high] = up ? greater(a, b) : smaller(a, b);
      }
      __syncwarp();
    }
}

// `room` is 32 for kRegisters, else a power of two from k on; a warp has 2 * room words of shared memory.
template <bool kRegisters>
struct Selection {
  Word* memory;
  int room, k, count = 0;
  Word best = kNothing, bound;

  __device__ Selection(Word* memory, int room, int k, float limit) : memory(memory), room(room), k(k) {
    bound = (Word(__float_as_uint(limit)) << 32 | 0xffffffffu) + 1;
    if (!kRegisters)
      for (int i = lane_of(); i < room; i += kWarp) memory[i] = kNothing;
    __syncwarp();
  }

  // By all lanes of the warp.
  __device__ __forceinline__ void offer(Word key) {
    const unsigned mask = __ballot_sync(kAll, key < bound);
    if (mask == 0) return;
    Word* const buffer = memory + (kRegisters ? 0 : room);
    if (key < bound) buffer[count + before_lane(mask)] = key;
    count += __popc(mask);
    __syncwarp();
    if (kRegisters && count >= kWarp) {
      const int lane = lane_of();
      const Word first = buffer[lane], second = buffer[kWarp + lane];
      __syncwarp();
      buffer[lane] = second;
      __syncwarp();
      count -= kWarp;
      merge_registers(first);
    } else if (!kRegisters && count > room - kWarp) {
      merge_shared();
    }
  }

  __device__ __forceinline__ void finish() {
    if (count == 0) return;
    if (kRegisters) merge_registers(lane_of() < count ? memory[lane_of()] : kNothing);
    else merge_shared();
    count = 0;
  }

  __device__ __forceinline__ void offer(float distance, uint32_t point, float limit) {
    offer(distance <= limit ? Word(__float_as_uint(distance)) << 32 | Word(point) : kNothing);
  }

  // After finish(): key i of the k.
  __device__ __forceinline__ Word key(int i) const { return kRegisters ? best : memory[i]; }

 private:
  __device__ __forceinline__ void lower(Word last) { bound = smaller(bound, last); }

  __device__ __forceinline__ void merge_registers(Word key) {
    key = __shfl_sync(kAll, sort_warp(key), kWarp - 1 - lane_of());
    best = smaller(best, key);
#pragma unroll
    for (int stride = kWarp / 2; stride > 0; stride /= 2) best = exchange(best, stride, true);
    lower(__shfl_sync(kAll, best, k - 1));
  }

  __device__ __forceinline__ void merge_shared() {
    Word* const buffer = memory + room;
    for (int i = count + lane_of(); i < room; i += kWarp) buffer[i] = kNothing;
    __syncwarp();
    sort_shared(buffer, room, 2, false);
    for (int i = lane_of(); i < room; i += kWarp) memory[i] = smaller(memory[i], buffer[i]);
    __syncwarp();
    sort_shared(memory, room, room, true);
    lower(memory[k - 1]);
    count = 0;
    __syncwarp();
  }
};

// The k of a warp, finished, from `at` on.
template <bool kRegisters, class T>
__device__ __forceinline__ void put_best(const Output<T>& out, int64_t at, const Selection<kRegisters>& best) {
  for (int i = lane_of(); i < best.k; i += kWarp) {
    const Word key = best.key(i);
    const bool found = key != kNothing;
    out.put(at + i, __uint_as_float(found ? uint32_t(key >> 32) : 0x7f800000u), found ? int64_t(uint32_t(key)) : -1);
  }
}

// Words of memory for a warp that selects k.
inline int room_for(int64_t k) {
  int room = kWarp;
  while (room < k) room *= 2;
  return k > kWarp ? std::max(room, 2 * kWarp) : room;
}

// Of a block whose warps select k each.
inline int warps_for(int64_t k) { return k <= 128 ? 8 : (k <= 512 ? 4 : 2); }

// The greatest distance of a neighbour.
inline float finite_limit(double limit) { return float(std::min(limit, double(std::numeric_limits<float>::max()))); }

}  // namespace
}  // namespace pyops::knn
