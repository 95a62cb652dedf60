// The mathematics of patches that follow points through time, for host and device, without torch.
//
// Chain m of a sequence starts at point queries[m] of its first frame, or from `forward` on of its last one, and in every
// frame looks for the k points nearest to where it is:
//
//     indices[t], distances[t] = nearest(q, points[t]);   centers[t] = points[t][indices[t][0]];   q = centers[t] + noise[t]
//
// From the second on, neighbours farther than the radius give way to the first. Without a neighbour centers[t] = q.
#pragma once

#include "../knn/knn.h"

namespace pyops::tpatches {

struct Problem {
  int64_t batch, frames, points, queries, k;
  int64_t forward;  // queries that begin with the first frame
  double radius;

  int64_t backward() const { return queries - forward; }
};

}  // namespace pyops::tpatches
