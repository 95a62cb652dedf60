// CUDA on the CPU, for tests: stands for <cuda_runtime.h> when a .cu file is compiled as plain C++.
//
// What it shows: indexing, barriers, warp functions, atomics and shared memory, under a random order of threads.
// What it cannot show: races between two barriers that this order happens to hide, memory ordering between blocks,
// tensor cores, asynchronous copies, speed. g++ does not fuse a * b + c into one rounding as nvcc does.
// Three deliberate limits: dynamic shared memory comes from simt::dynamic_shared(), launches go through
// simt::launch, and alignment of __shared__ variables is written __align__(n).
#pragma once
#include <cstdint>
#include <type_traits>

#include "cuda_math.h"
#include "cuda_types.h"
#include "launch.h"
#include "machine.h"

namespace simt {

template <class T, class... Allowed>
constexpr bool is_one_of = (std::is_same_v<T, Allowed> || ...);

}  // namespace simt

// ---- Barriers -----------------------------------------------------------------------------------
inline void __syncthreads(simt::Site at = simt::Site::here()) { simt::block_barrier(false, at); }
inline int __syncthreads_count(int vote, simt::Site at = simt::Site::here()) {
  return int(simt::block_barrier(vote, at).yes);
}
inline int __syncthreads_or(int vote, simt::Site at = simt::Site::here()) {
  return simt::block_barrier(vote, at).yes != 0;
}
inline int __syncthreads_and(int vote, simt::Site at = simt::Site::here()) {
  const simt::Votes votes = simt::block_barrier(vote, at);
  return votes.yes == votes.threads;
}
inline void __threadfence() {}
inline void __threadfence_block() {}

// ---- Warp functions -----------------------------------------------------------------------------
inline void __syncwarp(unsigned mask = simt::kAllLanes, simt::Site at = simt::Site::here()) {
  simt::warp_collective(mask, 0, 0, [](simt::Thread*, unsigned) {}, at);
}

inline unsigned __activemask() { return simt::active_lanes(); }

namespace simt {

// A lane that takes no part has nothing to give: CUDA leaves the result undefined, here it is all ones (NaN, -1).
template <class T>
T shuffle(unsigned mask, T value, unsigned source, Site at) {
  const Finish finish = [](Thread* warp, unsigned lanes) {
    each_lane(lanes, [=](unsigned l) {
      warp[l].result = lanes >> warp[l].source & 1 ? warp[warp[l].source].value : ~uint64_t(0);
    });
  };
  return from_bits<T>(warp_collective(mask, bits<uint64_t>(value), source, finish, at));
}

template <class T, class Operation>
T reduce(unsigned mask, T value, Operation, Site at) {
  static_assert(is_one_of<T, int, unsigned>);
  const Finish finish = [](Thread* warp, unsigned lanes) {
    T total = from_bits<T>(warp[__builtin_ctz(lanes)].value);
    each_lane(lanes & (lanes - 1), [&](unsigned l) { total = Operation()(total, from_bits<T>(warp[l].value)); });
    each_lane(lanes, [&](unsigned l) { warp[l].result = bits<uint64_t>(total); });
  };
  return from_bits<T>(warp_collective(mask, bits<uint64_t>(value), 0, finish, at));
}

struct Add {
  template <class T>
  T operator()(T a, T b) const {
    if constexpr (std::is_floating_point_v<T>) return a + b;
    else  // wraps, also where C++ does not define it
      return T(std::make_unsigned_t<T>(a) + std::make_unsigned_t<T>(b));
  }
};
struct Min {
  template <class T>
  T operator()(T a, T b) const {
    return b < a ? b : a;
  }
};
struct Max {
  template <class T>
  T operator()(T a, T b) const {
    return a < b ? b : a;
  }
};
struct Or {
  template <class T>
  T operator()(T a, T b) const {
    return a | b;
  }
};
struct And {
  template <class T>
  T operator()(T a, T b) const {
    return a & b;
  }
};

}  // namespace simt

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, simt::Site at = simt::Site::here()) {
  const unsigned segment = simt::lane() & ~unsigned(width - 1);
  return simt::shuffle(mask, value, segment | (unsigned(source) & unsigned(width - 1)), at);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site at = simt::Site::here()) {
  const unsigned lane = simt::lane(), place = lane & unsigned(width - 1);
  return simt::shuffle(mask, value, place >= delta ? lane - delta : lane, at);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, simt::Site at = simt::Site::here()) {
  const unsigned lane = simt::lane(), place = lane & unsigned(width - 1);
  return simt::shuffle(mask, value, place + delta < unsigned(width) ? lane + delta : lane, at);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32, simt::Site at = simt::Site::here()) {
  const unsigned lane = simt::lane(), last = lane | unsigned(width - 1), source = lane ^ unsigned(lane_mask);
  // As in CUDA, lanes of earlier segments may be read, lanes of later ones not.
  return simt::shuffle(mask, value, source <= last ? source : lane, at);
}

