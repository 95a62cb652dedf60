// A balanced tree over a cloud on a CPU: exact nearest neighbours without looking at all points.
//
// Medians along the widest side divide the cloud into leaves of at most 32 points, kept as rows of coordinates; a node
// keeps the tight boxes of its 8 children side by side, and the lowest index in each. A box gives a key that no neighbour
// in it is below: its distance, computed like those of points and therefore never above one of them, and its lowest
// index. Subtrees whose key is above that of the k-th neighbour so far hold none. As points that coincide are divided by
// index, even a cloud of equal points has one path of subtrees to follow.
#pragma once

#include <cmath>

#include "knn_rows.h"

namespace pyops::knn::tree {

using rows::kVectors;
using simd::kLanes;
using simd::Vector;

constexpr int64_t kLeaf = 32, kChildren = 8, kMostLevels = 12, kMostDims = 8;

template <class A>
struct Node {
  A low[kMostDims][kChildren], high[kMostDims][kChildren];
  uint32_t least[kChildren];  // index
};

template <class A>
struct Tree {
  int64_t dims = 0, count = 0;      // points that can be neighbours
  int64_t depth = 0;                // divisions in two from the root to a leaf
  int64_t levels = 0;               // of nodes
  int64_t first[kMostLevels] = {};  // node of a level
  std::vector<Node<A>> nodes;       // of all levels, the root first
  std::vector<A> coordinates;       // of leaf after leaf: [dims][kLeaf], NaN behind its points
  std::vector<uint32_t> indices;    // [kLeaf]
  std::vector<Key<A>> order;        // while it is built: where in a sequence along one coordinate, and the index

