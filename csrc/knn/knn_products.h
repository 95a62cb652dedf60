// Nearest neighbours in clouds of many dimensions on a CPU, by products: what bounds of distances are worth computing
// exactly.
//
// About a centre c, |q - p|^2 = |q - c|^2 + (|p - c|^2 - 2 (q - c)(p - c)), and what depends on both is a product of
// matrices. Its rounding is bounded: with u the unit of rounding, Q = |q - c|^2 and P = |p - c|^2, the sum as computed
// differs from the distance as the definition rounds it by at most
//
//     u (2 D + 20) (sqrt(Q) + sqrt(P))^2 <= share * (Q + P),    share = u (4.2 D + 48)
//
// D + 2 units come from the definition, as many from products and norms, 2 from the subtraction of the centre, the rest
// is room for D up to kMostDims and for the additions here. Lost bits of numbers near 0 add `tiny`. So
//
//     low(p) = P (1 - share) - tiny - 2 (q - c)(p - c)    is at most   distance - Q (1 - share)
//     low(p) + 2 share P + 2 tiny                         is at least  distance - Q (1 + share)
//
// A point whose low is above what k others are at most cannot be a neighbour. All others are candidates, whose distances
// are computed like the definition does: the result has its bits. Where bounds say little (points that coincide, a point
// so far away that its square overflows) more candidates are computed, and nothing is lost but time.
#pragma once

#include <cmath>

#include "knn_pairs.h"
#include "knn_rows.h"

namespace pyops::knn::products {

using simd::kLanes;
using simd::Vector;

constexpr int64_t kMostDims = 1 << 16;
constexpr int kQueries = 6, kVectors = 2;  // of a tile: what fits sixteen registers
template <class A>
constexpr int64_t kPoints = kVectors * kLanes<A>;  // of a panel

constexpr int64_t kDims = 256;  // whose part of a panel stays in the nearest cache
template <class A>
constexpr double kUnit = double(std::numeric_limits<A>::epsilon()) / 2;
template <class A>
constexpr double kHuge = double(std::numeric_limits<A>::max()) / 64;  // squares up to this cannot overflow anything

template <class A>
double share_of(int64_t dims) {
  return kUnit<A> * (4.2 * double(dims) + 48);
}

template <class A>
double tiny_of(int64_t dims) {
  return 16 * double(dims + 4) * double(std::numeric_limits<A>::min());
}

// A cloud in panels of kPoints points, [panels][dims][kPoints], about its centre, up to a multiple of rows::kStep. The bounds of a point: `lows` without
// the product, NaN for what is no neighbour, `widths` from there to the upper bound.
template <class A>
struct Panels {
  int64_t dims, count;
  std::vector<A> centre, features, lows, widths;
  const A* points;  // as they were, `stride` numbers apart
  int64_t stride;
};

template <class A>
struct Candidate {
  A low, high;
  uint32_t index;
};

// The neighbours of one query so far: candidates by bounds, and those whose distances are known.
template <class A>
struct Best {
  const A* query;
  double square;  // Q; infinity where bounds say nothing
  A threshold;    // what the low of a candidate is at most; NaN for a query without neighbours
  int64_t waiting, found;
  Candidate<A>* candidates;  // [room]
  Key<A>* keys;              // [k + room]
};

template <class A>
struct Selection {
  int64_t k, room, first;  // points that are looked at together in the beginning
  double share;
  A limit;

  Selection(int64_t k, int64_t points, int64_t dims, A limit)
      : k(k), room(2 * k + 64), share(share_of<A>(dims)), limit(limit) {
    first = ceil_div(std::min(points, std::max<int64_t>(1024, 4 * k)), rows::kStep<A>) * rows::kStep<A>;
  }

  // Lows above this have distances above `distance`.
  A threshold_of_distance(double distance, double square) const {
    if (!(square < kHuge<A>)) return std::numeric_limits<A>::infinity();
    return A(distance - square * (1 - share) + 4 * kUnit<A> * (distance + square));
  }
  // ... have distances above those whose lows have at most this upper bound.
  A threshold_of_bound(double high, double square) const {
    if (!(square < kHuge<A>)) return std::numeric_limits<A>::infinity();
    return A(high + 2 * share * square + 4 * kUnit<A> * (std::abs(high) + square));
  }
};

// Turns candidates into keys.
template <class A>
PYOPS_HD void compute(const Panels<A>& cloud, const Selection<A>& s, Best<A>& best) {
  constexpr int64_t n = kLanes<A>;
  const A most = std::min(s.limit, std::numeric_limits<A>::max());
  for (int64_t i = 0; i < best.waiting; i += n) {
    const Candidate<A>* const some = best.candidates + i;
    const int64_t count = std::min(n, best.waiting - i);
    const A* rows[n];
    for (int64_t j = 0; j < n; ++j) rows[j] = cloud.points + int64_t(some[std::min(j, count - 1)].index) * cloud.stride;
    const Vector<A> distances = distances_to_rows<A>(best.query, rows, cloud.dims);
    for (int64_t j = 0; j < count; ++j)
      if (distances[j] <= most) best.keys[best.found++] = key_of<A>(distances[j], some[j].index);
  }
  best.waiting = 0;
}

// Drops candidates by the bounds of the others.
template <class A>
PYOPS_HD void sift(const Selection<A>& s, Best<A>& best) {
  Candidate<A>* const all = best.candidates;
  if (best.found == 0 && best.waiting > s.k) {
    std::nth_element(all, all + s.k - 1, all + best.waiting,
                     [](const Candidate<A>& a, const Candidate<A>& b) { return a.high < b.high; });
    best.threshold = std::min(best.threshold, s.threshold_of_bound(double(all[s.k - 1].high), best.square));
  }
  int64_t kept = 0;
  for (int64_t i = 0; i < best.waiting; ++i)
    if (all[i].low <= best.threshold) all[kept++] = all[i];
  best.waiting = kept;
}

template <class A>
PYOPS_HD void add(const Panels<A>& cloud, const Selection<A>& s, Best<A>& best, Candidate<A> candidate) {
  if (!(candidate.low <= best.threshold)) return;
  best.candidates[best.waiting++] = candidate;
  if (best.waiting < s.room) return;
  sift(s, best);
  if (best.waiting <= s.k + 32 && best.found == 0) return;
  compute(cloud, s, best);  // bounds do not tell them apart
  if (best.found < s.k) return;
  std::nth_element(best.keys, best.keys + s.k - 1, best.keys + best.found);
  best.found = s.k;
  const double farthest = double(distance_of<A>(best.keys[s.k - 1]));
  best.threshold = std::min(best.threshold, s.threshold_of_distance(farthest, best.square));
}

// The number found, and their keys in order.
template <class A>
PYOPS_HD int64_t finish(const Panels<A>& cloud, const Selection<A>& s, Best<A>& best) {
  if ((best.waiting - s.k) * cloud.dims > 2048) sift(s, best);  // else it costs more than it saves
  compute(cloud, s, best);
  rows::sort_keys<A>(best.keys, best.found, s.k);
  return std::min(best.found, s.k);
}

}  // namespace pyops::knn::products
