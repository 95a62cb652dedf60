// The mathematics of all-pairs correlation along rows, for host and device, without torch.
//
//     volume[w][v] = scale * sum over c of left[c][w] right[c][v]
//
// Level l of its pyramid is level l - 1 averaged in pairs along v, an odd last entry dropped: entry j of level l is the
// mean of the entries [j 2^l, (j + 1) 2^l) of the volume, and, the sum over c being linear, the correlation with the
// mean of so many columns of right.
#pragma once

#include "../common/portable.h"

namespace pyops::corr1d {

constexpr int kMostLevels = 16;

}  // namespace pyops::corr1d
