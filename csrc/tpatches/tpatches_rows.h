// A search with a bound known beforehand: one look at the points of a frame instead of two.
//
// Clouds of a sequence move little from frame to frame, and so does the distance of the k-th neighbour. A bound somewhat
// above the last one usually holds little more than k points; where it does not, the caller searches without.
#pragma once

#include "../knn/knn_rows.h"

namespace pyops::tpatches::rows {

using knn::Key;
using knn::rows::kStep;
using knn::rows::kVectors;
using knn::rows::Mask;
using simd::kLanes;
using simd::Vector;

constexpr int64_t kMostWithin = 96;  // else the bound is too loose to be of use

// Sorts keys of up to kRegisters vectors of distances, unless two distances are equal.
template <int kRegisters, class A>
PYOPS_HD bool sort_distinct(Key<A>* keys, int64_t count, int64_t k) {
  using V = Vector<A>;
  constexpr int64_t kWidth = kLanes<A>, kMost = kRegisters * kWidth;
  alignas(64) A distances[kMost];
  alignas(64) Mask<A> places[kRegisters];
  alignas(64) Key<A> sorted[kMost];
  for (int64_t i = 0; i < kMost; ++i) distances[i] = std::numeric_limits<A>::infinity();
  for (int64_t i = 0; i < count; ++i) distances[i] = knn::distance_of<A>(keys[i]);
  V all[kRegisters];
  Mask<A> smaller[kRegisters] = {};
#pragma GCC unroll 8
  for (int v = 0; v < kRegisters; ++v) all[v] = simd::load<V>(distances + v * kWidth);
  for (int64_t i = 0; i < count; ++i) {
    const V other = simd::splat(distances[i]);
#pragma GCC unroll 8
    for (int v = 0; v < kRegisters; ++v) smaller[v] -= (Mask<A>)(other < all[v]);
  }
#pragma GCC unroll 8
  for (int v = 0; v < kRegisters; ++v) places[v] = smaller[v];
  uint64_t taken = 0;
  for (int64_t i = 0; i < count; ++i) {
    const auto place = places[i / kWidth][i % kWidth];
    sorted[place] = keys[i];
    taken |= uint64_t(1) << place;
  }
  if (taken + 1 != uint64_t(1) << count) return false;
  std::copy(sorted, sorted + k, keys);
  return true;
}

// Sorts keys, of which the first k matter.
template <class A>
PYOPS_HD void sort_keys(Key<A>* keys, int64_t count, int64_t k) {
  constexpr int64_t kWidth = kLanes<A>;
  if (count <= 4 * kWidth && sort_distinct<4, A>(keys, count, k)) return;
  if (count > 4 * kWidth && count <= 6 * kWidth && sort_distinct<6, A>(keys, count, k)) return;
  knn::rows::sort_keys<A>(keys, count, k);
}

// The keys of the points within the bound, not sorted, at most `kMostWithin` of them; else a larger number than that.
// The frame is three rows as those of knn::rows, `keys` and `distances` are its scratch memory.
template <class A>
PYOPS_HD int64_t within(const A* frame, int64_t stride, int64_t n, const A* query, A bound, A* distances,
                        Key<A>* keys) {
  using V = Vector<A>;
  constexpr int64_t kWidth = kLanes<A>;
  const int64_t end = knn::rows::padded<A>(n);
  const V most = simd::splat(bound);
  int64_t found = 0;
  // Of up to 32 vectors, a bit for every distance within the bound; word j holds lane j of all of them.
  for (int64_t begin = 0; begin < end; begin += 32 * kWidth) {
    const int64_t stop = std::min(end, begin + 32 * kWidth);
    Mask<A> bits = {}, bit = Mask<A>{} + 1;
    for (int64_t i = begin; i < stop; i += kStep<A>) {
      V sum[kVectors];
      knn::rows::distances_to<3>(frame + i, stride, 3, query, sum);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        simd::store(distances + i + v * kWidth, sum[v]);
        bits |= (Mask<A>)(sum[v] <= most) & bit;
        bit += bit;
      }
    }
    uint64_t words[4];  // of float two lanes each, of double one
    static_assert(sizeof words == sizeof bits);
    std::memcpy(words, &bits, sizeof bits);
    for (int64_t w = 0; w < 4; ++w) {
      uint64_t rest = words[w];
      const auto keep = [&]() PYOPS_INLINED {
        const int place = __builtin_ctzll(rest | uint64_t(rest == 0));
        const int64_t i = begin + (place & 31) * kWidth + w * (kWidth / 4) + (place >> 5);
        keys[found] = knn::key_of<A>(distances[i], uint32_t(i));
        found += rest != 0;
        rest &= rest - 1;
      };
      keep(), keep();  // few words have more: a branch would be guessed wrong more often than not
      while (rest) keep();
    }
    if (found > kMostWithin) return found;
  }
  return found;
}

}  // namespace pyops::tpatches::rows