  const A* leaf(int64_t i) const { return coordinates.data() + i * dims * kLeaf; }
  int64_t begin_of(int64_t level, int64_t i) const;
};

// Range i of 2^level: medians of medians, as the divisions in two leave them.
template <class A>
int64_t Tree<A>::begin_of(int64_t level, int64_t i) const {
  int64_t begin = 0, end = count;
  for (int64_t bit = level - 1; bit >= 0; --bit) {
    const int64_t middle = begin + (end - begin) / 2;
    if (i >> bit & 1) begin = middle;
    else end = middle;
  }
  return begin;
}

// Bits that order like the numbers, signs included.
PYOPS_HD uint32_t ordered(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
PYOPS_HD uint64_t ordered(double v) {
  uint64_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits >> 63 ? ~bits : bits | uint64_t(1) << 63;
}

// Divides a range in two at its median along its widest side, and so on until `levels` are done.
template <class A>
void divide(Key<A>* order, const A* cloud, int64_t stride, int64_t dims, int64_t begin, int64_t end, int64_t levels) {
  if (levels == 0 || end - begin < 2) return;
  int64_t widest = 0;
  A width = A(-1);
  for (int64_t d = 0; d < dims; ++d) {
    const A* const row = cloud + d * stride;
    A low = row[uint32_t(order[begin])], high = low;
    for (int64_t i = begin; i < end; ++i) {
      const A v = row[uint32_t(order[i])];
      low = std::min(low, v), high = std::max(high, v);
    }
    if (high - low > width) width = high - low, widest = d;
  }
  const A* const row = cloud + widest * stride;
  for (int64_t i = begin; i < end; ++i) {
    const auto index = uint32_t(order[i]);
    order[i] = Key<A>(ordered(row[index] + A(0))) << 32 | index;  // + 0: both zeros are equal
  }
  const int64_t middle = begin + (end - begin) / 2;
  std::nth_element(order + begin, order + middle, order + end);
  divide(order, cloud, stride, dims, begin, middle, levels - 1);
  divide(order, cloud, stride, dims, middle, end, levels - 1);
}

// Takes the points that can be neighbours of any query: those that are finite.
template <class A>
void begin_tree(Tree<A>& t, const A* cloud, int64_t stride, int64_t n, int64_t dims) {
  t.dims = dims;
  t.order.clear(), t.order.reserve(n);
  for (int64_t i = 0; i < n; ++i) {
    A sum = 0;
    for (int64_t d = 0; d < dims; ++d) sum += cloud[d * stride + i] * A(0);
    if (sum == A(0)) t.order.push_back(uint32_t(i));
  }
  t.count = int64_t(t.order.size());
  t.depth = 0;
  while (ceil_div(t.count, int64_t(1) << t.depth) > kLeaf) ++t.depth;
  t.levels = ceil_div<int64_t>(t.depth, 3);
  int64_t nodes = 0;
  for (int64_t level = 0; level < t.levels; ++level) {
    t.first[level] = nodes;
    nodes += level == 0 ? 1 : int64_t(1) << (t.depth - 3 * (t.levels - level));
  }
  t.nodes.resize(nodes);
  t.coordinates.resize(size_t(dims * kLeaf) << t.depth);
  t.indices.resize(size_t(kLeaf) << t.depth);
}

// Leaf i, once its range is divided off.
template <class A>
void fill_leaf(Tree<A>& t, const A* cloud, int64_t stride, int64_t i) {
  const int64_t begin = t.begin_of(t.depth, i),
                end = i + 1 < int64_t(1) << t.depth ? t.begin_of(t.depth, i + 1) : t.count;
  std::sort(t.order.begin() + begin, t.order.begin() + end,
            [](const Key<A>& a, const Key<A>& b) { return uint32_t(a) < uint32_t(b); });
  A* const to = t.coordinates.data() + i * t.dims * kLeaf;
  uint32_t* const indices = t.indices.data() + i * kLeaf;
  for (int64_t j = 0; j < kLeaf; ++j) indices[j] = begin + j < end ? uint32_t(t.order[begin + j]) : ~uint32_t(0);
  for (int64_t d = 0; d < t.dims; ++d)
    for (int64_t j = 0; j < kLeaf; ++j)
      to[d * kLeaf + j] = begin + j < end ? cloud[d * stride + indices[j]] : std::numeric_limits<A>::quiet_NaN();
}

// Boxes, from the leaves up.
template <class A>
void fill_nodes(Tree<A>& t) {
  const A infinity = std::numeric_limits<A>::infinity();
  for (int64_t level = t.levels - 1; level >= 0; --level) {
    const int64_t below = t.depth - 3 * (t.levels - 1 - level);  // divisions above its children
    const int64_t children = int64_t(1) << below;
    for (int64_t i = 0; i < std::max<int64_t>(1, children / kChildren); ++i) {
      Node<A>& node = t.nodes[t.first[level] + i];
      for (int64_t c = 0; c < kChildren; ++c) {
        const int64_t child = i * kChildren + c;
        node.least[c] = ~uint32_t(0);
        for (int64_t d = 0; d < t.dims; ++d) {
          A low = infinity, high = -infinity;
          if (child >= children) {
          } else if (level == t.levels - 1) {
            const A* const row = t.leaf(child) + d * kLeaf;
            for (int64_t j = 0; j < kLeaf; ++j) {  // NaN compares false
              low = row[j] < low ? row[j] : low;
              high = row[j] > high ? row[j] : high;
            }
          } else {
            const Node<A>& inner = t.nodes[t.first[level + 1] + child];
            for (int64_t j = 0; j < kChildren; ++j)
              low = std::min(low, inner.low[d][j]), high = std::max(high, inner.high[d][j]);
          }
          node.low[d][c] = low, node.high[d][c] = high;
        }
        if (child >= children) continue;
        if (level == t.levels - 1) {
          node.least[c] = t.indices[child * kLeaf];
        } else {
          const Node<A>& inner = t.nodes[t.first[level + 1] + child];
          node.least[c] = *std::min_element(inner.least, inner.least + kChildren);
        }
      }
    }
  }
}

}  // namespace pyops::knn::tree
