// A cloud on the CPU: its candidates in leaves of 64, by coordinate, each with its squared distance to the nearest
// sample, and the greatest distance of each leaf.
//
// A sample must visit a leaf only if it can be nearer than the greatest distance there. Where the leaves are those of a
// k-d tree, their boxes tell, eight at a time, and so do the boxes of eight leaves together. The distance to a box is
// computed like that to a point; rounding is monotonic, so it is never above that to a point inside.
#pragma once

#include <algorithm>
#include <limits>
#include <vector>

#include "../common/simd.h"
#include "fps.h"

namespace pyops::fps {
namespace {

using simd::kLanes;
using simd::Vector;

constexpr int64_t kLeaf = 64, kFan = 8;
constexpr int64_t kMostTreeDims = 8;  // in more dimensions most boxes are near
constexpr int64_t kLeastTree = 512;   // candidates

// Boxes of eight children side by side: least and greatest coordinates of each axis.
template <class A>
struct Level {
  std::vector<A> boxes, top;      // [blocks][dims][2][8]; greatest distance of each child, -1 where none is left
  std::vector<int64_t> farthest;  // the slot of that distance, of the lowest index, -1 where not known

  int64_t children() const { return int64_t(top.size()); }
  A* box(int64_t child, int64_t dims) { return boxes.data() + child / kFan * dims * 2 * kFan + child % kFan; }
  const A* block(int64_t i, int64_t dims) const { return boxes.data() + i * dims * 2 * kFan; }

  void reset(int64_t children, int64_t dims) {
    const int64_t padded = ceil_div(children, kFan) * kFan;
    boxes.assign(padded * dims * 2, A(0)), top.assign(padded, A(-1)), farthest.assign(padded, -1);
  }
};

template <class A>
struct Cloud {
  int64_t dims, leaves;
  bool tree;
  std::vector<A> axes, nearest;  // [leaves][dims][64], [leaves][64]
  std::vector<int32_t> index;    // [leaves][64]: which point it is; rising within a leaf
  Level<A> small, large;         // leaves, and groups of eight of them

  // `place` holds the candidates; consecutive leaves of it are near each other if `tree`.
  void fill(const A* points, int64_t dims_, const std::vector<int32_t>& place, bool tree_) {
    const int64_t count = int64_t(place.size());
    dims = dims_, tree = tree_, leaves = ceil_div(count, kLeaf);
    axes.assign(leaves * dims * kLeaf, A(0)), nearest.assign(leaves * kLeaf, A(-1)), index.resize(leaves * kLeaf);
    small.reset(leaves, dims);
    for (int64_t leaf = 0; leaf < leaves; ++leaf) {
      const int64_t n = std::min(kLeaf, count - leaf * kLeaf);
      int32_t* const of = index.data() + leaf * kLeaf;
      std::copy_n(place.data() + leaf * kLeaf, n, of);
      if (tree) std::sort(of, of + n);
      for (int64_t d = 0; d < dims; ++d) {
        A* const to = axes.data() + (leaf * dims + d) * kLeaf;
        for (int64_t i = 0; i < n; ++i) to[i] = points[int64_t(of[i]) * dims + d];
      }
      std::fill_n(nearest.data() + leaf * kLeaf, n, std::numeric_limits<A>::infinity());
      small.top[leaf] = std::numeric_limits<A>::infinity();
    }
    if (tree) enclose(count);
  }

 private:
  void enclose(int64_t count) {
    large.reset(ceil_div(leaves, kFan), dims);
    for (int64_t leaf = 0; leaf < leaves; ++leaf)
      for (int64_t d = 0; d < dims; ++d) {
        const A* const from = axes.data() + (leaf * dims + d) * kLeaf;
        const auto [least, most] = std::minmax_element(from, from + std::min(kLeaf, count - leaf * kLeaf));
        A *const box = small.box(leaf, dims) + d * 2 * kFan, *group = large.box(leaf / kFan, dims) + d * 2 * kFan;
        const bool first = leaf % kFan == 0;
        box[0] = *least, box[kFan] = *most;
        group[0] = first ? *least : std::min(group[0], *least);
        group[kFan] = first ? *most : std::max(group[kFan], *most);
        large.top[leaf / kFan] = std::numeric_limits<A>::infinity();
      }
  }
};

}  // namespace
}  // namespace pyops::fps
