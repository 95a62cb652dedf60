// The samples of a cloud, one after the other; see fps_cloud.h for what each of them visits.
#pragma once

#include "fps_cloud.h"

namespace pyops::fps {
namespace {

// Bytes of all ones for the lanes where a comparison holds.
PYOPS_HD uint64_t bytes_of(simd::i32x8 mask) {
  typedef int8_t i8x8 __attribute__((vector_size(8)));
  return bit_cast<uint64_t>(__builtin_convertvector(mask, i8x8));
}
typedef int64_t i64x4 __attribute__((vector_size(32)));
PYOPS_HD uint64_t bytes_of(i64x4 mask) {
  typedef int8_t i8x4 __attribute__((vector_size(4)));
  return bit_cast<uint32_t>(__builtin_convertvector(mask, i8x4));
}

PYOPS_HD float greatest(simd::f32x8 v) {
  const simd::f32x8 halves = __builtin_shufflevector(v, v, 4, 5, 6, 7, 0, 1, 2, 3);
  v = halves > v ? halves : v;
  const simd::f32x8 pairs = __builtin_shufflevector(v, v, 2, 3, 0, 1, 6, 7, 4, 5);
  v = pairs > v ? pairs : v;
  return v[1] > v[0] ? v[1] : v[0];
}
PYOPS_HD double greatest(simd::f64x4 v) {
  const simd::f64x4 halves = __builtin_shufflevector(v, v, 2, 3, 0, 1);
  v = halves > v ? halves : v;
  return v[1] > v[0] ? v[1] : v[0];
}

template <class A>
PYOPS_HD A greatest(const A* from, int64_t n) {
  auto most = simd::load<Vector<A>>(from);
  for (int64_t i = kLanes<A>; i < n; i += kLanes<A>) {
    const auto x = simd::load<Vector<A>>(from + i);
    most = x > most ? x : most;
  }
  return greatest(most);
}

// The first of n numbers, a multiple of a vector, from `i` on that equals `value`; n where none does.
template <class A>
PYOPS_HD int64_t next_equal(const A* from, int64_t i, int64_t n, A value) {
  for (; i < n && i % kLanes<A> != 0; ++i)
    if (from[i] == value) return i;
  for (; i < n; i += kLanes<A>) {
    const uint64_t found = bytes_of(simd::load<Vector<A>>(from + i) == simd::splat(value));
    if (found) return i + __builtin_ctzll(found) / 8;
  }
  return n;
}

// Lowers the distances of a leaf to those from `center`, and returns the greatest that is left.
template <class A>
PYOPS_HD A visit(const A* axes, int64_t dims, const A* center, A* nearest) {
  constexpr int64_t kAtATime = 8, kSpan = kAtATime * kLanes<A>;
  Vector<A> most = simd::splat(A(-1));
  for (int64_t i = 0; i < kLeaf; i += kSpan) {
    Vector<A> sum[kAtATime];
#pragma GCC unroll 8
    for (int64_t k = 0; k < kAtATime; ++k) sum[k] = simd::splat(A(0));
    for (int64_t d = 0; d < dims; ++d) {
      const auto c = simd::splat(center[d]);
#pragma GCC unroll 8
      for (int64_t k = 0; k < kAtATime; ++k)
        sum[k] = add_square(sum[k], simd::load<Vector<A>>(axes + d * kLeaf + i + k * kLanes<A>) - c);
    }
#pragma GCC unroll 8
    for (int64_t k = 0; k < kAtATime; ++k) {
      A* const at = nearest + i + k * kLanes<A>;
      const auto known = simd::load<Vector<A>>(at), left = nearer(sum[k], known);
      simd::store(at, left);
      most = left > most ? left : most;
    }
  }
  return greatest(most);
}

// For which of eight boxes `center` may be nearer to a point than what is greatest there; NaN, from infinities, may.
template <class A>
PYOPS_HD uint64_t concerned(const A* boxes, int64_t dims, const A* center, const A* top) {
  uint64_t found = 0;
#pragma GCC unroll 2
  for (int64_t i = 0; i < kFan; i += kLanes<A>) {
    Vector<A> sum = simd::splat(A(0));
    const Vector<A> zero = simd::splat(A(0));
    for (int64_t d = 0; d < dims; ++d) {
      const auto c = simd::splat(center[d]);
      const auto below = simd::load<Vector<A>>(boxes + d * 2 * kFan + i) - c;
      const auto above = c - simd::load<Vector<A>>(boxes + (d * 2 + 1) * kFan + i);
      const auto outside = below > above ? below : above;
      sum = add_square(sum, outside > zero ? outside : zero);
    }
    found |= bytes_of(~(sum >= simd::load<Vector<A>>(top + i))) << i * 8;
  }
  return found;
}

template <class F>
PYOPS_HD void for_each(uint64_t bytes, const F& f) {
  while (bytes) {
    const int64_t lane = __builtin_ctzll(bytes) / 8;
    bytes &= ~(uint64_t(0xff) << lane * 8);
    f(lane);
  }
}

// Among the children of a level whose distance is `most`, the slot of the lowest index. `find` knows it of a child.
template <class A, class F>
PYOPS_HD int64_t farthest_of(const Cloud<A>& cloud, Level<A>& level, int64_t begin, int64_t end, A most,
                             const F& find) {
  int64_t best = -1;
  for (int64_t i = next_equal(level.top.data(), begin, end, most); i < end;
       i = next_equal(level.top.data(), i + 1, end, most)) {
    int64_t& slot = level.farthest[i];
    if (slot < 0) slot = find(i);
    if (best < 0 || cloud.index[slot] < cloud.index[best]) best = slot;
  }
  return best;
}

// The slot of the next sample, or -1.
template <class A>
PYOPS_HD int64_t choose(Cloud<A>& cloud) {
  const auto in_leaf = [&](int64_t leaf) PYOPS_INLINED {
    return next_equal(cloud.nearest.data(), leaf * kLeaf, (leaf + 1) * kLeaf, cloud.small.top[leaf]);
  };
  if (!cloud.tree) {
    const int64_t n = cloud.small.children();
    const A most = greatest(cloud.small.top.data(), n);
    return most < A(0) ? -1 : in_leaf(next_equal(cloud.small.top.data(), 0, n, most));
  }
  const int64_t n = cloud.large.children();
  const A most = greatest(cloud.large.top.data(), n);
  if (most < A(0)) return -1;
  return farthest_of(cloud, cloud.large, 0, n, most, [&](int64_t group) PYOPS_INLINED {
    return farthest_of(cloud, cloud.small, group * kFan, (group + 1) * kFan, most, in_leaf);
  });
}

template <class A>
PYOPS_HD void take(Cloud<A>& cloud, int64_t slot) {
  const int64_t dims = cloud.dims, home = slot / kLeaf;
  A center[kMostDims];
  for (int64_t d = 0; d < dims; ++d) center[d] = cloud.axes[(home * dims + d) * kLeaf + slot % kLeaf];
  cloud.nearest[slot] = A(-1);  // a sample is never one again
  Level<A>&small = cloud.small, &large = cloud.large;
  const auto visit_leaf = [&](int64_t leaf) PYOPS_INLINED {
    small.top[leaf] = visit(cloud.axes.data() + leaf * dims * kLeaf, dims, center, cloud.nearest.data() + leaf * kLeaf);
  };
  if (!cloud.tree) {
    for (int64_t leaf = 0; leaf < cloud.leaves; ++leaf) visit_leaf(leaf);
    return;
  }
  small.top[home] = large.top[home / kFan] = std::numeric_limits<A>::infinity();  // to be visited in any case
  for (int64_t block = 0; block * kFan < large.children(); ++block) {
    const uint64_t groups = concerned(large.block(block, dims), dims, center, large.top.data() + block * kFan);
    for_each(groups, [&](int64_t lane) PYOPS_INLINED {
      const int64_t group = block * kFan + lane;
      const uint64_t leaves = concerned(small.block(group, dims), dims, center, small.top.data() + group * kFan);
      if (!leaves) return;
      for_each(leaves, [&](int64_t child) PYOPS_INLINED {
        const int64_t leaf = group * kFan + child;
        visit_leaf(leaf);
        small.farthest[leaf] = -1;
      });
      large.top[group] = greatest(small.top.data() + group * kFan, kFan);
      large.farthest[group] = -1;
    });
  }
}

template <class A>
PYOPS_HD void walk(Cloud<A>& cloud, int64_t slot, int64_t samples, int64_t* to) {
  for (int64_t i = 0; i < samples; ++i) {
    if (i > 0) slot = choose(cloud);
    if (slot < 0) {
      for (; i < samples; ++i) to[i] = -1;
      return;
    }
    to[i] = cloud.index[slot];
    if (i + 1 < samples) take(cloud, slot);
  }
}

}  // namespace
}  // namespace pyops::fps
