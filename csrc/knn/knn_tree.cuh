// Trees over clouds on CUDA: what they are, when they pay, and the two steps of a search in them.
//
// A leaf holds 32 points, a node 32 children, so that each lane of a warp has one of them to look at. Children of nodes
// of level 0 are leaves. Leaf i of a cloud is child i % 32 of node i / 32 of level 0, and so on up: no pointers.
//
//     coordinates  [B][leaf][D][32]      NaN where there is no point that can be a neighbour
//     places       [B][leaf][32]         index in the cloud; kNoPlace behind the last point
//     boxes        [B][node][2 * D][32]  lowest and highest coordinates of each child, inf and -inf of none
//     least        [B][node][32]         lowest index in each child
#pragma once

#include "knn_args.h"
#include "knn_select.cuh"

namespace pyops::knn {

constexpr int kLeaf = 32, kTreeLevels = 6, kTreeDims = 8;
constexpr uint32_t kNoPlace = 0xffffffffu;

// Where trees pay, in one place. Fewer points are compared sooner than they are sorted, and so are fewer pairs; with more
// dimensions a tree needs more points before its boxes exclude anything.
constexpr int64_t kTreePoints = 4096, kTreePointsOfOneDim = 1024, kTreePairs = int64_t(1) << 26;

#if defined(PYOPS_EMULATE)
extern int tree_always;  // for tests: trees whatever the size
#else
constexpr int tree_always = 0;
#endif

inline bool wants_tree(const Problem& p) {
  if (p.dims > kTreeDims || p.points == 0) return false;
  return tree_always || (p.points >= std::max(kTreePoints, kTreePointsOfOneDim << (p.dims - 1)) &&
                         p.points >= 8 * p.k && p.batch * p.queries >= ceil_div(kTreePairs, p.points));
}

struct Tree {
  int dims, levels;
  int64_t batch, leaves, nodes;  // of a cloud
  int64_t first[kTreeLevels];    // node of each level
  const float *coordinates, *boxes;
  const uint32_t *places, *least;
};

struct Trees {
  Tree of;
  Tensor memory;  // of all of it
};

// The tree of each cloud; without `whole` only its places, which are an order of the points by neighbourhood.
template <class T>
Trees grow_trees(const Tensor& points, const Counts& counts, bool whole, cudaStream_t stream);

template <class T>
void search_trees(const Problem& p, const Tensor& query, const Tensor& points, const Counts& queries,
                  const Counts& counts, double limit, const Output<T>& out, cudaStream_t stream);

}  // namespace pyops::knn