inline unsigned __ballot_sync(unsigned mask, int vote, simt::Site at = simt::Site::here()) {
  const simt::Finish finish = [](simt::Thread* warp, unsigned lanes) {
    unsigned votes = 0;
    simt::each_lane(lanes, [&](unsigned l) { votes |= unsigned(warp[l].value) << l; });
    simt::each_lane(lanes, [&](unsigned l) { warp[l].result = votes; });
  };
  return unsigned(simt::warp_collective(mask, vote != 0, 0, finish, at));
}
inline int __any_sync(unsigned mask, int vote, simt::Site at = simt::Site::here()) {
  return __ballot_sync(mask, vote, at) != 0;
}
inline int __all_sync(unsigned mask, int vote, simt::Site at = simt::Site::here()) {
  return __ballot_sync(mask, !vote, at) == 0;
}

template <class T>
unsigned __match_any_sync(unsigned mask, T value, simt::Site at = simt::Site::here()) {
  const simt::Finish finish = [](simt::Thread* warp, unsigned lanes) {
    simt::each_lane(lanes, [=](unsigned l) {
      warp[l].result = 0;
      simt::each_lane(lanes, [=](unsigned o) { warp[l].result |= uint64_t(warp[o].value == warp[l].value) << o; });
    });
  };
  return unsigned(simt::warp_collective(mask, simt::bits<uint64_t>(value), 0, finish, at));
}

template <class T>
T __reduce_add_sync(unsigned mask, T value, simt::Site at = simt::Site::here()) {
  return simt::reduce(mask, value, simt::Add(), at);
}
template <class T>
T __reduce_min_sync(unsigned mask, T value, simt::Site at = simt::Site::here()) {
  return simt::reduce(mask, value, simt::Min(), at);
}
template <class T>
T __reduce_max_sync(unsigned mask, T value, simt::Site at = simt::Site::here()) {
  return simt::reduce(mask, value, simt::Max(), at);
}
inline unsigned __reduce_or_sync(unsigned mask, unsigned value, simt::Site at = simt::Site::here()) {
  return simt::reduce(mask, value, simt::Or(), at);
}

// ---- Atomics: for the types that CUDA has them for, and no others -------------------------------
namespace simt {

// Atomics are where threads race, so now and then another thread goes first.
template <class T, class Operation>
T atomic(T* address, Operation operation) {
  give_way_sometimes();
  const T old = *address;
  *address = operation(old);
  return old;
}

using ull = unsigned long long;

}  // namespace simt

template <class T>
T atomicAdd(T* address, simt::same<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, simt::ull, float, double>);
  return simt::atomic(address, [=](T old) { return simt::Add()(old, value); });
}
template <class T>
T atomicMin(T* address, simt::same<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, long long, simt::ull>);
  return simt::atomic(address, [=](T old) { return simt::Min()(old, value); });
}
template <class T>
T atomicMax(T* address, simt::same<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, long long, simt::ull>);
  return simt::atomic(address, [=](T old) { return simt::Max()(old, value); });
}
template <class T>
T atomicOr(T* address, simt::same<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, simt::ull>);
  return simt::atomic(address, [=](T old) { return old | value; });
}
template <class T>
T atomicAnd(T* address, simt::same<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, simt::ull>);
  return simt::atomic(address, [=](T old) { return old & value; });
}
template <class T>
T atomicExch(T* address, simt::same<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, simt::ull, float>);
  return simt::atomic(address, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* address, simt::same<T> expected, simt::same<T> value) {
  static_assert(simt::is_one_of<T, int, unsigned, simt::ull, unsigned short>);
  return simt::atomic(address, [=](T old) { return old == expected ? value : old; });
}
