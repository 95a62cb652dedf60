// The mathematics of group-wise correlation, for host and device, without torch.
//
//     out[g][d][w]   = scale * sum over the n channels c of group g of l[c][w] r[c][w - d],   0 where w < d
//     grad l[c][w]   = scale * sum over d <= w of grad[d][w] r[c][w - d]
//     grad r[c][x]   = scale * sum over d < W - x of grad[d][x + d] l[c][x + d]
//
// The plain mean has scale 1 / n. The cosine has scale 1, and l and r are divided by their length over the channels of
// the group first; with u = l / |l| and v what the sums above give to u, grad l = (v - u <u, v>) / |l|.
#pragma once

#include <cmath>

#include "../common/portable.h"

namespace pyops::groupwise {

// A vector shorter than 1e-12 counts as zero: it has no direction, and correlates with nothing.
constexpr double kLeastSquare = 1e-24;

// 1 / length, or 0 for a vector that counts as zero; NaN stays.
PYOPS_HD float inverse_length(float square) { return square < float(kLeastSquare) ? 0.f : 1.f / sqrtf(square); }
PYOPS_HD double inverse_length(double square) { return square < kLeastSquare ? 0. : 1. / sqrt(square); }

}  // namespace pyops::groupwise
