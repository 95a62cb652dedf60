// The search in a tree on a CPU: from the nearest subtree to farther ones, until none can hold a neighbour.
#pragma once

#include "knn_tree.h"

namespace pyops::knn::tree {

// Keys of the children of a node.
template <int kDims, class A>
PYOPS_HD void keys_of(const Node<A>& node, int64_t dims, const A* query, Key<A> (&keys)[kChildren]) {
  using V = Vector<A>;
  alignas(32) A distances[kChildren];
#pragma GCC unroll 2
  for (int64_t c = 0; c < kChildren; c += kLanes<A>) {
    V sum{};
    const int64_t count = kDims ? kDims : dims;
#pragma GCC unroll 8
    for (int64_t d = 0; d < count; ++d) {
      const V at = simd::splat(query[d]), zero{};
      const V below = simd::load<V>(node.low[d] + c) - at, above = at - simd::load<V>(node.high[d] + c);
      V outside = below > above ? below : above;
      outside = outside > zero ? outside : zero;
      sum = d == 0 ? square(outside) : sum + square(outside);
    }
    simd::store(distances + c, sum);
  }
  for (int64_t c = 0; c < kChildren; ++c) keys[c] = key_of<A>(distances[c], node.least[c]);
}

template <class A>
PYOPS_HD bool is_finite(const A* query, int64_t dims) {
  A sum = 0;
  for (int64_t d = 0; d < dims; ++d) sum += query[d] * A(0);
  return sum == A(0);
}

// The leaf that the nearest child of each node leads to; any for a query without neighbours.
template <class A>
PYOPS_HD int64_t home_leaf(const Tree<A>& t, const A* query) {
  if (!is_finite(query, t.dims)) return 0;  // it would be as near to places without a child
  int64_t number = 0;
  for (int64_t level = 0; level < t.levels; ++level) {
    Key<A> keys[kChildren];
    keys_of<0>(t.nodes[t.first[level] + number], t.dims, query, keys);
    number = number * kChildren + (std::min_element(keys, keys + kChildren) - keys);
  }
  return number;
}

// The best k so far: sorted where k is small, else more than k until there is no room.
template <class A>
struct Best {
  Key<A>* keys;
  int64_t k, found = 0;
  Key<A> bound;  // what a neighbour has to be at most

  static constexpr int64_t kSorted = 32;

  PYOPS_HD void add(int64_t count) {  // what has been put behind the keys
    if (k <= kSorted) {
      if (count > 6) {
        rows::sort_keys<A>(keys, found + count, k);
        found = std::min(found + count, k);
      } else {
        for (int64_t i = 0; i < count; ++i) insert(keys[found + i], found + i);
        found = std::min(found + count, k);
      }
      if (found == k) bound = std::min(bound, keys[k - 1]);
      return;
    }
    found += count;
    if (found < 2 * k + kLeaf) return;
    std::nth_element(keys, keys + k - 1, keys + found);
    found = k, bound = std::min(bound, keys[k - 1]);
  }

  PYOPS_HD void insert(Key<A> key, int64_t sorted) {  // keys before `sorted` are
    int64_t i = sorted;
    for (; i > 0 && keys[i - 1] > key; --i) keys[i] = keys[i - 1];
    keys[i] = key;
  }
};

template <int kDims, class A>
PYOPS_HD void search_leaf(const Tree<A>& t, int64_t leaf, const A* query, Best<A>& best) {
  using V = Vector<A>;
  constexpr int64_t kWidth = kLanes<A>;
  alignas(32) A distances[kLeaf];
  const A* const from = t.leaf(leaf);
  const uint32_t* const indices = t.indices.data() + leaf * kLeaf;
  const V most = simd::splat(distance_of<A>(best.bound));
  int64_t count = 0;
  for (int64_t begin = 0; begin < kLeaf; begin += kVectors * kWidth) {
    V sum[kVectors];
    rows::distances_to<kDims>(from + begin, kLeaf, t.dims, query, sum);
    rows::Mask<A> within = {};
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      simd::store(distances + begin + v * kWidth, sum[v]);
      within |= (rows::Mask<A>)(sum[v] <= most) & rows::splat_mask<A>(int64_t(1) << v);
    }
    uint32_t bits = 0;
    for (int64_t lane = 0; lane < kWidth; ++lane) bits |= uint32_t(within[lane]) << (kVectors * lane);
    for (; bits; bits &= bits - 1) {
      const int bit = __builtin_ctz(bits);
      const int64_t i = begin + bit % kVectors * kWidth + bit / kVectors;
      best.keys[best.found + count] = key_of<A>(distances[i], indices[i]);
      count += best.keys[best.found + count] <= best.bound;
    }
  }
  if (count) best.add(count);
}

// Like rows::nearest: the number found, and the keys in scratch.keys.
template <int kDims, class A>
PYOPS_HD int64_t nearest(const Tree<A>& t, const A* query, int64_t k, A limit, rows::Scratch<A>& scratch) {
  struct Item {
    Key<A> key;
    int64_t place;  // 16 * number in its level + level; leaves are a level too
  };
  if (!is_finite(query, t.dims) || t.count == 0) return 0;
  Best<A> best{scratch.keys.data(), k, 0, key_of<A>(std::min(limit, std::numeric_limits<A>::max()), ~uint32_t(0))};
  Item stack[kMostLevels * kChildren];
  int64_t height = 0;
  stack[height++] = {Key<A>(0), 0};
  while (height > 0) {
    const Item item = stack[--height];
    if (item.key > best.bound) continue;
    const int64_t level = item.place % 16, number = item.place / 16;
    if (level == t.levels) {
      search_leaf<kDims>(t, number, query, best);
      continue;
    }
    Key<A> keys[kChildren];
    keys_of<kDims>(t.nodes[t.first[level] + number], t.dims, query, keys);
    const int64_t floor = height;
    for (int64_t c = 0; c < kChildren; ++c) {
      if (keys[c] > best.bound) continue;
      int64_t i = height++;  // the nearest on top
      for (; i > floor && stack[i - 1].key < keys[c]; --i) stack[i] = stack[i - 1];
      stack[i] = {keys[c], (number * kChildren + c) * 16 + level + 1};
    }
  }
  if (k > Best<A>::kSorted) rows::sort_keys<A>(best.keys, best.found, k);
  return std::min(best.found, k);
}

}  // namespace pyops::knn::tree
